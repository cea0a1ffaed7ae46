"""Every cell of role × RPC: the table of the threat model, written out a second time, against the one that is enforced.

The rows come from the service descriptors, so a method that is added without a decision fails here.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import Refused
from secure_dagu.security.admission import Allow, Deny, DenyReason, admit
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.roles import RPC_RULES, ObjectRule
from secure_dagu.wire.pb import extensions_pb2

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
ROLES = (Role.WORKER, Role.DISPATCHER, Role.COORDINATOR, Role.ADMIN, Role.METRICS)

# worker dispatcher coordinator admin metrics
EXPECTED = """
coordinator.v1.CoordinatorService/Poll                         + - - - -  own-id
coordinator.v1.CoordinatorService/Heartbeat                    + - - - -  own-id
coordinator.v1.CoordinatorService/RunHeartbeat                 + - - - -  own-id
coordinator.v1.CoordinatorService/AckTaskClaim                 + - - - -  own-id
coordinator.v1.CoordinatorService/ClaimAgentSessionCleanup     + - - - -  own-id
coordinator.v1.CoordinatorService/CompleteAgentSessionCleanup  + - - - -  own-id
coordinator.v1.CoordinatorService/ReportStatus                 + - - - -  held-lease
coordinator.v1.CoordinatorService/StreamLogs                   + - - - -  held-lease
coordinator.v1.CoordinatorService/StreamArtifacts              + - - - -  held-lease
coordinator.v1.CoordinatorService/ResolveSecretReference       + - - - -  held-lease
coordinator.v1.CoordinatorService/Dispatch                     + + + + -  held-tree
coordinator.v1.CoordinatorService/GetDAGRunStatus              + + + + -  held-tree
coordinator.v1.CoordinatorService/RequestCancel                + + + + -  held-tree
coordinator.v1.CoordinatorService/GetDAG                       + + + + -  held-tree
coordinator.v1.CoordinatorService/GetState                     + + + + -  held-tree
coordinator.v1.CoordinatorService/PutState                     + + + + -  held-tree
coordinator.v1.CoordinatorService/DeleteState                  + + + + -  held-tree
coordinator.v1.CoordinatorService/ListState                    + + + + -  held-tree
coordinator.v1.CoordinatorService/HasWorkspaceBundle           + + + + -  held-tree
coordinator.v1.CoordinatorService/GetWorkspaceBundle           + + + + -  held-tree
coordinator.v1.CoordinatorService/PutWorkspaceBundle           - + + + -  none
coordinator.v1.CoordinatorService/GetWorkers                   - + + + -  none
grpc.health.v1.Health/Check                                    + + + + -  none
grpc.health.v1.Health/Watch                                    + + + + -  none
secure_dagu.v1.WorkerEvents/WatchCancellations                 + - - - -  own-id
secure_dagu.v1.WorkerEvents/Announce                           + - - - -  own-id
secure_dagu.v1.Operations/ListMachines                         - + - + -  none
secure_dagu.v1.Operations/DrainWorker                          - - - + -  none
secure_dagu.v1.Operations/ListLinks                            - - - + -  none
secure_dagu.v1.Operations/ListRuns                             - + - + -  none
secure_dagu.v1.Operations/FindRuns                             - + - + -  none
secure_dagu.v1.Operations/CountRuns                            - - - + -  none
secure_dagu.v1.Operations/FollowRun                            - + - + -  none
secure_dagu.v1.Operations/ReadLog                              - + - + -  none
secure_dagu.v1.Operations/ReadLogPage                          - + - + -  none
secure_dagu.v1.Operations/ListArtifacts                        - + - + -  none
secure_dagu.v1.Operations/ReadArtifact                         - + - + -  none
secure_dagu.v1.Operations/DeleteRun                            - - + + -  none
"""
TABLE = {f"/{words[0]}": (words[1:6], words[6]) for words in map(str.split, EXPECTED.strip().splitlines())}


def described_methods() -> set[str]:
    def of(file: FileDescriptor) -> set[str]:
        return {
            f"/{service.full_name}/{method.name}"
            for service in file.services_by_name.values()
            for method in service.methods
        }

    contract = json.loads((Path(__file__).parents[1] / "data/coordinator.v1.fields.json").read_text())
    published = {method["path"] for methods in contract["services"].values() for method in methods.values()}
    health = {path for path in of(health_pb2.DESCRIPTOR) if path.endswith(("/Check", "/Watch"))}
    return published | of(extensions_pb2.DESCRIPTOR) | health


def a_peer(role: Role, name: str = "n1") -> Peer:
    identity = Identity("secure-dagu", role, name)
    return Peer(connection="c", address="127.0.0.1:1", identity=identity, not_after=NOW + timedelta(days=1))


def test_every_described_method_has_a_row_and_no_row_is_for_nothing() -> None:
    assert set(RPC_RULES) == described_methods() == set(TABLE)


@pytest.mark.parametrize("role", ROLES)
def test_every_cell_of_the_role_table_is_as_the_threat_model_says(role: Role) -> None:
    for method, (cells, _) in TABLE.items():
        decided = admit(a_peer(role), method, "n1", NOW)
        if cells[ROLES.index(role)] == "+":
            assert isinstance(decided, Allow), (role, method)
            assert (decided.caller.role, decided.caller.name, decided.caller.proven) == (role, "n1", True)
        else:
            assert isinstance(decided, Deny), (role, method)
            assert decided.reason is DenyReason.ROLE_NOT_ALLOWED
            assert isinstance(decided.error, Refused)


def test_the_object_rules_are_those_of_the_threat_model() -> None:
    assert {method: rule.object_rule for method, rule in RPC_RULES.items()} == {
        method: ObjectRule(word) for method, (_, word) in TABLE.items()
    }


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/grpc.health.v1.Health/List",
        "/coordinator.v1.CoordinatorService/poll",
        "/coordinator.v1.CoordinatorService/Poll/",
        "coordinator.v1.CoordinatorService/Poll",
        "/coordinator.v2.CoordinatorService/Poll",
        "",
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_a_method_outside_the_table_is_refused_to_everybody(role: Role, method: str) -> None:
    decided = admit(a_peer(role), method, None, NOW)
    assert isinstance(decided, Deny)
    assert decided.reason is DenyReason.ROLE_NOT_ALLOWED


def test_an_unproven_link_may_do_everything_but_read_secrets() -> None:
    peer = Peer(connection="c", address="127.0.0.1:1")
    refused = {method for method in TABLE if isinstance(admit(peer, method, "n1", NOW), Deny)}
    assert refused == {"/coordinator.v1.CoordinatorService/ResolveSecretReference"}
    assert isinstance(admit(peer, "/grpc.channelz.v1.Channelz/GetServers", None, NOW), Deny)
