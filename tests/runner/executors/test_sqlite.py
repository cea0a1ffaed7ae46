"""`sqlite.query` and `sqlite.import` against real files."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors.sql_text import Dialect, split, statements
from tests.runner.harness import Seen, run

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, size REAL)"


def dag(*steps: dict[str, Any], **top: Any) -> str:
    """Return a chain of steps as YAML, which JSON is."""
    return json.dumps({"type": "chain", **top, "steps": list(steps)})


def step(name: str, action: str, **inputs: Any) -> dict[str, Any]:
    return {"id": name, "action": action, "with": inputs}


def error_of(seen: Seen, name: str = "q") -> str:
    return str(seen.details()[name]["error"])


def metrics_of(seen: Seen, name: str = "q") -> dict[str, Any]:
    return dict(json.loads(seen.logs[f"{name}.stderr.log"]))


def database(base: Path, *sql: str) -> Path:
    (base / "work").mkdir(exist_ok=True, mode=0o700)
    path = base / "work" / "d.db"
    connection = sqlite3.connect(path)
    for text in sql:
        connection.execute(text)
    connection.commit()
    connection.close()
    return path


class StopsRun(Seen):
    """Stops the run as soon as the node `q` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = asyncio.Event()

    def status_changed(self, document: str, *, final: bool = False) -> None:
        super().status_changed(document, final=final)
        if any(node["step"]["name"] == "q" and node["status"] == 1 for node in self.documents[-1]["nodes"]):
            asyncio.get_running_loop().call_soon(self.stop.set)


async def stopped_at(text: str, base: Path) -> Seen:
    """Run and stop; every wait on the way has to notice."""
    seen = StopsRun()
    async with asyncio.timeout(25):
        return await run(text, base, seen=seen, stop=seen.stop)


def rows(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def query(base: Path, sql: str, **inputs: Any) -> Seen:
    return await run(dag(step("q", "sqlite.query", dsn="file:d.db", query=sql, **inputs)), base)


PAIR = "SELECT 1 AS b, 'x,\"y' AS a UNION ALL SELECT 2, NULL"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, '{"b":1,"a":"x,\\"y"}\n{"b":2,"a":null}\n'),
        ({"output_format": "jsonl"}, '{"b":1,"a":"x,\\"y"}\n{"b":2,"a":null}\n'),
        (
            {"output_format": "json"},
            '[\n  {\n    "b": 1,\n    "a": "x,\\"y"\n  },\n  {\n    "b": 2,\n    "a": null\n  }\n]\n',
        ),
        ({"output_format": "csv"}, '1,"x,""y"\n2,null\n'),
        ({"output_format": "csv", "headers": True, "null_string": "-"}, 'b,a\n1,"x,""y"\n2,-\n'),
        ({"max_rows": 1}, '{"b":1,"a":"x,\\"y"}\n'),
    ],
)
async def test_rows_are_printed_in_each_format(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    seen = await query(tmp_path, PAIR, **options)
    assert seen.out("q") == expected


@pytest.mark.parametrize(("form", "expected"), [("jsonl", None), ("json", "[]\n"), ("csv", None)])
async def test_no_rows_are_an_empty_result(tmp_path: Path, form: str, expected: str | None) -> None:
    seen = await query(tmp_path, "SELECT 1 AS a WHERE 0", output_format=form)
    assert seen.status is RunStatus.SUCCEEDED
    assert seen.logs.get("q.stdout.log") == (expected.encode() if expected else None)


async def test_the_metrics_of_a_query_are_one_line_on_stderr(tmp_path: Path) -> None:
    seen = await query(tmp_path, PAIR)
    metrics = metrics_of(seen)
    assert set(metrics) == {"query_hash", "started_at", "finished_at", "duration_ms", "rows_returned", "status"}
    assert metrics["rows_returned"] == 2
    assert metrics["status"] == "success"


async def test_a_change_counts_its_rows(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE, "INSERT INTO t (name) VALUES ('a'), ('b')")
    seen = await query(tmp_path, "UPDATE t SET size = 1")
    assert metrics_of(seen)["rows_affected"] == 2
    assert "q.stdout.log" not in seen.logs
    assert rows(path, "SELECT size FROM t") == [(1.0,), (1.0,)]


async def test_several_statements_print_no_rows(tmp_path: Path) -> None:
    sql = "CREATE TABLE x (a); INSERT INTO x VALUES (1), (2); SELECT * FROM x; -- the end"
    seen = await query(tmp_path, sql)
    assert "q.stdout.log" not in seen.logs
    assert metrics_of(seen)["rows_affected"] == 2


async def test_a_failed_query_fails_the_step_and_says_why(tmp_path: Path) -> None:
    seen = await query(tmp_path, "SELECT * FROM nowhere")
    assert seen.status is RunStatus.FAILED
    assert "no such table: nowhere" in error_of(seen)
    assert metrics_of(seen)["status"] == "error"


EVIL = "x'); DROP TABLE t; --"


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("INSERT INTO t (name) VALUES (:name)", {"name": "${EVIL}"}),
        ("INSERT INTO t (name) VALUES (?)", ["${EVIL}"]),
        ("INSERT INTO t (name) VALUES ($1)", ["${EVIL}"]),
        ("INSERT INTO t (id, name) VALUES ($2, $1)", ["${EVIL}", 7]),
        ("DELETE FROM t WHERE id = ?; INSERT INTO t (name) VALUES (?)", [3, "${EVIL}"]),
        ("DELETE FROM t WHERE id = :id; INSERT INTO t (name) VALUES (:name)", {"id": 3, "name": "${EVIL}"}),
    ],
)
async def test_a_parameter_is_bound_and_never_becomes_sql(tmp_path: Path, sql: str, params: Any) -> None:
    path = database(tmp_path, TABLE)
    text = dag(step("q", "sqlite.query", dsn="file:d.db", query=sql, params=params), env={"EVIL": EVIL})
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(path, "SELECT name FROM t") == [(EVIL,)]


