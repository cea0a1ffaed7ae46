"""The store over real SQLite files: compare-and-set, durability, lookups, growth."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import Pool, create_engine, event, inspect, text

from secure_dagu.dispatch.model import StateRef, StateSource
from secure_dagu.errors import Conflict, IntegrityViolation, Unavailable
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.store.api import AttemptRow, BundleRow, NewAttempt, Report
from secure_dagu.store.migrate import upgrade
from secure_dagu.store.sql import SqlStore, open_store
from secure_dagu.store.tables import metadata

ROOT = DagRunRef("sales", "r1")


def attempt(
    key: str = "k1", *, run: DagRunRef = ROOT, root: DagRunRef | None = None, created_at: int = 1
) -> AttemptRow:
    root = root or run
    return AttemptRow(
        key=AttemptKey(key),
        attempt_id=AttemptId(f"a-{key}"),
        run=run,
        root=root,
        parent=None if root == run else root,
        claim_key=AttemptKey(key),
        status=0,
        worker="",
        archive="",
        labels=("team=a",),
        error="",
        created_at=created_at,
        started_at=0,
        finished_at=0,
        revision=1,
    )


def a_report(key: str, revision: int, *, status: int = 1, ends_task: bool = False) -> Report:
    return Report(
        key=AttemptKey(key),
        revision=revision,
        document=f'{{"status":{status}}}',
        claim_key=AttemptKey(key),
        status=status,
        worker="w1",
        archive="",
        error="",
        started_at=5,
        finished_at=0,
        ends_task=ends_task,
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    async with open_store(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


async def test_an_attempt_is_found_by_run_by_key_and_by_name(store: SqlStore) -> None:
    await store.add_attempt(NewAttempt(row=attempt(), document="{}", body="{}", place=1))
    child = DagRunRef("load", "c1")
    await store.add_attempt(NewAttempt(row=attempt("k2", run=child, root=ROOT), document='{"c":1}'))
    assert await store.latest(run=ROOT, root=ROOT) == attempt()
    assert await store.attempt(AttemptKey("k1")) == attempt()
    assert await store.latest(run=DagRunRef("whatever", "c1"), root=ROOT) == attempt("k2", run=child, root=ROOT)
    assert await store.find(child) == attempt("k2", run=child, root=ROOT)
    assert await store.latest(run=child, root=child) is None
    assert await store.document(AttemptKey("k2")) == '{"c":1}'
    assert await store.has_attempt_id(root=ROOT, attempt_id=AttemptId("a-k2"))
    assert not await store.has_attempt_id(root=child, attempt_id=AttemptId("a-k2"))
    assert [row.run for row in await store.roots(name=None, run_id=None, limit=10)] == [ROOT]


async def test_the_second_of_two_first_attempts_is_refused(store: SqlStore) -> None:
    await store.add_attempt(NewAttempt(row=attempt("k1"), document="{}", body="{}", place=1))
    with pytest.raises(Conflict):
        await store.add_attempt(NewAttempt(row=attempt("k2"), document="{}", body="{}", place=2))
    assert [row.key for row in await store.tasks()] == ["k1"]


async def test_a_retry_supersedes_the_attempt_it_has_seen_and_no_other(store: SqlStore) -> None:
    await store.add_attempt(NewAttempt(row=attempt("k1"), document="{}"))
    await store.add_attempt(NewAttempt(row=attempt("k2"), document="{}", supersedes=AttemptKey("k1")))
    with pytest.raises(Conflict):
        await store.add_attempt(NewAttempt(row=attempt("k3"), document="{}", supersedes=AttemptKey("k1")))
    latest = await store.latest(run=ROOT, root=ROOT)
    assert latest is not None
    assert latest.key == "k2"


async def test_a_report_decided_on_an_old_revision_is_refused(store: SqlStore) -> None:
    await store.add_attempt(NewAttempt(row=attempt(), document="{}", body="{}", place=1))
    await store.report(a_report("k1", 1))
    with pytest.raises(Conflict):
        await store.report(a_report("k1", 1, status=4, ends_task=True))
    assert len(await store.tasks()) == 1
    await store.report(a_report("k1", 2, status=4, ends_task=True))
    assert await store.tasks() == []
    assert await store.document(AttemptKey("k1")) == '{"status":4}'


async def test_a_failing_write_takes_no_other_write_of_its_batch_with_it(store: SqlStore) -> None:
    """Group commit: fifty writes queued at once, every second one impossible."""
    await store.add_attempt(NewAttempt(row=attempt(), document="{}"))
    outcomes: list[str] = []

    async def write(number: int) -> None:
        try:
            if number % 2:
                await store.report(a_report("nobody", 1))
            else:
                row = attempt(f"n{number}", run=DagRunRef("sales", f"n{number}"))
                await store.add_attempt(NewAttempt(row=row, document="{}"))
            outcomes.append("written")
        except Conflict:
            outcomes.append("refused")

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(write(number))
    assert sorted(outcomes) == ["refused"] * 25 + ["written"] * 25
    assert len(await store.roots(name=None, run_id=None, limit=100)) == 26


async def test_a_lease_needs_the_revision_that_was_offered(store: SqlStore) -> None:
    await store.add_attempt(NewAttempt(row=attempt(), document="{}", body='{"b":1}', place=1))
    await store.lease(AttemptKey("k1"), revision=1, worker="w1", token="t")
    with pytest.raises(Conflict):
        await store.lease(AttemptKey("k1"), revision=1, worker="w2", token="t2")
    await store.mark_cancelling(AttemptKey("k1"))
    (row,) = await store.tasks()
    assert (row.leased, row.worker, row.token, row.cancelling, row.body) == (True, "w1", "t", True, "")
    assert await store.task_body(AttemptKey("k1")) == '{"b":1}'


async def test_state_versions_count_and_conditions_hold(store: SqlStore) -> None:
    ref = StateRef("dag", "sales", "a/b")
    by = StateSource(dag_name="sales")

    async def put(value: bytes, expected: int | None = None, *, create_only: bool = False) -> int | None:
        entry = await store.put_state(ref, value, expected_version=expected, create_only=create_only, by=by, now_ns=7)
        return None if entry is None else entry.version

    assert await put(b"1", 3) is None
    assert await put(b"1", 0) == 1
    assert await put(b"2", create_only=True) is None
    assert await put(b"2") == 2
    assert await put(b"3", 1) is None
    entry = await store.state(ref)
    assert entry is not None
    assert (entry.value, entry.version, entry.updated_by) == (b"2", 2, by)
    other = StateRef("dag", "sales", "a%c")
    await store.put_state(other, b"0", expected_version=None, create_only=False, by=by, now_ns=8)
    listed = await store.list_state(scope="dag", namespace="sales", prefix="a%", limit=0)
    assert [e.ref.key for e in listed] == ["a%c"], "a prefix is text, not a pattern"
    assert await store.delete_state(ref)
    assert not await store.delete_state(ref)


async def test_bundles_are_counted_once(store: SqlStore) -> None:
    for _ in range(2):
        await store.add_bundle(BundleRow(digest="d" * 64, size_bytes=5, stored_at=1))
    assert await store.bundle_bytes() == 5


async def test_reports_do_not_make_the_store_grow(store: SqlStore, tmp_path: Path) -> None:
    await store.add_attempt(NewAttempt(row=attempt(), document="{}"))
    for revision in range(1, 300):
        await store.report(replace(a_report("k1", revision), document="x" * 60_000))
    assert sum(path.stat().st_size for path in tmp_path.glob("store.db*")) < 10_000_000  # noqa: ASYNC240


async def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    async with open_store(url):
        pass
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(IntegrityViolation):
        async with open_store(url):
            pass


async def test_a_store_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(Unavailable):
        async with open_store(f"sqlite:///{tmp_path}/store.db"):
            pass


async def test_the_store_file_is_for_its_owner_only(store: SqlStore, tmp_path: Path) -> None:
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    migrated, made = (create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("migrated", "made"))
    upgrade(migrated)
    metadata.create_all(made)
    shapes = []
    for engine in (migrated, made):
        found = inspect(engine)
        shapes.append(
            {
                table: (
                    [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)],
                    found.get_pk_constraint(table)["constrained_columns"],
                    sorted((str(i["name"]), tuple(i["column_names"])) for i in found.get_indexes(table)),
                    sorted(tuple(u["column_names"]) for u in found.get_unique_constraints(table)),
                    [f["referred_table"] for f in found.get_foreign_keys(table)],
                )
                for table in found.get_table_names()
                if table != "alembic_version"
            }
        )
        engine.dispose()
    assert shapes[0] == shapes[1]


_CHILD = """
import asyncio, sys
from tests.store.test_store import attempt
from secure_dagu.run.model import DagRunRef
from secure_dagu.store.api import NewAttempt
from secure_dagu.store.sql import open_store

