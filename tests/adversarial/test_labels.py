"""A worker claims labels that its certificate does not grant, to get another pool's or tenant's tasks (threat T03)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from secure_dagu.dispatch.model import Role, WorkerId
from secure_dagu.errors import NoAuthorisedWorker
from secure_dagu.security.grants import TENANT
from secure_dagu.security.policy import Mode, Policy, UngrantedLabels
from secure_dagu.security.roles import COORDINATOR_SERVICE
from secure_dagu.wire.pb import coordinator_pb2 as pb
from tests.adversarial.fortress import Answer, Fortress, call, fortress
from tests.coordinator.harness import DISPATCHER, a_task, worker

POLL, HEARTBEAT = COORDINATOR_SERVICE + "Poll", COORDINATOR_SERVICE + "Heartbeat"
REFUSED = grpc.StatusCode.PERMISSION_DENIED
EMPTY = b""


async def poll(channel: grpc.aio.Channel, who: str, **labels: str) -> Answer:
    return await call(channel, POLL, pb.PollRequest(worker_id=who, poller_id="p", labels=labels).SerializeToString())


async def beat(channel: grpc.aio.Channel, who: str, labels: dict[str, str]) -> Answer:
    return await call(channel, HEARTBEAT, pb.HeartbeatRequest(worker_id=who, labels=labels).SerializeToString())


def reasons(fort: Fortress) -> list[str]:
    return [denial.reason for denial in fort.denied]


async def test_a_claimed_label_brings_nobody_anothers_task_and_the_entitled_worker_gets_it(tmp_path: Path) -> None:
    selector = {"pool": "payments"}
    async with (
        fortress(tmp_path) as fort,
        fort.caller(Role.WORKER, "thief", "pool=lab") as thief,
        fort.caller(Role.WORKER, "honest", "pool=payments,zone=eu") as honest,
    ):
        await fort.house.beat(worker("honest"), labels=selector)
        await fort.house.service.desk.dispatch(DISPATCHER, a_task(worker_selector=selector))
        for claim in (selector, {"pool": "lab", **selector}, {"pool": "lab", "zone": "eu"}):
            assert (await poll(thief, "thief", **claim)).code is REFUSED
            assert (await beat(thief, "thief", claim)).code is REFUSED
        assert set(reasons(fort)) == {"label_not_granted"}
        assert len(fort.denied) == 6
        assert "pool=payments" in fort.denied[0].error.what
        assert (await poll(thief, "thief", pool="lab")).code is grpc.StatusCode.DEADLINE_EXCEEDED  # nothing for it
        got = await poll(honest, "honest", **selector)
        assert got.code is grpc.StatusCode.OK
        assert pb.PollResponse.FromString(got.body).task.dag_run_id == "r1"


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(ungranted_labels=UngrantedLabels.ALLOW), Policy(mode=Mode.DRY_RUN)]
)
async def test_a_security_label_needs_a_grant_under_every_setting(tmp_path: Path, policy: Policy) -> None:
    async with (
        fortress(tmp_path, policy) as fort,
        fort.caller(Role.WORKER, "w1", "gpu=true") as none,
        fort.caller(Role.WORKER, "w2", f"{TENANT}=lab") as other,
        fort.caller(Role.WORKER, "w3", f"{TENANT}=payments") as granted,
    ):
        assert (await beat(none, "w1", {TENANT: "payments"})).code is REFUSED
        assert (await beat(other, "w2", {TENANT: "payments"})).code is REFUSED
        assert (await beat(none, "w1", {TENANT.upper(): "payments"})).code is REFUSED
        assert (await beat(granted, "w3", {TENANT: "payments"})).code is grpc.StatusCode.OK


async def test_ordinary_labels_follow_the_setting_whatever_else_the_certificate_grants(tmp_path: Path) -> None:
    """So that taking the last label out of a certificate can never give its holder more (threat T25)."""
    async with (
        fortress(tmp_path) as fort,
        fort.caller(Role.WORKER, "w1") as none,
        fort.caller(Role.WORKER, "w2", "gpu=true") as some,
    ):
        assert (await beat(none, "w1", {"gpu": "true"})).code is REFUSED
        assert (await beat(some, "w2", {"gpu": "false"})).code is REFUSED
        assert (await beat(some, "w2", {"gpu": "true"})).code is grpc.StatusCode.OK
        assert (await beat(none, "w1", {})).code is grpc.StatusCode.OK
        fort.gate.policy = Policy(ungranted_labels=UngrantedLabels.ALLOW)
        assert (await beat(none, "w1", {"gpu": "true"})).code is grpc.StatusCode.OK
        assert (await beat(some, "w2", {"gpu": "false"})).code is grpc.StatusCode.OK


async def test_dry_run_lets_the_new_rule_through_and_counts_it_but_enforces_identity_and_role(tmp_path: Path) -> None:
    async with fortress(tmp_path, Policy(mode=Mode.DRY_RUN)) as fort, fort.caller(Role.WORKER, "w1") as w1:
        assert (await beat(w1, "w1", {"gpu": "true"})).code is grpc.StatusCode.OK
        assert [(told.reason, told.method) for told in fort.would_deny] == [("label_not_granted", HEARTBEAT)]
        assert fort.denied == []
        assert (await beat(w1, "w2", {"gpu": "true"})).code is REFUSED
        assert (await call(w1, COORDINATOR_SERVICE + "GetWorkers", EMPTY)).code is REFUSED
        assert reasons(fort) == ["worker_id_mismatch", "role_not_allowed"]
        assert len(fort.would_deny) == 1


async def test_a_poll_that_waits_with_labels_is_judged_anew_when_the_policy_hardens(tmp_path: Path) -> None:
    request = pb.PollRequest(worker_id="w1", poller_id="p", labels={"gpu": "true"}).SerializeToString()
    async with fortress(tmp_path, Policy(mode=Mode.DRY_RUN)) as fort, fort.caller(Role.WORKER, "w1") as w1:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = w1.unary_unary(POLL)
        waiting = ask(request, timeout=20)
        waiters = fort.house.service.desk.board.waiters
        while not (fort.would_deny and len(waiters)):  # noqa: ASYNC110 - under the fortress's deadline
            await asyncio.sleep(0)
        fort.gate.policy = Policy()
        fort.wire.ask_again()
        assert await waiting == EMPTY
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(request, timeout=20)
        assert refused.value.code() is REFUSED


async def test_a_run_that_only_an_unauthorised_worker_could_take_says_so(tmp_path: Path) -> None:
    async with fortress(tmp_path) as fort:
        desk = fort.house.service.desk
        await fort.house.beat(worker("idle"))
        await fort.house.beat(worker("gpu-1"), labels={"gpu": "true"})  # from before the policy hardened
        desk.board.claim_refused(WorkerId("gpu-1"), {"gpu": "true"})
        with pytest.raises(NoAuthorisedWorker) as refused:
            await desk.dispatch(DISPATCHER, a_task(worker_selector={"gpu": "true"}))
        assert refused.value.code == "no-authorised-worker"
        assert refused.value.grpc_status == "FAILED_PRECONDITION"
        assert "gpu-1 claims gpu=true" in refused.value.why
        fort.house.place.clock.advance(601)
        await fort.house.beat(worker("idle"))
        with pytest.raises(Exception, match="no workers match") as other:
            await desk.dispatch(DISPATCHER, a_task(worker_selector={"gpu": "true"}))
        assert not isinstance(other.value, NoAuthorisedWorker), "what was long ago explains nothing"


async def test_refused_claims_are_remembered_in_bounds(tmp_path: Path) -> None:
    async with fortress(tmp_path) as fort:
        board = fort.house.service.desk.board
        for number in range(1_500):
            board.claim_refused(WorkerId(f"w{number}"), {"n": str(number)})
        assert len(board._refused) == 1_000