@pytest.mark.parametrize(
    ("sql", "params", "why"),
    [
        ("SELECT :a", {"b": 1}, "no value for :a"),
        ("SELECT ?", [], "too few values"),
        ("SELECT ?", [1, 2], "more values"),
        ("SELECT $3", [1, 2], r"no value for \$3"),
    ],
)
async def test_a_placeholder_without_a_value_is_an_error(tmp_path: Path, sql: str, params: Any, why: str) -> None:
    seen = await query(tmp_path, sql, params=params)
    assert re.search(why, error_of(seen))


async def test_a_failed_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE)
    sql = "INSERT INTO t (name) VALUES ('a'); INSERT INTO t (name) VALUES ('a')"
    seen = await query(tmp_path, sql, transaction=True, isolation_level="serializable")
    assert seen.status is RunStatus.FAILED
    assert rows(path, "SELECT * FROM t") == []


async def test_without_a_transaction_earlier_statements_stay(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE)
    await query(tmp_path, "INSERT INTO t (name) VALUES ('a'); INSERT INTO t (name) VALUES ('a')")
    assert rows(path, "SELECT name FROM t") == [("a",)]


async def test_foreign_keys_are_enforced(tmp_path: Path) -> None:
    database(tmp_path, TABLE, "CREATE TABLE c (t INTEGER REFERENCES t (id))")
    seen = await query(tmp_path, "INSERT INTO c VALUES (99)")
    assert "FOREIGN KEY" in error_of(seen)


async def test_rows_go_to_a_file(tmp_path: Path) -> None:
    seen = await query(tmp_path, PAIR, streaming=True, output_file="out/rows.csv", output_format="csv")
    assert (tmp_path / "work/out/rows.csv").read_text() == '1,"x,""y"\n2,null\n'
    assert "q.stdout.log" not in seen.logs


async def test_a_failed_query_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    sql = "SELECT abs(value) FROM (SELECT 1 AS value UNION ALL SELECT -9223372036854775807 - 1)"
    seen = await query(tmp_path, sql, output_file="rows")
    assert "integer overflow" in error_of(seen)
    assert list((tmp_path / "work").glob("*rows*")) == []


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.mark.parametrize("written", [0.2, "200ms"])
async def test_an_endless_query_ends_with_its_timeout(tmp_path: Path, written: Any) -> None:
    seen = await query(tmp_path, ENDLESS, timeout=written)
    assert "longer than 0.2s" in error_of(seen)


async def test_an_endless_query_ends_when_the_run_is_stopped(tmp_path: Path) -> None:
    text = dag(step("q", "sqlite.query", dsn=":memory:", query=ENDLESS))
    seen = await stopped_at(text, tmp_path)
    assert seen.nodes()["q"] == "aborted"


async def test_a_step_timeout_interrupts_the_query(tmp_path: Path) -> None:
    text = dag({**step("q", "sqlite.query", dsn=":memory:", query=ENDLESS), "timeout_sec": 1})
    seen = await run(text, tmp_path)
    assert "timed out" in error_of(seen)


async def test_steps_share_a_database_in_memory_when_asked(tmp_path: Path) -> None:
    make = step("a", "sqlite.query", dsn=":memory:", shared_memory=True, query="CREATE TABLE x AS SELECT 5 AS a")
    seen = await run(
        dag(make, step("q", "sqlite.query", dsn=":memory:", shared_memory=True, query="SELECT a FROM x")), tmp_path
    )
    assert seen.out("q") == '{"a":5}\n'