async def main():
    async with open_store(sys.argv[1]) as store:
        for number in range(1_000_000):
            row = attempt(f"k{number}", run=DagRunRef("sales", f"r{number}"))
            await store.add_attempt(NewAttempt(row=row, document="{}", body="{}", place=number))
            print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    child = subprocess.Popen([sys.executable, "-c", _CHILD, url], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert child.stdout is not None
    acknowledged = -1
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged == 200:
            child.send_signal(signal.SIGKILL)
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    async with open_store(url) as store:
        assert len(await store.tasks()) >= acknowledged + 1 > 200


async def test_a_dispatch_costs_the_same_after_many_past_runs(store: SqlStore) -> None:
    """Counted in rows that SQLite visits, which does not depend on this machine's load: every lookup uses an index."""
    from secure_dagu.store import sql  # the queries themselves are what is judged here
    from secure_dagu.store.driver import Statement

    statements = (
        sql._GET_ROOT, sql._GET_CHILD, sql._GET_ATTEMPT, sql._FIND, sql._FIND_RUN, sql._HAS_ATTEMPT_ID, sql._UNDER,
        sql._GET_BODY, sql._GET_DOCUMENT, Statement(sql._ROOTS),
    )  # fmt: skip
    for statement in statements:
        text = str(statement._clause.compile(store._engine))
        values = tuple("1" for _ in range(text.count("?")))
        with store._engine.connect() as connection:
            plan = [row[3] for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text, values)]
        assert not [step for step in plan if step.startswith("SCAN")], (text, plan)


async def test_a_thousand_dispatches_are_written_in_few_transactions(tmp_path: Path) -> None:
    """What waits while one transaction is written goes into the next; bench/ measures what that is worth."""
    said: list[str] = []

    def listen(connection: sqlite3.Connection, _record: object) -> None:
        connection.set_trace_callback(said.append)

    event.listen(Pool, "connect", listen)
    try:
        async with open_store(f"sqlite:///{tmp_path}/store.db") as store, asyncio.TaskGroup() as group:
            for number in range(1000):
                row = attempt(f"k{number}", run=DagRunRef("sales", f"r{number}"))
                new = NewAttempt(row=row, document="{}", body="{}", place=number)
                group.create_task(store.add_attempt(new))
    finally:
        event.remove(Pool, "connect", listen)
    assert len([text for text in said if "INTO attempts" in text]) >= 1000
    assert 1 <= said.count("COMMIT") < 100  # measured: 5
