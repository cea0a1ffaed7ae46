"""Lists of a coordinator's runs: filters, pages and counts against a plain scan; how an older store gets them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import create_engine, text

from secure_dagu.dispatch.operating import RunFilter, matches
from secure_dagu.run.model import AttemptKey, DagRunRef, RunStatus
from secure_dagu.store.api import ListedRow, NewAttempt
from secure_dagu.store.narrowing import label_lines, label_patterns
from secure_dagu.store.sql import SqlStore, open_store
from tests.store.test_store import a_report, attempt

NAMES = ("etl", "etl-day", "Report_x")
LABELS = ("team=ops", "team=data", "nightly", "Tier=1", "größe=x")


@pytest.fixture
async def filled(tmp_path: Path) -> AsyncIterator[tuple[SqlStore, list[ListedRow]]]:
    chance, plain = random.Random(3), []
    async with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        for number in range(120):
            run = DagRunRef(chance.choice(NAMES), f"r{number}_{chance.choice('aB')}")
            row = replace(
                attempt(f"k{number}", run=run, created_at=1_000 * chance.randrange(1, 40)),
                status=chance.choice(list(RunStatus)), labels=tuple(chance.sample(LABELS, chance.randrange(3))),
            )  # fmt: skip
            document = {"name": run.name, "dagRunId": run.run_id, "labels": list(row.labels)}
            await store.add_attempt(NewAttempt(row=row, document=json.dumps({**document, "nodes": [1]})))
            plain.append(ListedRow(row=row, made_at=row.created_at, summary=json.dumps(document)))
        child = replace(attempt("child", run=DagRunRef("etl", "c"), root=DagRunRef("etl", "r0_a")), created_at=5)
        await store.add_attempt(NewAttempt(row=child, document="{}"))
        yield store, plain


_FILTERS = st.builds(
    RunFilter,
    name=st.sampled_from(["", "etl", "none"]), name_part=st.sampled_from(["", "ETL", "t_x", "%"]),
    run_id_part=st.sampled_from(["", "r1", "_a", "A"]),
    statuses=st.frozensets(st.sampled_from(list(RunStatus)), max_size=3),
    labels=st.lists(
        st.sampled_from(
            ["team=*", "team", "team=o?s", "!nightly", "!team=ops", "tier=1", "TIER", "größe", "t*", "n[iI]*"]
        ),
        max_size=2,
    ).map(tuple),
    since=st.sampled_from([None, datetime.fromtimestamp(10, UTC)]),
    until=st.sampled_from([None, datetime.fromtimestamp(30, UTC)]),
)  # fmt: skip


def ident(row: ListedRow) -> str:
    return f"{row.row.run.name}/{row.row.run.run_id}"


async def test_pages_hold_what_a_plain_scan_finds(filled: tuple[SqlStore, list[ListedRow]]) -> None:
    store, plain = filled

    def fits(listed: ListedRow, wanted: RunFilter) -> bool:
        row = listed.row
        return (
            (not wanted.name or row.run.name == wanted.name)
            and (not wanted.statuses or row.status in wanted.statuses)
            and (wanted.since is None or listed.made_at >= wanted.since.timestamp() * 1000)
            and (wanted.until is None or listed.made_at < wanted.until.timestamp() * 1000)
            and matches(json.loads(listed.summary), wanted)
        )

    examples: list[RunFilter] = []

    @given(wanted=_FILTERS)
    @settings(max_examples=150)
    def collect(wanted: RunFilter) -> None:
        examples.append(wanted)

    collect()
    for wanted in examples:
        found: list[str] = []
        before = None
        while True:
            page = await store.listed(wanted, limit=7, before=before)
            found += [ident(row) for row in page if matches(json.loads(row.summary), wanted)]
            if len(page) < 7:
                break
            before = page[-1].made_at, ident(page[-1])
        wanted_rows = sorted((row.made_at, ident(row)) for row in plain if fits(row, wanted))
        assert found == [name for _, name in reversed(wanted_rows)], wanted


async def test_counts_are_those_of_a_plain_scan(filled: tuple[SqlStore, list[ListedRow]]) -> None:
    store, plain = filled
    for since, until in ((0, 2**62), (10_000, 20_000), (5_000, 5_000)):
        found = dict(await store.count(since=since, until=until))
        assert found == Counter(row.row.status for row in plain if since <= row.made_at < until)


async def test_a_list_shows_the_latest_attempt_where_the_first_one_stood(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        await store.add_attempt(NewAttempt(row=attempt("k1", created_at=5), document='{"first":1}'))
        await store.report(replace(a_report("k1", 1, status=2), summary='{"short":1}'))
        (row,) = await store.listed(RunFilter(), limit=5, before=None)
        assert (row.made_at, row.row.status, row.summary) == (5, 2, '{"short":1}')
        again = replace(attempt("k2", created_at=99), status=0, labels=("new",))
        await store.add_attempt(NewAttempt(row=again, document='{"second":1}', supersedes=AttemptKey("k1")))
        (row,) = await store.listed(RunFilter(labels=("new",)), limit=5, before=None)
        assert (row.made_at, row.row.status, row.row.key, row.summary) == (5, 0, "k2", '{"second":1}')
        await store.report(replace(a_report("k1", 2, status=4), summary="of an attempt that is over"))
        (row,) = await store.listed(RunFilter(), limit=5, before=None)
        assert (row.row.status, row.summary) == (0, '{"second":1}')
        assert await store.count(since=0, until=6) == [(0, 1)]


async def test_an_older_store_gets_its_lists(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", "secure_dagu.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            text("INSERT INTO runs VALUES (1, 'etl', 'r1', 'etl', 'r1', 1, 'k2'), (2, 'x', 'c', 'etl', 'r1', 0, 'k3')")
        )
        for key, run, at, status, document in (
            ("k1", 1, 5, 2, "{}"), ("k2", 1, 9, 4, '{"name":"etl","nodes":[1]}'), ("k3", 2, 9, 4, "no JSON"),
        ):  # fmt: skip
            connection.execute(
                text(
                    "INSERT INTO attempts VALUES (:key, :run, :key, '', '', :key, :status, '', '', '[\"Team=A\"]', '', "
                    ":at, 0, 0, 1, :document)"
                ),
                {"key": key, "run": run, "at": at, "status": status, "document": document},
            )
    engine.dispose()
    async with open_store(url) as store:
        (row,) = await store.listed(
            RunFilter(labels=("team=a",), statuses=frozenset({RunStatus.SUCCEEDED})), limit=5, before=None
        )
        assert (row.made_at, row.row.key, json.loads(row.summary)) == (5, "k2", {"name": "etl"})
        assert await store.count(since=0, until=99) == [(4, 1)]


@given(
    labels=st.lists(st.text(alphabet="aA=ß_%1\n", max_size=5), max_size=3),
    wanted=st.text(alphabet="aA=*?ß_%1!", min_size=1, max_size=5),
)
@settings(max_examples=300)
def test_a_pattern_lets_through_whatever_matches(labels: list[str], wanted: str) -> None:
    def like(value: str, pattern: str) -> bool:
        if not pattern:
            return not value
        if pattern[0] == "%":
            return any(like(value[start:], pattern[1:]) for start in range(len(value) + 1))
        return bool(value) and pattern[0] in ("_", value[0]) and like(value[1:], pattern[1:])

    labels = [label for label in labels if "\n" not in label]
    if matches({"labels": labels}, RunFilter(labels=(wanted,))):
        assert all(like(label_lines(labels), pattern) for pattern in label_patterns((wanted,)))