async def test_runs_never_share_a_database_in_memory(tmp_path: Path) -> None:
    make = step("q", "sqlite.query", dsn="file::memory:?cache=shared", query="CREATE TABLE x (a)")
    first = await run(dag(make), tmp_path / "1", attempt="a1")
    second = await run(dag(make), tmp_path / "2", attempt="a2")
    assert (first.status, second.status) == (RunStatus.SUCCEEDED, RunStatus.SUCCEEDED)


async def test_a_file_lock_that_is_held_is_waited_for(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE)
    held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    seen = await query(tmp_path, "SELECT 1", file_lock=True, timeout="100ms")
    os.close(held)
    assert "longer than" in error_of(seen)
    seen = await query(tmp_path, "SELECT 1 AS a", file_lock=True)
    assert seen.out("q") == '{"a":1}\n'


async def test_a_database_may_be_opened_read_only(tmp_path: Path) -> None:
    database(tmp_path, TABLE)
    text = dag(step("q", "sqlite.query", dsn="file:d.db?mode=ro", query="DELETE FROM t"))
    assert "readonly" in error_of(await run(text, tmp_path))


# ------------------------------------------------------------------------------------------------------------ import


async def load(base: Path, content: str | bytes, *, file: str = "in.csv", **options: Any) -> Seen:
    (base / "work").mkdir(exist_ok=True, mode=0o700)
    data = content.encode() if isinstance(content, str) else content
    (base / "work" / file).write_bytes(data)
    described = {"input_file": file, "table": "t", **options}
    return await run(dag(step("q", "sqlite.import", dsn="file:d.db", **{"import": described})), base)


@pytest.mark.parametrize(
    ("file", "content", "options"),
    [
        ("in.csv", "id,name,size\n1,a,1.5\n2,NULL,\n", {}),
        ("in.csv", "\ufeffid,name,size\r\n1,a,1.5\r\n2,\\N,null\r\n", {}),
        ("in.tsv", "id\tname\tsize\n1\ta\t1.5\n2\t\t\n", {}),
        ("in.csv", "1,a,1.5\n2,,\n", {"has_header": False}),
        ("in.csv", "a;1;1.5\n;2;\n", {"has_header": False, "delimiter": ";", "columns": ["name", "id", "size"]}),
        ("in.csv", "x,y,z\n1,a,1.5\n2,,\n", {"columns": ["id", "name", "size"]}),
        ("in.jsonl", '{"id":1,"name":"a","size":1.5}\n\n{"id":2,"name":null}\n', {}),
        ("in.txt", '{"id":1,"name":"a","size":1.5}\n{"id":2,"name":"NULL"}\n', {"format": "jsonl"}),
        ("in.csv", "id,name,size\n9,z,\n1,a,1.5\n2,,\n3,c,\n", {"skip_rows": 1, "max_rows": 2}),
        ("in.csv", "id,name,size\n1,a,1.5\n2,-,-\n", {"null_values": ["-"], "batch_size": 1}),
    ],
)
async def test_a_file_is_imported(tmp_path: Path, file: str, content: str, options: dict[str, Any]) -> None:
    path = database(tmp_path, TABLE)
    seen = await load(tmp_path, content, file=file, **options)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(path, "SELECT * FROM t ORDER BY id") == [(1, "a", 1.5), (2, None, None)]
    assert metrics_of(seen)["rows_affected"] == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"on_conflict": "ignore"}, [(1, "old", 1.0), (2, "b", 2.0)]),
        ({"on_conflict": "replace"}, [(1, "new", None), (2, "b", 2.0)]),
        (
            {"on_conflict": "replace", "conflict_target": "id", "update_columns": ["name"]},
            [(1, "new", 1.0), (2, "b", 2.0)],
        ),
        ({"on_conflict": "ignore", "conflict_target": "id"}, [(1, "old", 1.0), (2, "b", 2.0)]),
    ],
)
async def test_a_row_that_is_there_is_kept_or_replaced(
    tmp_path: Path, options: dict[str, Any], expected: list[Any]
) -> None:
    path = database(tmp_path, TABLE, "INSERT INTO t VALUES (1, 'old', 1)")
    seen = await load(tmp_path, "id,name,size\n1,new,\n2,b,2\n", **options)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(path, "SELECT * FROM t ORDER BY id") == expected


async def test_an_import_is_all_or_nothing(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE, "INSERT INTO t VALUES (3, 'old', 1)")
    seen = await load(tmp_path, "id,name\n1,a\n2,b\n3,c\n", batch_size=1)
    assert "UNIQUE" in error_of(seen)
    assert rows(path, "SELECT id FROM t") == [(3,)]


