"""Decide what goes beyond role and identity: which labels a worker may claim, which tenants a caller reaches. Pure.

Every rule here is monotone: whoever is granted less is never allowed more (tests/security/test_policy.py). So taking
the last label out of a certificate takes rights away under every setting, and can never add one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.errors import OtherTenant, Refused
from secure_dagu.security.admission import Deny, DenyReason
from secure_dagu.security.grants import TENANT, is_reserved
from secure_dagu.security.peer import Peer


class Mode(StrEnum):
    """Whether the rules of this module refuse, or only say what they would have refused."""

    ENFORCE = "enforce"
    DRY_RUN = "dry-run"


class UngrantedLabels(StrEnum):
    """What becomes of ordinary labels that a certificate does not grant."""

    DENY = "deny"
    ALLOW = "allow"
    """A worker's own word is enough for them, whatever its certificate grants. Security labels still need a grant."""


class Policy(Struct, frozen=True, kw_only=True):
    """What an operator may choose."""

    mode: Mode = Mode.ENFORCE
    ungranted_labels: UngrantedLabels = UngrantedLabels.DENY


STRICT = Policy()


class Objection(Struct, frozen=True, kw_only=True):
    """A refusal by a rule of this module. `is_enforced` False: dry-run, so it is counted and the call goes on."""

    deny: Deny
    is_enforced: bool


def objection_to_labels(peer: Peer, labels: Mapping[str, str], policy: Policy) -> Objection | None:
    """Return why a worker may not claim these labels, None when it may (threat T03).

    Claimed labels may only narrow what the certificate grants. Costs a fraction of a microsecond when all are granted,
    which is why nothing is remembered. A security label is refused even in dry-run: no earlier worker could have one.
    """
    if peer.grants.pairs.issuperset(labels.items()):
        return None
    missing = refused_labels(peer, labels, policy)
    if not missing:
        return None
    is_enforced = policy.mode is Mode.ENFORCE or any(is_reserved(pair) for pair in missing)
    return Objection(deny=_label_not_granted(peer, missing), is_enforced=is_enforced)


def refused_labels(peer: Peer, labels: Mapping[str, str], policy: Policy) -> tuple[str, ...]:
    """Return the labels among these that are refused to the peer, as `key=value`, sorted."""
    missing = peer.grants.missing(labels)
    if policy.ungranted_labels is UngrantedLabels.ALLOW or not peer.is_proven:
        # Over an unproven link every label is a mere word, as the name is; only security labels still mean something.
        return tuple(pair for pair in missing if is_reserved(pair))
    return missing


def _label_not_granted(peer: Peer, missing: tuple[str, ...]) -> Deny:
    shown = ", ".join(missing)[:300]
    name = peer.identity.name if peer.identity is not None else "NAME"
    granted = str(peer.grants)[:300] or "no labels"
    together = ",".join(sorted({*missing, *(f"{key}={value}" for key, value in peer.grants.pairs)}))[:300]
    return Deny(
        DenyReason.LABEL_NOT_GRANTED,
        Refused(
            f"{peer.identity or 'an unproven worker'} may not claim {shown}",
            why=f"its certificate grants {granted}",
            fix=f"issue one that grants them, `secure-dagu pki issue worker {name} --force --labels {together}`, or "
            "drop them from worker.labels",
        ),
    )


# -- tenants -----------------------------------------------------------------------------------------------------------

UNBOUND = frozenset({Role.ADMIN, Role.WORKER})
"""Roles that no tenant limits."""
NO_TENANT = ""
"""The tenant of runs whose selector names none. Every issuer reaches it."""


def tenant_of(selector: Mapping[str, str]) -> str:
    """Return the tenant that a worker selector names."""
    return selector.get(TENANT, NO_TENANT)


def tenant_of_labels(labels: Iterable[str]) -> str:
    """Return the tenant among the labels of a stored run, each `key=value`."""
    prefix = f"{TENANT}="
    return next((label.removeprefix(prefix) for label in labels if label.startswith(prefix)), NO_TENANT)


def reaches_tenant(caller: Caller, tenant: str) -> bool:
    """Tell whether a dispatcher, coordinator or admin may touch runs of a tenant (threat T07).

    An admin reaches all. The others reach the tenants that their certificates grant, and runs that have none; so who is
    unproven reaches none. Workers are judged by their leases.
    """
    return tenant == NO_TENANT or tenant in caller.tenants or caller.role in UNBOUND


def other_tenant(caller: Caller, tenant: str) -> Deny:
    """Return the refusal for `reaches_tenant`."""
    return Deny(
        DenyReason.OTHER_TENANT,
        OtherTenant(
            f"{caller.role.value}/{caller.name} may not touch runs of the tenant {tenant[:100]!r}",
            why="its certificate does not grant that tenant",
            fix=f"issue one that does: `secure-dagu pki issue {caller.role.value} {caller.name} --force "
            f"--labels {TENANT}={tenant[:100]}`",
        ),
    )
