"""Everything that a caller can do leaves its event, and what must be recorded first does not happen without."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from secure_dagu.audit.events import MEANINGS, Action, Outcome
from secure_dagu.audit.methods import ACTION_OF
from secure_dagu.coordinator.service import Options
from secure_dagu.dispatch.model import (
    ArtifactPart,
    BundleRef,
    Caller,
    Claim,
    LogStream,
    Role,
    SecretRequest,
    StateRef,
    StateSource,
    WorkerId,
)
from secure_dagu.dispatch.operating import RunFilter, Window
from secure_dagu.errors import Refused, Unavailable
from secure_dagu.run.model import DagRunRef
from tests.coordinator.harness import (
    DEFINITION,
    DISPATCHER,
    House,
    ManualClock,
    Place,
    Witness,
    a_document,
    a_task,
    each,
    identity_of,
    log_part,
)

W1 = Caller(
    role=Role.WORKER, name="w1", proven=True, worker=WorkerId("w1"), identity="spiffe://secure-dagu/worker/w1",
    serial="1f2e", address="192.0.2.7:40000",
)  # fmt: skip
RUN = DagRunRef("sales", "r1")
OVER = DagRunRef("sales", "r0")
REF = StateRef("global", "_", "k")
BY = StateSource()
SECRET = "secrets:\n  - name: TOKEN\n    ref: api/token\n" + DEFINITION
CANARY = "hunter2-canary"
DATA = b"bundle"
BUNDLE = BundleRef(hashlib.sha256(DATA).hexdigest(), len(DATA), "a.yaml")
ARCHIVE = "/w/dag-run_20260102_030405Z_r1"


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def place(tmp_path: Path, witness: Witness) -> Place:
    secret = tmp_path / "secrets" / ".global" / "api" / "token"
    secret.parent.mkdir(parents=True)
    secret.write_text(CANARY)
    secret.chmod(0o600)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "sales.yaml").write_text(DEFINITION)
    return Place(tmp_path, ManualClock(), Options(secrets_dir=tmp_path / "secrets"), witness)


Call = Callable[[House, Claim], Awaitable[object]]


def asks(claim: Claim) -> SecretRequest:
    task = claim.task
    return SecretRequest(
        name="TOKEN", ref="api/token", workspace="", check_only=False, attempt_key=task.attempt_key,
        attempt_id=task.attempt_id,
    )  # fmt: skip


async def drain(house: House, claim: Claim, *, follow: bool) -> None:
    reports = house.service.reports
    if follow:
        async for _ in reports.follow(DISPATCHER, run=RUN, with_logs=True):
            return
    await house.upload(W1, claim, log_part(b"x"))
    async for _ in reports.read_log(DISPATCHER, run=RUN, step="one", stream=LogStream.STDOUT, offset=0):
        pass


async def page(house: House, claim: Claim) -> None:
    await house.upload(W1, claim, log_part(b"x"))
    await house.service.reports.log_page(DISPATCHER, run=RUN, step="one", stream=LogStream.STDOUT, window=Window())


async def artifact(house: House, claim: Claim, *, read: bool) -> None:
    await house.report(W1, claim, 1, archiveDir=ARCHIVE)
    reports = house.service.reports
    piece = ArtifactPart(path="a", data=b"x", is_final=True)
    await reports.stream_artifacts(W1, identity_of(W1, claim), each(piece))
    if read:
        async for _ in reports.read_artifact(DISPATCHER, run=RUN, path="a"):
            pass


async def get_bundle(house: House) -> None:
    await house.service.bundles.put(DISPATCHER, BUNDLE, each(DATA))
    async for _ in house.service.bundles.get(DISPATCHER, BUNDLE.digest):
        pass


def put_state(house: House) -> Awaitable[object]:
    return house.service.state.put_state(DISPATCHER, REF, b"1", expected_version=None, create_only=False, updated_by=BY)


async def claim_another(house: House) -> None:
    await house.service.desk.dispatch(DISPATCHER, a_task("r2"))
    await house.take(W1)


CALLS: dict[str, Call] = {
    "AckTaskClaim": lambda house, _: claim_another(house),
    "ReportStatus": lambda house, claim: house.report(W1, claim, 4),
    "StreamLogs": lambda house, claim: house.upload(W1, claim, log_part(b"x")),
    "StreamArtifacts": lambda house, claim: artifact(house, claim, read=False),
    "ResolveSecretReference": lambda house, claim: house.service.state.resolve_secret(W1, asks(claim)),
    "Dispatch": lambda house, _: house.service.desk.dispatch(DISPATCHER, a_task("r3")),
    "GetDAGRunStatus": lambda house, _: house.service.reports.run_status(DISPATCHER, run=RUN, root=None),
    "RequestCancel": lambda house, _: house.service.desk.cancel(DISPATCHER, run=RUN, root=None),
    "GetDAG": lambda house, _: house.service.state.dag_text(DISPATCHER, "sales"),
    "GetState": lambda house, _: house.service.state.get_state(DISPATCHER, REF),
    "PutState": lambda house, _: put_state(house),
    "DeleteState": lambda house, _: house.service.state.delete_state(DISPATCHER, REF),
    "ListState": lambda house, _: house.service.state.list_state(
        DISPATCHER, scope="global", namespace="_", prefix="", limit=0
    ),
    "HasWorkspaceBundle": lambda house, _: house.service.bundles.has(DISPATCHER, BUNDLE.digest),
    "GetWorkspaceBundle": lambda house, _: get_bundle(house),
    "PutWorkspaceBundle": lambda house, _: house.service.bundles.put(DISPATCHER, BUNDLE, each(DATA)),
    "GetWorkers": lambda house, _: house.service.desk.workers(DISPATCHER),
    "ListMachines": lambda house, _: house.service.machines.fleet(DISPATCHER),
    "ListLinks": lambda house, _: house.service.machines.links(DISPATCHER),
    "DrainWorker": lambda house, _: house.service.machines.drain(DISPATCHER, worker=WorkerId("w1"), draining=True),
    "FindRuns": lambda house, _: house.service.reports.find_runs(DISPATCHER, RunFilter(), limit=1, before=None),
    "CountRuns": lambda house, _: house.service.reports.count_runs(DISPATCHER, since=datetime.now(UTC), until=None),
    "ListRuns": lambda house, _: house.service.reports.runs(DISPATCHER, name=None, run_id=None, limit=0),
    "FollowRun": lambda house, claim: drain(house, claim, follow=True),
    "ReadLog": lambda house, claim: drain(house, claim, follow=False),
    "ReadLogPage": lambda house, claim: page(house, claim),
    "ListArtifacts": lambda house, _: house.service.reports.artifacts(DISPATCHER, run=RUN),
    "ReadArtifact": lambda house, claim: artifact(house, claim, read=True),
    "DeleteRun": lambda house, _: house.service.deleting.delete_run(DISPATCHER, run=OVER),
}
METHODS = sorted(method for method, action in ACTION_OF.items() if action is not Action.LINK_OPENED)


def test_every_method_with_an_event_of_its_own_is_called_here() -> None:
    assert {method.rpartition("/")[2] for method in METHODS} == set(CALLS)


async def test_what_a_process_asks_itself_for_its_pages_is_one_event_and_what_others_ask_names_the_dag(
    place: Place, witness: Witness
) -> None:
    own = Caller(role=Role.ADMIN, name="start-all", proven=True)
    async with place.coordinator() as house, asyncio.timeout(60):
        for caller in (own, W1, replace(W1, identity="", serial="", proven=False)):
            await house.service.reports.find_runs(caller, RunFilter(name="sales"), limit=1, before=None)
        assert [event.target for event in witness.noted] == ["run:*/*", "run:sales/*", "run:sales/*"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_leaves_the_event_of_the_table(place: Place, witness: Witness, method: str) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.report(W1, await house.started(W1, OVER.run_id), 4)
        claim = await house.started(W1, definition=SECRET)
        witness.recorded.clear()
        witness.noted.clear()
        await CALLS[method.rpartition("/")[2]](house, claim)
    action = ACTION_OF[method]
    events = witness.recorded if MEANINGS[action].durable else witness.noted
    assert [event.outcome for event in events if event.action is action] == [Outcome.SUCCEEDED]
    assert CANARY not in repr([*witness.recorded, *witness.noted])


DURABLE = sorted(method for method in METHODS if MEANINGS[ACTION_OF[method]].durable)


@pytest.mark.parametrize("method", DURABLE)
async def test_what_cannot_be_recorded_does_not_happen(place: Place, witness: Witness, method: str) -> None:
    name = method.rpartition("/")[2]
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.report(W1, await house.started(W1, OVER.run_id), 4)
        claim = await house.started(W1, definition=SECRET)
        offered: Claim | None = None
        if name == "AckTaskClaim":
            await house.service.desk.dispatch(DISPATCHER, a_task("r2"))
            offered = await house.poll(W1)
        before = json.dumps(await house.document(RUN))
        witness.refuses = True
        with pytest.raises(Unavailable, match="audit log"):
            await (house.acknowledge(W1, offered) if offered else CALLS[name](house, claim))
        witness.refuses = False
        assert json.dumps(await house.document(RUN)) == before
        assert await house.document(OVER)
        assert await house.service.state.get_state(DISPATCHER, REF) is None
        assert not await house.service.bundles.has(DISPATCHER, BUNDLE.digest)
        assert await house.service.reports.run_status(DISPATCHER, run=DagRunRef("sales", "r3"), root=None) is None
        if offered:  # the offer stands: the worker may try again
            assert (await house.acknowledge(W1, offered)).accepted


async def test_an_event_names_who_with_which_certificate_and_from_where(place: Place, witness: Witness) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
    (claimed,) = (event for event in witness.recorded if event.action is Action.TASK_CLAIMED)
    assert (claimed.actor, claimed.serial, claimed.address) == (W1.identity, "1f2e", "192.0.2.7:40000")
    assert claimed.target == "run:sales/r1"


async def test_refusals_of_the_services_are_recorded(place: Place, witness: Witness) -> None:
    other = replace(W1, name="w2", worker=WorkerId("w2"), identity="spiffe://secure-dagu/worker/w2")
    async with place.coordinator() as house, asyncio.timeout(60):
        claim = await house.started(W1, definition=SECRET)
        with pytest.raises(Refused):
            await house.service.state.resolve_secret(other, asks(claim))
        captured = json.dumps(a_document(W1, claim, 4))
        await house.service.reports.report_status(other, status=captured, source_file="", labels="")
        await house.acknowledge(other, claim)
    denied = {event.action: event for event in witness.noted if event.outcome is Outcome.DENIED}
    assert set(denied) == {Action.SECRET_READ, Action.REPORT_REFUSED, Action.TASK_CLAIMED}
    assert {event.actor for event in denied.values()} == {other.identity}


async def test_a_lease_that_ran_out_is_recorded(place: Place, witness: Witness) -> None:
    async with place.coordinator() as house, asyncio.timeout(60):
        await house.started(W1)
        await house.pass_time(60)
    released = [event for event in witness.noted if event.action is Action.TASK_RELEASED]
    assert [(event.target, event.reason) for event in released] == [("run:sales/r1", "lease_expired")]
