"""Explain what the wall would say to one call, rule by rule, with the very functions that decide. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct, field

from secure_dagu.dispatch.model import Role
from secure_dagu.security.admission import Deny, admit
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.policy import (
    STRICT,
    Policy,
    UngrantedLabels,
    objection_to_labels,
    other_tenant,
    reaches_tenant,
    tenant_of,
)
from secure_dagu.security.roles import RPC_RULES, ObjectRule

MEANINGS: Mapping[ObjectRule, str] = {
    ObjectRule.NONE: "nothing beyond the role",
    ObjectRule.OWN_ID: "the worker id in the message is the certificate's name, or that name, `@` and anything",
    ObjectRule.HELD_LEASE: "as own-id, and this worker holds the fresh lease of that attempt; through a whole stream",
    ObjectRule.HELD_TREE: "a worker reaches only the run that it holds and what hangs below it; other roles are free",
}
"""What each object rule demands."""

CLAIMS_LABELS = frozenset({"Poll", "Heartbeat"})
"""Methods whose messages carry labels."""


class Objects(Struct, frozen=True, kw_only=True):
    """What a call would name, as far as it is known before it happens."""

    worker: str = ""
    """The worker id in the message."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a poll claims, or what a task's selector asks for."""


class Line(Struct, frozen=True, kw_only=True):
    """One rule and what it says. `is_met` None: only the service can say, when it sees the object."""

    rule: str
    is_met: bool | None
    text: str


class Explanation(Struct, frozen=True, kw_only=True):
    """The whole answer. `rule` is the one that denied, or `roles` when nothing did."""

    method: str
    is_allowed: bool
    rule: str
    reason: str
    """The code of the denial, as in metrics and audit; empty when allowed."""
    lines: tuple[Line, ...]
    needs: str
    """What the service still checks about the object; empty when nothing."""
    fix: str


def method_of(word: str) -> str:
    """Return the full name of a method, given whole or by its last word; any other word comes back as it is."""
    found = [method for method in RPC_RULES if word and method.endswith(f"/{word.removeprefix('/')}")]
    return found[0] if len(found) == 1 else word


def explain(
    peer: Peer,
    word: str,
    now: datetime,
    *,
    objects: Objects | None = None,
    policy: Policy = STRICT,
    standing: Deny | None = None,
) -> Explanation:
    """Return what the wall would say to this peer calling a method.

    Args:
        word: the method, as `method_of` takes it.
        now: aware UTC.
        objects: what the call would name; None: nothing known.
        policy: of the coordinator that is asked.
        standing: why the certificate is refused whatever it asks, such as that it is revoked; None: it is not.
    """
    method, given = method_of(word), objects or Objects()
    lines: list[Line] = []
    rule = RPC_RULES.get(method)
    if rule is None:
        import difflib  # only a question with a mistake pays for it

        names = [item.rpartition("/")[2] for item in RPC_RULES]
        close = difflib.get_close_matches(word.rpartition("/")[2], names, n=1)
        near = f"; did you mean {close[0]}?" if close else ""
        text = f"{word[:200]} is not in the table, so nobody may call it{near}"
        lines.append(Line(rule="table", is_met=False, text=text))
    if standing is not None:
        lines.append(Line(rule="certificate", is_met=False, text=standing.error.why))
        return _answer(method, standing, "certificate", lines, "")
    verdict = admit(peer, method, given.worker or None, now)
    if isinstance(verdict, Deny):
        name = _RULE_OF.get(verdict.reason.value, "roles") if rule is not None else "table"
        if rule is not None:
            lines.append(Line(rule=name, is_met=False, text=verdict.error.why))
        return _answer(method, verdict, name, lines, "")
    assert rule is not None, "nothing outside the table is admitted"
    role = peer.identity.role if peer.identity is not None else Role.ANONYMOUS
    end = f", valid until {peer.not_after:%Y-%m-%d %H:%M}Z" if peer.not_after is not None else ""
    lines.append(Line(rule="certificate", is_met=True, text=f"{peer.identity or 'nobody proven'}{end}"))
    lines.append(Line(rule="roles", is_met=True, text=f"the role {role.value} includes this method"))
    if given.worker:
        lines.append(Line(rule="own-id", is_met=True, text=f"it may act as worker {given.worker[:200]!r}"))
    if method.rpartition("/")[2] in CLAIMS_LABELS:
        objection = objection_to_labels(peer, given.labels, policy)
        if objection is not None and objection.is_enforced:
            lines.append(Line(rule="labels", is_met=False, text=objection.deny.error.what))
            return _answer(method, objection.deny, "labels", lines, "")
        is_free = policy.ungranted_labels is UngrantedLabels.ALLOW
        text = f"it may claim {'anything but security labels, and ' if is_free else ''}{peer.grants or 'no labels'}"
        if objection is not None:
            text = f"{objection.deny.error.what}; the policy is in dry-run, so this is counted and let through"
        lines.append(Line(rule="labels", is_met=True, text=text))
    elif method.endswith("/Dispatch") and tenant_of(given.labels):
        tenant = tenant_of(given.labels)
        if role is not Role.WORKER and not reaches_tenant(verdict.caller, tenant):
            deny = other_tenant(verdict.caller, tenant)
            lines.append(Line(rule="tenant", is_met=False, text=deny.error.why))
            return _answer(method, deny, "tenant", lines, "")
        lines.append(Line(rule="tenant", is_met=True, text=f"it reaches the tenant {tenant!r}"))
    return _answer(method, None, "roles", lines, _needs(rule.object_rule, role, is_named=bool(given.worker)))


def _needs(rule: ObjectRule, role: Role, *, is_named: bool) -> str:
    match rule:
        case ObjectRule.OWN_ID if is_named:
            return ""
        case ObjectRule.HELD_TREE if role is not Role.WORKER:
            return "the run's tenant is one that the certificate grants, or none" if role is not Role.ADMIN else ""
        case ObjectRule.NONE:
            return ""
        case _:
            return MEANINGS[rule]


def _answer(method: str, deny: Deny | None, rule: str, lines: list[Line], needs: str) -> Explanation:
    return Explanation(
        method=method, is_allowed=deny is None, rule=rule, reason=deny.reason.value if deny else "",
        lines=tuple(lines), needs=needs, fix=deny.error.fix if deny else "",
    )  # fmt: skip


_RULE_OF = {
    "worker_id_mismatch": "own-id",
    "cert_expired": "certificate",
    "unknown_identity": "certificate",
}


def a_peer_of(role: Role, now_until: datetime) -> Peer:
    """Return a made-up peer of a role whose certificate ends at `now_until`, for questions about the role alone."""
    identity = None if role is Role.ANONYMOUS else Identity("example", role, "example")
    return Peer(connection="", address="", identity=identity, not_after=now_until)
