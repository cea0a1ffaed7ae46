"""Say which role may call which RPC. A table; what is not in it is denied.

Kept as data so that it can be read at a glance, rendered into the reference and walked by a test cell by cell
(tests/adversarial/test_roles_table.py). The object rule is a word, not code: it names what the called service must
still check about the object, which only the service knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct

from secure_dagu.dispatch.model import Role


class ObjectRule(StrEnum):
    """What must hold about the object of a call, beyond the caller's role."""

    NONE = "none"
    OWN_ID = "own-id"
    """The claimed worker id is the certificate's name, or that name, `@` and anything. Checked by `admission.admit`."""
    HELD_LEASE = "held-lease"
    """As OWN_ID, and a fresh lease of that attempt is held by this worker. Constant through a stream."""
    HELD_TREE = "held-tree"
    """A worker reaches only what belongs to a run whose lease it holds: that run, its children, its DAG's state, the
    definitions and bundles that they name. Other roles are not limited."""


class Rule(Struct, frozen=True, kw_only=True):
    """One row: who may call, and what the service still has to check."""

    roles: frozenset[Role]
    object_rule: ObjectRule
    takes_secret: bool = False
    """True when an answer is a secret: such a method never works over an unproven link."""


COORDINATOR_SERVICE = "/coordinator.v1.CoordinatorService/"
HEALTH_SERVICE = "/grpc.health.v1.Health/"
EVENTS_SERVICE = "/secure_dagu.v1.WorkerEvents/"
OPERATIONS_SERVICE = "/secure_dagu.v1.Operations/"

_W, _D, _C, _A = Role.WORKER, Role.DISPATCHER, Role.COORDINATOR, Role.ADMIN
# A coordinator may do what a dispatcher may: another coordinator passes on what a dispatcher asked of it, and no more.
# (Its own certificate is for serving only, so using this row takes a second certificate, for calling.)
_ISSUERS = frozenset({_D, _C, _A})
_ALL_FOUR = _ISSUERS | {_W}
# Metrics certificates open the metrics endpoint and nothing on this port.

_OWN = Rule(roles=frozenset({_W}), object_rule=ObjectRule.OWN_ID)
_LEASED = Rule(roles=frozenset({_W}), object_rule=ObjectRule.HELD_LEASE)
_TREE = Rule(roles=_ALL_FOUR, object_rule=ObjectRule.HELD_TREE)
_ISSUE = Rule(roles=_ISSUERS, object_rule=ObjectRule.NONE)
_PROBE = Rule(roles=_ALL_FOUR, object_rule=ObjectRule.NONE)
_ADMIN = Rule(roles=frozenset({_A}), object_rule=ObjectRule.NONE)
_DELETE = Rule(roles=frozenset({_C, _A}), object_rule=ObjectRule.NONE)
_OPERATE = Rule(roles=frozenset({_D, _A}), object_rule=ObjectRule.NONE)

RPC_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        COORDINATOR_SERVICE + "Poll": _OWN,
        COORDINATOR_SERVICE + "Heartbeat": _OWN,
        COORDINATOR_SERVICE + "RunHeartbeat": _OWN,
        COORDINATOR_SERVICE + "AckTaskClaim": _OWN,
        COORDINATOR_SERVICE + "ClaimAgentSessionCleanup": _OWN,
        COORDINATOR_SERVICE + "CompleteAgentSessionCleanup": _OWN,
        COORDINATOR_SERVICE + "ReportStatus": _LEASED,
        COORDINATOR_SERVICE + "StreamLogs": _LEASED,
        COORDINATOR_SERVICE + "StreamArtifacts": _LEASED,
        COORDINATOR_SERVICE + "ResolveSecretReference": Rule(
            roles=frozenset({_W}), object_rule=ObjectRule.HELD_LEASE, takes_secret=True
        ),
        COORDINATOR_SERVICE + "Dispatch": _TREE,
        COORDINATOR_SERVICE + "GetDAGRunStatus": _TREE,
        COORDINATOR_SERVICE + "RequestCancel": _TREE,
        COORDINATOR_SERVICE + "GetDAG": _TREE,
        COORDINATOR_SERVICE + "GetState": _TREE,
        COORDINATOR_SERVICE + "PutState": _TREE,
        COORDINATOR_SERVICE + "DeleteState": _TREE,
        COORDINATOR_SERVICE + "ListState": _TREE,
        COORDINATOR_SERVICE + "HasWorkspaceBundle": _TREE,
        COORDINATOR_SERVICE + "GetWorkspaceBundle": _TREE,
        COORDINATOR_SERVICE + "PutWorkspaceBundle": _ISSUE,
        COORDINATOR_SERVICE + "GetWorkers": _ISSUE,
        HEALTH_SERVICE + "Check": _PROBE,
        HEALTH_SERVICE + "Watch": _PROBE,
        EVENTS_SERVICE + "WatchCancellations": _OWN,
        EVENTS_SERVICE + "Announce": _OWN,
        OPERATIONS_SERVICE + "ListRuns": _OPERATE,
        OPERATIONS_SERVICE + "FindRuns": _OPERATE,
        OPERATIONS_SERVICE + "CountRuns": _ADMIN,
        OPERATIONS_SERVICE + "FollowRun": _OPERATE,
        OPERATIONS_SERVICE + "ReadLog": _OPERATE,
        OPERATIONS_SERVICE + "ReadLogPage": _OPERATE,
        OPERATIONS_SERVICE + "ListArtifacts": _OPERATE,
        OPERATIONS_SERVICE + "ReadArtifact": _OPERATE,
        OPERATIONS_SERVICE + "DeleteRun": _DELETE,
        OPERATIONS_SERVICE + "ListMachines": _OPERATE,
        OPERATIONS_SERVICE + "DrainWorker": _ADMIN,
        OPERATIONS_SERVICE + "ListLinks": _ADMIN,
    }
)
"""Full method name, as gRPC spells it in `:path`, to its rule."""

METHODS_OF: Mapping[Role, frozenset[str]] = MappingProxyType(
    {
        role: frozenset(method for method, rule in RPC_RULES.items() if role in rule.roles)
        for role in Role
        if role is not Role.ANONYMOUS
    }
)
"""The same table turned round, made once: what each role that a certificate can carry may call."""

UNPROVEN_METHODS: frozenset[str] = frozenset(method for method, rule in RPC_RULES.items() if not rule.takes_secret)
"""What may be called over an unproven link, which exists only where `peer.insecure` was chosen."""