async def test_a_dry_run_reads_and_writes_nothing(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE)
    seen = await load(tmp_path, "id,name\n1,a\n", dry_run=True)
    assert metrics_of(seen)["rows_read"] == 1
    assert rows(path, "SELECT * FROM t") == []


async def test_names_are_quoted_and_never_sql(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE)
    seen = await load(tmp_path, 'id,"name) VALUES (1,2); DROP TABLE t; --"\n1,a\n')
    assert seen.status is RunStatus.FAILED
    seen = await load(tmp_path, "id\n1\n", table='t" (id) SELECT 5; --')
    assert seen.status is RunStatus.FAILED
    assert rows(path, "SELECT * FROM t") == []


async def test_a_nul_character_is_data(tmp_path: Path) -> None:
    path = database(tmp_path, TABLE)
    seen = await load(tmp_path, b"id,name\n1,a\x00b\n")
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(path, "SELECT name FROM t") == [("a\0b",)]


@pytest.mark.parametrize(
    ("content", "options", "why"),
    [
        ("id,name\n1\n", {}, "line 2 .* 1 fields"),
        ('id,name\n1,"a\n', {}, "cannot be read"),
        (b"id,name\n1,\xff\n", {}, "not UTF-8"),
        ('{"id":1}\n[2]\n', {"format": "jsonl"}, "line 2 .* no JSON object"),
        ('{"id":1}\n{"name":2}\n', {"format": "jsonl"}, "line 2 .* a key that the first has not"),
        ("id\n" + "9" * 200_000 + "\n", {}, "field larger than"),
        ("id\n1\n", {"delimiter": ";;"}, "delimiter"),
        ("id\n1\n", {"nonsense": 1}, 'invalid keys: "nonsense"'),
        ("id\n1\n", {"input_file": "missing.csv"}, "No such file"),
        ("id\n1\n", {"input_file": "."}, "no plain file|Is a directory"),
    ],
)
async def test_what_is_no_such_file_is_refused(
    tmp_path: Path, content: str | bytes, options: dict[str, Any], why: str
) -> None:
    database(tmp_path, TABLE)
    seen = await load(tmp_path, content, **options)
    assert re.search(why, error_of(seen)), error_of(seen)


# ---------------------------------------------------------------------------------------------------- text of queries

TRIGGER = "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END"


@pytest.mark.parametrize(
    ("text", "dialect", "expected"),
    [
        ("a;b", Dialect.SQLITE, ["a", "b"]),
        (" ;; a ; -- b;\n /* ; */ ", Dialect.SQLITE, ["a"]),
        ("SELECT ';', \"a;b\", [c;d], `e;f`; b", Dialect.SQLITE, ["SELECT ';', \"a;b\", [c;d], `e;f`", "b"]),
        ("SELECT 'it''s; fine'", Dialect.SQLITE, ["SELECT 'it''s; fine'"]),
        (f"{TRIGGER}; SELECT 2", Dialect.SQLITE, [TRIGGER, "SELECT 2"]),
        ("SELECT $$a;b$$; SELECT $x$;$$;$x$", Dialect.POSTGRES, ["SELECT $$a;b$$", "SELECT $x$;$$;$x$"]),
        (r"SELECT E'\';', 1; b", Dialect.POSTGRES, [r"SELECT E'\';', 1", "b"]),
        ("SELECT 'open; to the end", Dialect.POSTGRES, ["SELECT 'open; to the end"]),
    ],
)
def test_statements_end_where_a_database_ends_them(text: str, dialect: Dialect, expected: Iterable[str]) -> None:
    assert split(text, dialect) == expected


@pytest.mark.parametrize(
    ("text", "params", "expected", "values"),
    [
        ("SELECT :a, :b, :a::text", {"a": 1, "b": 2}, "SELECT $1, $2, $1::text", [1, 2]),
        ("SELECT x[1:n], ':a', :a", {"a": 1}, "SELECT x[1:n], ':a', $1", [1]),
        ("SELECT $2, $1", [1, 2], "SELECT $2, $1", [1, 2]),
        ("SELECT ?, ?", [1, 2], "SELECT $1, $2", [1, 2]),
        ("SELECT data ? 'k' AND id = $1", [1], "SELECT data ? 'k' AND id = $1", [1]),
    ],
)
def test_placeholders_become_those_of_postgres(text: str, params: Any, expected: str, values: list[Any]) -> None:
    [statement] = statements(text, params, Dialect.POSTGRES)
    assert (statement.text, statement.params) == (expected, values)


@given(st.text(alphabet="ab'\"`[]$;:-/*\n \\?1e", max_size=60), st.sampled_from(Dialect))
def test_any_text_can_be_split_and_nothing_of_it_changes(text: str, dialect: Dialect) -> None:
    for part in split(text, dialect):
        assert part in text
