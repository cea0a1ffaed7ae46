"""Every cell of role × RPC × own or foreign object, walked over real mutual TLS against a whole coordinator.

The cells come from `RPC_RULES`, so a method that is added without an own and a foreign object fails here (threats T01,
T02, T04, T05, T07).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from msgspec import Struct

from secure_dagu.dispatch.model import Caller, Claim, Role, StateRef, StateSource
from secure_dagu.run.model import DagRunRef
from secure_dagu.security.grants import TENANT
from secure_dagu.security.roles import (
    COORDINATOR_SERVICE,
    EVENTS_SERVICE,
    HEALTH_SERVICE,
    OPERATIONS_SERVICE,
    RPC_RULES,
    ObjectRule,
)
from secure_dagu.wire.pb import coordinator_pb2 as pb
from secure_dagu.wire.pb import extensions_pb2 as ext
from tests.adversarial.fortress import STREAM_UNARY, Fortress, call, fortress
from tests.coordinator.harness import DEFINITION, a_document, a_task, worker

REFUSED = grpc.StatusCode.PERMISSION_DENIED
STALE = grpc.StatusCode.FAILED_PRECONDITION
BUNDLE = b"no tar, but content-addressed all the same"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


class Held(Struct):
    """A run and who holds its lease."""

    holder: str
    claim: Claim

    @property
    def run(self) -> DagRunRef:
        return self.claim.task.run


class World(Struct):
    """What there is to reach: a run of w1, one of w2, and one of w3 in the tenant `payments`."""

    fort: Fortress
    of_w1: Held
    of_w2: Held
    of_tenant: Held


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    dags = tmp_path / "data" / "dags"
    async with fortress(tmp_path) as fort:
        dags.mkdir(parents=True, exist_ok=True)
        (dags / "hidden.yaml").write_text(DEFINITION)
        house = fort.house
        w1, w2, w3 = (worker(name) for name in ("w1", "w2", "w3"))
        first = await house.started(w1, "r1", name="sales")
        assert (await house.report(w1, first, 1, archiveDir="/tmp/w1/artifacts")).accepted  # artifacts have a place
        second = await house.started(w2, "r2", name="other")
        labels = {TENANT: "payments"}
        await house.beat(w3, labels=labels)
        admin = Caller(role=Role.ADMIN, name="root", proven=True)
        await house.service.desk.dispatch(admin, a_task("r3", name="pay", worker_selector=labels))
        third = await house.take(w3, labels)
        for held in (first, second, third):
            ref = StateRef("dag", held.task.run.name, "k")
            await house.service.state.put_state(
                admin, ref, b"1", expected_version=None, create_only=False, updated_by=StateSource()
            )
        yield World(fort, Held("w1", first), Held("w2", second), Held("w3", third))


# -- what is sent ------------------------------------------------------------------------------------------------------


def _log(who: str, held: Held, *, more: int = 0) -> list[Message]:
    task = held.claim.task
    return [
        pb.LogChunk(
            worker_id=who, dag_name=task.run.name, dag_run_id=task.run.run_id, root_dag_run_name=task.root.name,
            root_dag_run_id=task.root.run_id, attempt_id=task.attempt_id, attempt_key=task.attempt_key,
            step_name="one", stream_type=pb.LOG_STREAM_TYPE_STDOUT, data=b"x", sequence=1 + n, byte_offset=n,
            is_final=n == more,
        )
        for n in range(more + 1)
    ]  # fmt: skip


def _artifact(who: str, held: Held, *, more: int = 0) -> list[Message]:
    task = held.claim.task
    return [
        pb.ArtifactChunk(
            worker_id=who, dag_name=task.run.name, dag_run_id=task.run.run_id, root_dag_run_name=task.root.name,
            root_dag_run_id=task.root.run_id, attempt_id=task.attempt_id, attempt_key=task.attempt_key,
            relative_path="a.txt", data=b"x", sequence=1 + n, is_final=n == more,
        )
        for n in range(more + 1)
    ]  # fmt: skip


def _running(who: str, held: Held) -> pb.RunHeartbeatRequest:
    task = held.claim.task
    return pb.RunHeartbeatRequest(
        worker_id=who,
        running_tasks=[
            pb.RunningTask(
                dag_run_id=task.run.run_id, dag_name=task.run.name, started_at=1, attempt_key=task.attempt_key,
                root_dag_run_name=task.root.name, root_dag_run_id=task.root.run_id,
            )
        ],
    )  # fmt: skip


def _report(who: str, held: Held) -> pb.ReportStatusRequest:
    document = a_document(worker(who), held.claim, 1)
    return pb.ReportStatusRequest(worker_id=who, status=pb.DAGRunStatusProto(json_data=json.dumps(document)))


def _child(_who: str, held: Held) -> pb.DispatchRequest:
    task = held.claim.task
    # The parent's tenant comes along by itself; for a dispatcher the parent's root decides.
    return pb.DispatchRequest(
        task=pb.Task(
            operation=pb.OPERATION_START, target="child", dag_run_id=f"c-{task.run.run_id}", definition=DEFINITION,
            root_dag_run_name=task.root.name, root_dag_run_id=task.root.run_id, parent_dag_run_name=task.run.name,
            parent_dag_run_id=task.run.run_id,
        )
    )  # fmt: skip


def _secret(who: str, held: Held) -> pb.ResolveSecretReferenceRequest:
    task = held.claim.task
    return pb.ResolveSecretReferenceRequest(
        worker_id=who, name="TOKEN", ref="api/token", attempt_key=task.attempt_key, attempt_id=task.attempt_id
    )


def _ref(held: Held) -> pb.StateRef:
    return pb.StateRef(scope="dag", namespace=held.run.name, key="k")


Maker = Callable[[str, Held], Message | Sequence[Message]]
_C, _H, _E, _O = COORDINATOR_SERVICE, HEALTH_SERVICE, EVENTS_SERVICE, OPERATIONS_SERVICE
SENT: dict[str, Maker] = {
    _C + "Poll": lambda who, _: pb.PollRequest(worker_id=who, poller_id="p"),
    _C + "Heartbeat": lambda who, _: pb.HeartbeatRequest(worker_id=who),
    _C + "RunHeartbeat": _running,
    _C + "AckTaskClaim": lambda who, held: pb.AckTaskClaimRequest(
        worker_id=who, claim_token=held.claim.token, attempt_key=held.claim.task.attempt_key
    ),
    _C + "ClaimAgentSessionCleanup": lambda who, _: pb.ClaimAgentSessionCleanupRequest(worker_id=who),
    _C + "CompleteAgentSessionCleanup": lambda who, _: pb.CompleteAgentSessionCleanupRequest(
        worker_id=who, job_id="j", claim_token="t"
    ),
    _C + "ReportStatus": _report,
    _C + "StreamLogs": _log,
    _C + "StreamArtifacts": _artifact,
    _C + "ResolveSecretReference": _secret,
    _C + "Dispatch": _child,
    _C + "GetDAGRunStatus": lambda _, held: pb.GetDAGRunStatusRequest(
        dag_name=held.run.name, dag_run_id=held.run.run_id
    ),
    _C + "RequestCancel": lambda _, held: pb.RequestCancelRequest(dag_name=held.run.name, dag_run_id=held.run.run_id),
    _C + "GetDAG": lambda _, held: pb.GetDAGRequest(name="hidden"),
    _C + "GetState": lambda _, held: pb.GetStateRequest(ref=_ref(held)),
    _C + "PutState": lambda _, held: pb.PutStateRequest(ref=_ref(held), value=b"2"),
    _C + "DeleteState": lambda _, held: pb.DeleteStateRequest(ref=_ref(held)),
    _C + "ListState": lambda _, held: pb.ListStateRequest(scope="dag", namespace=held.run.name),
    _C + "HasWorkspaceBundle": lambda _, held: pb.HasWorkspaceBundleRequest(digest=DIGEST),
    _C + "GetWorkspaceBundle": lambda _, held: pb.GetWorkspaceBundleRequest(digest=DIGEST),
    _C + "PutWorkspaceBundle": lambda _, held: [
        pb.WorkspaceBundleChunk(
            bundle=pb.WorkspaceBundle(digest=DIGEST, size=len(BUNDLE)), data=BUNDLE, sequence=1, is_final=True
        )
    ],
    _C + "GetWorkers": lambda _, held: pb.GetWorkersRequest(),
    _H + "Check": lambda _, held: health_pb2.HealthCheckRequest(),
    _H + "Watch": lambda _, held: health_pb2.HealthCheckRequest(),
    _E + "WatchCancellations": lambda who, _: ext.WatchCancellationsRequest(worker_id=who),
    _E + "Announce": lambda who, _: ext.AnnounceRequest(worker_id=who, version="1", presence=1),
    _O + "ListMachines": lambda _, held: ext.ListMachinesRequest(),
    _O + "DrainWorker": lambda _, held: ext.DrainWorkerRequest(worker_id="nobody", draining=True),
    _O + "ListLinks": lambda _, held: ext.ListLinksRequest(),
    _O + "ListRuns": lambda _, held: ext.ListRunsRequest(),
    _O + "FindRuns": lambda _, held: ext.FindRunsRequest(),
    _O + "CountRuns": lambda _, held: ext.CountRunsRequest(),
    _O + "FollowRun": lambda _, held: ext.FollowRunRequest(dag_name=held.run.name, dag_run_id=held.run.run_id),
    _O + "ReadLog": lambda _, held: ext.ReadLogRequest(
        dag_name=held.run.name, dag_run_id=held.run.run_id, step_name="one", stream_type=1
    ),
    _O + "ReadLogPage": lambda _, held: ext.ReadLogPageRequest(
        dag_name=held.run.name, dag_run_id=held.run.run_id, step_name="one", stream_type=1
    ),
    _O + "ListArtifacts": lambda _, held: ext.ListArtifactsRequest(dag_name=held.run.name, dag_run_id=held.run.run_id),
    _O + "ReadArtifact": lambda _, held: ext.ReadArtifactRequest(
        dag_name=held.run.name, dag_run_id=held.run.run_id, path="a.txt"
    ),
    _O + "DeleteRun": lambda _, held: ext.DeleteRunRequest(dag_name=held.run.name, dag_run_id=held.run.run_id),
}
NO_OBJECT = frozenset({_C + "GetDAG", _C + "HasWorkspaceBundle", _C + "GetWorkspaceBundle"})
"""Methods whose objects no run of this world names: foreign to every worker."""
NOT_BY_TENANT = frozenset(
    {
        _C + "GetState", _C + "PutState", _C + "DeleteState", _C + "ListState", _C + "GetDAG",
        _C + "HasWorkspaceBundle", _C + "GetWorkspaceBundle", _C + "PutWorkspaceBundle", _C + "GetWorkers",
        _O + "ListRuns", _O + "FindRuns", _O + "CountRuns", _O + "ListMachines", _H + "Check", _H + "Watch",
    }
)  # fmt: skip
"""Methods that tenants do not close, or that show less instead of refusing."""


def sent(method: str, who: str, held: Held) -> list[bytes]:
    made = SENT[method](who, held)
    return [message.SerializeToString() for message in ([made] if isinstance(made, Message) else made)]


def is_let_in(code: grpc.StatusCode) -> bool:
    """Tell whether a call got past every question of rights: answered, still waiting, or wrong in another way."""
    return code not in (REFUSED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)


# -- the walk ----------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_message_to_be_tried_with() -> None:
    assert set(SENT) == set(RPC_RULES)


async def test_a_worker_reaches_its_own_objects_and_none_of_anothers(world: World) -> None:
    fort = world.fort
    async with fort.caller(Role.WORKER, "w1") as w1:
        for method, rule in RPC_RULES.items():
            own = await call(w1, method, *sent(method, "w1", world.of_w1))
            foreign_id = await call(w1, method, *sent(method, "w2", world.of_w2))
            foreign = await call(w1, method, *sent(method, "w1", world.of_w2))
            if Role.WORKER not in rule.roles:
                assert {own.code, foreign_id.code, foreign.code} == {REFUSED}, method
                continue
            if method == _C + "RequestCancel":  # it ends nothing here: later cells need the lease
                assert own.code is grpc.StatusCode.OK, own
            if method in NO_OBJECT or method == _C + "ResolveSecretReference":  # not declared, not named: nobody's
                assert own.code is REFUSED, (method, own)
            else:
                assert is_let_in(own.code), (method, own)
            match rule.object_rule:
                case ObjectRule.OWN_ID:
                    assert foreign_id.code is REFUSED, method
                case ObjectRule.HELD_LEASE:
                    assert foreign_id.code is REFUSED, method
                    assert foreign.code in (REFUSED, STALE) or b"stale attempt" in foreign.body, (method, foreign)
                case ObjectRule.HELD_TREE:
                    assert {foreign_id.code, foreign.code} == {REFUSED}, (method, foreign)
                case ObjectRule.NONE:
                    assert is_let_in(foreign.code), method
    assert (await fort.house.document(world.of_w2.run))["status"] == 0, "nothing of w2's run has changed"


@pytest.mark.parametrize("role", [Role.DISPATCHER, Role.COORDINATOR])
async def test_an_issuer_reaches_its_tenants_and_no_other(world: World, role: Role) -> None:
    async with world.fort.caller(role, "plain") as plain:
        for method, rule in RPC_RULES.items():
            own = await call(plain, method, *sent(method, "w1", world.of_w1))
            foreign = await call(plain, method, *sent(method, "w1", world.of_tenant))
            if role not in rule.roles:
                assert {own.code, foreign.code} == {REFUSED}, method
                continue
            assert is_let_in(own.code), (method, own)
            assert (foreign.code is REFUSED) == (method not in NOT_BY_TENANT), (method, foreign)
        runs = await call(plain, _O + "ListRuns", b"") if role is Role.DISPATCHER else None
        assert runs is None or (b"sales" in runs.body and b"pay" not in runs.body)
        workers = await call(plain, _C + "GetWorkers", b"")
        assert b"w1" in workers.body
        assert b"payments" not in workers.body
        assert b"w3" not in workers.body


async def test_a_dispatcher_of_the_tenant_reaches_it(world: World) -> None:
    async with world.fort.caller(Role.DISPATCHER, "pay", f"{TENANT}=payments") as pay:
        for method, rule in RPC_RULES.items():
            if Role.DISPATCHER in rule.roles:
                assert is_let_in((await call(pay, method, *sent(method, "w1", world.of_tenant))).code), method
        assert b"pay" in (await call(pay, _O + "ListRuns", b"")).body
        assert b"w3" in (await call(pay, _C + "GetWorkers", b"")).body


async def test_an_admin_reaches_everything_its_row_names(world: World) -> None:
    async with world.fort.caller(Role.ADMIN, "root") as admin:
        for method, rule in RPC_RULES.items():
            for held in (world.of_w1, world.of_tenant):
                got = await call(admin, method, *sent(method, "w1", held))
                assert is_let_in(got.code) == (Role.ADMIN in rule.roles), (method, got)


async def test_a_metrics_certificate_opens_nothing_here(world: World) -> None:
    async with world.fort.caller(Role.METRICS, "prom") as scraper:
        for method in RPC_RULES:
            assert (await call(scraper, method, *sent(method, "w1", world.of_w1))).code is REFUSED, method


async def test_every_refusal_is_told_once_with_its_reason(world: World) -> None:
    async with world.fort.caller(Role.WORKER, "w1") as w1:
        for method, message, reason in (
            (_C + "GetWorkers", pb.GetWorkersRequest(), "role_not_allowed"),
            (_C + "Heartbeat", pb.HeartbeatRequest(worker_id="w2"), "worker_id_mismatch"),
            (_C + "GetDAGRunStatus", SENT[_C + "GetDAGRunStatus"]("", world.of_w2), "not_owner"),
        ):
            before = len(world.fort.denied)
            assert isinstance(message, Message)
            assert (await call(w1, method, message.SerializeToString())).code is REFUSED
            told = world.fort.denied[before:]
            assert [(denial.method, denial.reason) for denial in told] == [(method, reason)]
            assert told[0].peer is not None
            assert str(told[0].peer.identity) == "worker/w1"


# -- streams -----------------------------------------------------------------------------------------------------------


def test_the_streams_that_carry_an_identity_are_these() -> None:
    with_identity = {method for method in RPC_RULES if method.rpartition("/")[2] in STREAM_UNARY}
    assert with_identity - {_C + "PutWorkspaceBundle"} == {_C + "StreamLogs", _C + "StreamArtifacts"}


@pytest.mark.parametrize("make", [_log, _artifact])
@pytest.mark.parametrize("at", [1, 2])
async def test_no_message_of_a_stream_may_change_whom_it_acts_as(
    world: World, make: Callable[..., list[Message]], at: int
) -> None:
    method = _C + ("StreamLogs" if make is _log else "StreamArtifacts")
    async with world.fort.caller(Role.WORKER, "w1") as w1:
        good = [message.SerializeToString() for message in make("w1", world.of_w1, more=2)]
        for stranger in (make("w2", world.of_w1, more=2), make("w2", world.of_w2, more=2)):
            mixed = [*good[:at], stranger[at].SerializeToString(), *good[at + 1 :]]
            assert (await call(w1, method, *mixed)).code is REFUSED
        other_run = [*good[:at], make("w1", world.of_w2, more=2)[at].SerializeToString(), *good[at + 1 :]]
        got = await call(w1, method, *other_run)
        assert got.code is not grpc.StatusCode.OK, "the run of a stream is constant"
