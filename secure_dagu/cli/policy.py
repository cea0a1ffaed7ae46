"""`secure-dagu policy`: who may call what, and why."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags, output
from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.security.explain import Explanation, Objects

SUMMARY = "Say who may call what, and why: the table of roles and calls, and one certificate against it."
EXAMPLE = "secure-dagu policy explain gpu-1 Poll --object labels:gpu=true"
_ROLES = ("worker", "dispatcher", "coordinator", "admin", "metrics")
DENIED = 1


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    explain = actions.add_parser(
        "explain",
        help="what a coordinator with this configuration says to one certificate calling one method; exit 1 if denied",
        epilog=f"example:  {EXAMPLE}",
    )
    explain.add_argument("certificate", metavar="NAME|FILE", help="a name of the standard place or ledger, or PEM file")
    explain.add_argument("method", metavar="METHOD", help="such as Dispatch or coordinator.v1.CoordinatorService/Poll")
    explain.add_argument(
        "--object", metavar="WHAT", action="append", default=[],
        help="what the call names: worker:ID, labels:K=V[,K=V…] (claimed, or a task's selector), tenant:NAME",
    )  # fmt: skip
    flags.add_settings_flags(explain, ("peer", "policy"))
    listed = actions.add_parser("list", help="print the table", epilog="example:  secure-dagu policy list")
    test = actions.add_parser(
        "test", help="what any certificate of a role may call; with a method, exit 1 if denied",
        epilog="example:  secure-dagu policy test --role worker Dispatch",
    )  # fmt: skip
    test.add_argument("--role", metavar="ROLE", required=True, choices=_ROLES, help=", ".join(_ROLES))
    test.add_argument("method", metavar="METHOD", nargs="?", help="ask about this one only")
    for action in (explain, listed, test):
        action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_common_flags(action)


async def run(args: argparse.Namespace) -> int:
    """Answer; 0 when allowed, 1 when denied."""
    if args.action == "list":
        return _list(as_json=args.json)
    if args.action == "test":
        return _test(args)
    return _explain(args)


def _explain(args: argparse.Namespace) -> int:
    from secure_dagu.assembly.explaining import subject_of
    from secure_dagu.config.load import load
    from secure_dagu.security.explain import explain
    from secure_dagu.security.policy import Mode, Policy, UngrantedLabels

    loaded = load(args)
    now = datetime.now(UTC)
    subject = subject_of(loaded, args.certificate, now)
    peer = subject.peer
    policy = Policy(
        mode=Mode(loaded.settings.policy.mode),
        ungranted_labels=UngrantedLabels(loaded.settings.peer.ungranted_labels),
    )
    told = explain(
        peer, args.method, now, objects=_objects(args.object), policy=policy, standing=subject.standing
    )  # fmt: skip
    assert peer.identity is not None, "a certificate that was read names somebody"
    facts = {
        "certificate": subject.source,
        "identity": peer.identity.uri,
        "role": peer.identity.role.value,
        "serial": f"{peer.serial:x}",
        "not_after": peer.not_after.isoformat() if peer.not_after else "",
        "labels": str(peer.grants),
        "revoked": subject.standing is not None and subject.standing.reason.value == "cert_revoked",
    }
    if args.json:
        output.print_json(facts | _document(told))
    else:
        until = f"{peer.not_after:%Y-%m-%d %H:%M}Z" if peer.not_after else "no end"
        print(output.visible(f"{peer.identity}  labels {peer.grants or '(none)'}  until {until}  ({subject.source})"))
        _print(told)
    return 0 if told.is_allowed else DENIED


def _objects(words: list[str]) -> Objects:
    """Read what a call names.

    Raises:
        ConfigError: a word is none of the known ones.
    """
    from secure_dagu.config.values import labels
    from secure_dagu.security.explain import Objects
    from secure_dagu.security.grants import TENANT

    worker, pairs = "", dict[str, str]()
    for word in words:
        kind, _, value = word.partition(":")
        try:
            match kind:
                case "worker" if value:
                    worker = value
                case "labels" if value:
                    pairs.update(labels(value))
                case "tenant" if value:
                    pairs[TENANT] = value
                case _:
                    raise ValueError("it is worker:ID, labels:K=V or tenant:NAME")  # noqa: TRY301 - told as the others
        except ValueError as problem:
            raise ConfigError(f"--object {word[:100]!r} cannot be read", why=str(problem)) from problem
    return Objects(worker=worker, labels=pairs)


def _test(args: argparse.Namespace) -> int:
    from secure_dagu.dispatch.model import Role
    from secure_dagu.security.explain import a_peer_of, explain
    from secure_dagu.security.roles import RPC_RULES

    now = datetime.now(UTC)
    peer = a_peer_of(Role(args.role), now + timedelta(days=1))
    told = [explain(peer, method, now) for method in ([args.method] if args.method else RPC_RULES)]
    if args.json:
        output.print_json({"role": args.role, "methods": [_document(one) for one in told]})
    else:
        for one in told:
            needs = f"  ({one.needs})" if one.needs else ""
            print(output.visible(f"{'allowed' if one.is_allowed else 'denied':<8} {one.method.lstrip('/')}{needs}"))
    return DENIED if args.method and not told[0].is_allowed else 0


def _list(*, as_json: bool) -> int:
    from secure_dagu.dispatch.model import Role
    from secure_dagu.security.roles import RPC_RULES

    if as_json:
        rows = [
            {
                "method": method.removeprefix("/"),
                "roles": sorted(role.value for role in rule.roles),
                "object_rule": rule.object_rule.value,
                "over_plaintext": not rule.takes_secret,
            }
            for method, rule in RPC_RULES.items()
        ]
        output.print_json({"rules": rows})
        return 0
    width = max(map(len, RPC_RULES))
    print(f"{'METHOD':<{width}} {' '.join(f'{role.upper():<11}' for role in _ROLES)} ALSO CHECKED")
    for method, rule in RPC_RULES.items():
        cells = " ".join(f"{'yes' if Role(role) in rule.roles else '-':<11}" for role in _ROLES)
        print(f"{method.removeprefix('/'):<{width}} {cells} {rule.object_rule.value}")
    return 0


def _document(told: Explanation) -> dict[str, Any]:
    return {
        "method": told.method.removeprefix("/"),
        "allowed": told.is_allowed,
        "rule": told.rule,
        "reason": told.reason,
        "checks": [{"rule": line.rule, "met": line.is_met, "text": line.text} for line in told.lines],
        "needs": told.needs,
        "fix": told.fix,
    }


def _print(told: Explanation) -> None:
    denied_by = f" by the rule {told.rule} ({told.reason})"
    print(
        output.visible(
            f"{'allowed' if told.is_allowed else 'DENIED'}  {told.method.lstrip('/')}"
            f"{'' if told.is_allowed else denied_by}"
        )
    )
    for line in told.lines:
        print(output.visible(f"  {'ok' if line.is_met else 'no':<3} {line.rule:<12} {line.text}"))
    if told.needs:
        print(output.visible(f"  ?   object       the service still checks: {told.needs}"))
    if told.fix:
        print(output.visible(f"  fix: {told.fix}"))
