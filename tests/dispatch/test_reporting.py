"""Is a report to be believed: sentences of protocol section 3.9, walked with any combination of facts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.model import WorkerId
from secure_dagu.dispatch.reporting import Accept, Held, Refuse, Reported, Stored, decide
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef, RunStatus, attempt_key

ROOT, OTHER, CHILD = DagRunRef("sales", "r1"), DagRunRef("sales", "r2"), DagRunRef("load", "c1")
IDS = ("a1", "a2", "c1")
KEYS = tuple(
    attempt_key(root=ROOT, run=run, attempt_id=AttemptId(attempt_id)) for run in (ROOT, CHILD) for attempt_id in IDS
)
workers = st.sampled_from(("w1", "w2"))
runs = st.sampled_from((ROOT, OTHER, CHILD))
ids = st.sampled_from(IDS).map(AttemptId)
keys = st.sampled_from((*KEYS, AttemptKey("")))
reports = st.builds(
    Reported, worker=workers.map(WorkerId), run=runs, root=st.sampled_from((ROOT, OTHER)), attempt_id=ids,
    attempt_key=keys, claim_key=keys, status=st.integers(-1, 10), named_worker=st.sampled_from(("", "w1", "w2")),
)  # fmt: skip
holds = st.builds(
    Held, key=st.sampled_from(KEYS), run=st.sampled_from((ROOT, CHILD)), root=st.just(ROOT), attempt_id=ids,
    worker=workers.map(WorkerId), is_fresh=st.booleans(),
)  # fmt: skip
stored_rows = st.builds(
    Stored, key=st.sampled_from(KEYS), attempt_id=ids, claim_key=st.sampled_from(KEYS),
    status=st.sampled_from(RunStatus), worker=workers, has_live_claim=st.booleans(),
)  # fmt: skip


@given(reports, st.none() | holds, st.none() | stored_rows)
@settings(max_examples=2_000)
def test_whatever_is_written_was_said_by_the_holder_of_a_fresh_lease(
    report: Reported, held: Held | None, stored: Stored | None
) -> None:
    decision = decide(report, held, stored)
    if isinstance(decision, Refuse):
        assert decision.error.startswith("stale attempt: ")
        return
    if decision is Accept.REPEAT:
        assert stored is not None
        assert stored.status.is_terminal
        assert report.status == stored.status
        return
    assert held is not None
    assert held.is_fresh
    assert held.worker == report.worker
    assert report.root == held.root
    assert report.named_worker in ("", report.worker)
    if stored is not None and stored.claim_key == held.key:
        assert not stored.status.is_success, "a success is never overwritten"
        assert stored.attempt_id == report.attempt_id
    if report.run == held.run:
        assert report.attempt_id == held.attempt_id
    if decision is Accept.CREATE:
        assert report.attempt_id == report.run.run_id
        assert report.run not in (held.run, held.root)
