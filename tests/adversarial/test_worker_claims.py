"""The wall that protects a worker's host from what a coordinator hands over (W1, W2, W8)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dispatch.model import BundleRef, Claim, ClaimToken, Operation, Owner
from secure_dagu.errors import InvalidRequest
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.worker.checks import check_claim
from tests.worker.fakes import OWNER, W1, FakeCoordinator, FakeRunner, make_task, make_worker, working

SOUND = Claim(task=make_task(), worker=W1, token=ClaimToken("t"), owner=OWNER)
CLIMBS = "../../../x"
BUNDLE = BundleRef(digest="a" * 64, size_bytes=1, dag_path="sub/demo.yaml")


def claim(**changes: Any) -> Claim:
    return replace(SOUND, task=replace(SOUND.task, **changes))


def test_a_sound_claim_passes() -> None:
    check_claim(SOUND)
    check_claim(claim(bundle=BUNDLE, definition=""))
    check_claim(claim(operation=Operation.RETRY, previous_status="{}"))
    check_claim(claim(root=DagRunRef("root", "r0"), parent=DagRunRef("root", "r0")))
    check_claim(replace(claim(attempt_id=AttemptId(""), attempt_key=AttemptKey("")), token=ClaimToken(""), owner=None))


@pytest.mark.parametrize(
    "bad",
    [
        claim(run=DagRunRef("demo", CLIMBS), root=DagRunRef("demo", CLIMBS)),
        claim(run=DagRunRef("demo", ""), root=DagRunRef("demo", "")),
        claim(run=DagRunRef("demo", "x" * 65), root=DagRunRef("demo", "x" * 65)),
        claim(run=DagRunRef("demo", "a\n"), root=DagRunRef("demo", "a\n")),
        claim(run=DagRunRef("..", "r1"), root=DagRunRef("..", "r1")),
        claim(run=DagRunRef("a/b", "r1"), root=DagRunRef("a/b", "r1")),
        claim(run=DagRunRef("x" * 41, "r1"), root=DagRunRef("x" * 41, "r1")),
        claim(root=DagRunRef("other", "r9")),
        claim(parent=DagRunRef("p", CLIMBS)),
        claim(attempt_id=AttemptId(CLIMBS)),
        claim(attempt_id=AttemptId("x" * 129)),
        claim(attempt_key=AttemptKey("k\x1b[31m")),
        claim(operation=Operation.UNSPECIFIED),
        claim(operation=Operation.RETRY),
        claim(definition=""),
        claim(definition="x" * (4 * 2**20 + 1)),
        replace(SOUND, owner=None),
        replace(SOUND, token=ClaimToken("t\n")),
        replace(SOUND, owner=Owner("c", "", 50055)),
        replace(SOUND, owner=Owner("c", "host", 0)),
        replace(SOUND, owner=Owner("c", "host", 65536)),
        claim(bundle=replace(BUNDLE, digest=CLIMBS)),
        claim(bundle=replace(BUNDLE, digest="A" * 64)),
        claim(bundle=replace(BUNDLE, size_bytes=0)),
        claim(bundle=replace(BUNDLE, size_bytes=64 * 2**20 + 1)),
        claim(bundle=replace(BUNDLE, dag_path="/etc/passwd")),
        claim(bundle=replace(BUNDLE, dag_path="a/../../b")),
        claim(bundle=replace(BUNDLE, dag_path="")),
        claim(bundle=replace(BUNDLE, dag_path="a\0b")),
    ],
)
def test_a_malformed_claim_is_refused(bad: Claim) -> None:
    with pytest.raises(InvalidRequest):
        check_claim(bad)


@given(st.text(max_size=70), st.text(max_size=140))
def test_ids_that_pass_can_be_file_names(run_id: str, attempt_id: str) -> None:
    run = DagRunRef("demo", run_id)
    try:
        check_claim(claim(run=run, root=run, attempt_id=AttemptId(attempt_id)))
    except InvalidRequest:
        return
    root = Path("/srv/root")
    assert (root / run_id).parent == root
    assert run_id not in ("", ".", "..")
    assert run_id.isascii()
    assert attempt_id == "" or (root / attempt_id).parent == root


async def test_a_claim_that_climbs_touches_nothing(tmp_path: Path) -> None:
    coordinator = FakeCoordinator()
    runner = FakeRunner(tmp_path / "inside" / "root")
    async with working(make_worker(runner, coordinator)):
        run = DagRunRef("demo", "../../../outside")
        coordinator.offer(make_task(run=run, root=run), token="t")
        coordinator.offer(make_task("r2"))
        await coordinator.until_ended("r2")
    assert coordinator.acknowledged == ["token-r2"], "a refused task is not acknowledged either"
    assert os.listdir(tmp_path) == ["inside"]
