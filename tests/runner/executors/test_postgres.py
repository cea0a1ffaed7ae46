"""`postgres.query` and `postgres.import` against a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors.postgres import lock_number
from tests.ports import free_port
from tests.runner.executors import servers
from tests.runner.executors.test_sqlite import dag, error_of, metrics_of, step, stopped_at
from tests.runner.harness import Seen, run

TABLE = "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE, size float8, data jsonb)"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Postgres]:
    with servers.postgres() as server:
        yield server


@pytest.fixture
def dsn(server: servers.Postgres) -> str:
    """A schema of the test's own, with a table."""
    schema = f"s{next(_numbers)}"
    with psycopg.connect(server.dsn(schema)) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        connection.execute(TABLE.encode())
    return server.dsn(schema)


def rows(dsn: str, sql: str) -> list[Any]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(sql.encode()).fetchall()


async def query(base: Path, dsn: str, sql: str, **inputs: Any) -> Seen:
    return await run(dag(step("q", "postgres.query", dsn=dsn, query=sql, **inputs)), base)


SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE query ~ '^SELECT pg_slee[p]' AND state = 'active'"
PAIR = "SELECT 1 AS b, 'x' AS a UNION ALL SELECT 2, NULL ORDER BY b"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, '{"b":1,"a":"x"}\n{"b":2,"a":null}\n'),
        ({"output_format": "json", "max_rows": 1}, '[\n  {\n    "b": 1,\n    "a": "x"\n  }\n]\n'),
        ({"output_format": "csv", "headers": True}, "b,a\n1,x\n2,null\n"),
    ],
)
async def test_rows_are_printed_in_each_format(
    tmp_path: Path, dsn: str, options: dict[str, Any], expected: str
) -> None:
    seen = await query(tmp_path, dsn, PAIR, **options)
    assert seen.out("q") == expected


async def test_an_empty_result_still_has_its_header(tmp_path: Path, dsn: str) -> None:
    seen = await query(tmp_path, dsn, "SELECT id, name FROM t", output_format="csv", headers=True)
    assert seen.out("q") == "id,name\n"


async def test_a_large_result_comes_in_pieces(tmp_path: Path, dsn: str) -> None:
    seen = await query(tmp_path, dsn, "SELECT n FROM generate_series(1, 1234) AS n")
    assert metrics_of(seen)["rows_returned"] == 1234
    assert seen.out("q").splitlines()[-1] == '{"n":1234}'


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1.50::numeric", '"1.50"'),
        ("9007199254740993::bigint", "9007199254740993"),
        ("true", "true"),
        ("'NaN'::float8", '"NaN"'),
        ("'{\"k\": [1, null]}'::jsonb", '{"k":[1,null]}'),
        ("ARRAY[1, 2]", "[1,2]"),
        ("'2026-01-02 03:04:05+00'::timestamptz", '"2026-01-02T03:04:05Z"'),
        ("'2026-01-02'::date", '"2026-01-02"'),
        ("'1 mon 2 days'::interval", '"1 mon 2 days"'),
        ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
        ("'\\x6869'::bytea", '"hi"'),
        ("'\\xff'::bytea", '"/w=="'),
        ("'a<b>&\"'::text", '"a<b>&\\""'),
    ],
)
async def test_values_are_what_json_has_for_them(tmp_path: Path, dsn: str, expression: str, expected: str) -> None:
    seen = await query(tmp_path, dsn, f"SELECT {expression} AS v")
    assert seen.out("q") == f'{{"v":{expected}}}\n', error_of(seen)


@pytest.mark.parametrize(
    ("sql", "affected"),
    [
        ("INSERT INTO t (id) VALUES (1), (2)", 2),
        ("CREATE TABLE u (a int)", 0),
        ("INSERT INTO t (id) VALUES (1); INSERT INTO t (id) VALUES (2); SELECT * FROM t", 2),
        ("SELECT 1 AS a INTO u", 1),
    ],
)
async def test_what_changes_rows_counts_them_and_prints_none(tmp_path: Path, dsn: str, sql: str, affected: int) -> None:
    seen = await query(tmp_path, dsn, sql)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert metrics_of(seen)["rows_affected"] == affected
    assert "q.stdout.log" not in seen.logs


async def test_a_change_may_return_rows(tmp_path: Path, dsn: str) -> None:
    seen = await query(tmp_path, dsn, "INSERT INTO t (id) VALUES (7) RETURNING id")
    assert seen.out("q") == '{"id":7}\n'
    assert rows(dsn, "SELECT id FROM t") == [(7,)]


async def test_a_function_with_a_body_of_statements_is_one_statement(tmp_path: Path, dsn: str) -> None:
    sql = "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT f()"
    seen = await query(tmp_path, dsn, sql)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)


EVIL = "x'); DROP TABLE t; --"


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("INSERT INTO t (id, name) VALUES (1, :name)", {"name": "${EVIL}"}),
        ("INSERT INTO t (id, name) VALUES ($2, $1)", ["${EVIL}", 7]),
        ("INSERT INTO t (id, name) VALUES (?, ?)", [7, "${EVIL}"]),
        ("DELETE FROM t WHERE id = $1; INSERT INTO t (id, name) VALUES ($1, $2)", [3, "${EVIL}"]),
        ("INSERT INTO t (id, name, data) VALUES (:id, :name, :data)", {"id": "5", "name": "${EVIL}", "data": {"a": 1}}),
        ("INSERT INTO t (id, name) SELECT 1, :name WHERE 2 = ANY(:ids)", {"name": "${EVIL}", "ids": [1, 2]}),
    ],
)
async def test_a_parameter_is_bound_and_never_becomes_sql(tmp_path: Path, dsn: str, sql: str, params: Any) -> None:
    text = dag(step("q", "postgres.query", dsn=dsn, query=sql, params=params), env={"EVIL": EVIL})
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(dsn, "SELECT name FROM t") == [(EVIL,)]


async def test_a_failed_transaction_leaves_nothing_behind(tmp_path: Path, dsn: str) -> None:
    sql = "INSERT INTO t (id) VALUES (1); INSERT INTO t (id) VALUES (1)"
    seen = await query(tmp_path, dsn, sql, transaction=True)
    assert "duplicate key" in error_of(seen)
    assert metrics_of(seen)["status"] == "error"
    assert rows(dsn, "SELECT * FROM t") == []


async def test_a_transaction_has_the_isolation_that_was_asked_for(tmp_path: Path, dsn: str) -> None:
    sql = "SHOW transaction_isolation"
    seen = await query(tmp_path, dsn, sql, transaction=True, isolation_level="repeatable_read")
    assert json.loads(seen.out("q")) == {"transaction_isolation": "repeatable read"}


async def test_a_slow_query_ends_with_its_timeout(tmp_path: Path, dsn: str) -> None:
    seen = await query(tmp_path, dsn, "SELECT pg_sleep(30)", timeout=0.3)
    assert "longer than 0.3s" in error_of(seen)
    # The server stops too, long before its 30 s are over.
    async with asyncio.timeout(20):
        while rows(dsn, SLEEPING):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_a_slow_query_ends_when_the_run_is_stopped(tmp_path: Path, dsn: str) -> None:
    seen = await stopped_at(dag(step("q", "postgres.query", dsn=dsn, query="SELECT pg_sleep(30)")), tmp_path)
    assert seen.nodes()["q"] == "aborted"


async def test_an_advisory_lock_keeps_others_out(tmp_path: Path, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [lock_number("deploy")])
        seen = await query(tmp_path / "1", dsn, "SELECT 1 AS a", advisory_lock="deploy", timeout=0.3)
        assert "longer than" in error_of(seen)
        seen = await query(tmp_path / "2", dsn, "SELECT 1 AS a", advisory_lock="another")
        assert seen.out("q") == '{"a":1}\n'
    seen = await query(tmp_path / "3", dsn, "SELECT 1 AS a", advisory_lock="deploy")
    assert seen.out("q") == '{"a":1}\n'


async def test_a_wrong_password_is_not_repeated(tmp_path: Path, server: servers.Postgres) -> None:
    dsn = f"postgres://postgres:${{PW}}@127.0.0.1:{server.port}/postgres"
    text = dag(step("q", "postgres.query", dsn=dsn, query="SELECT 1"), env={"PW": "not-the-password"})
    seen = await run(text, tmp_path)
    assert "password authentication failed" in error_of(seen)
    assert "not-the-password" not in seen.final_text.replace(json.dumps(text), "")


async def test_a_dsn_that_is_none_is_not_repeated(tmp_path: Path) -> None:
    seen = await query(tmp_path, "hunter2 is my password", "SELECT 1")
    assert "no connection string" in error_of(seen)
    assert "hunter2" not in error_of(seen)


async def test_the_password_comes_from_the_steps_environment_and_never_from_the_service(
    tmp_path: Path, server: servers.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = f"postgres://postgres@127.0.0.1:{server.port}/postgres"
    monkeypatch.setenv("PGPASSWORD", servers.PASSWORD)
    seen = await query(tmp_path / "1", dsn, "SELECT 1 AS a")
    assert seen.status is RunStatus.FAILED
    text = dag(step("q", "postgres.query", dsn=dsn, query="SELECT 1 AS a"), env={"PGPASSWORD": servers.PASSWORD})
    seen = await run(text, tmp_path / "2")
    assert seen.out("q") == '{"a":1}\n'


async def test_a_server_that_is_not_there_fails_the_step(tmp_path: Path) -> None:
    seen = await query(tmp_path, f"host=127.0.0.1 port={free_port()} user=x", "SELECT 1")
    assert "refused" in error_of(seen).lower()


# ------------------------------------------------------------------------------------------------------------ import


async def load(base: Path, dsn: str, content: str | bytes, *, file: str = "in.csv", **options: Any) -> Seen:
    (base / "work").mkdir(exist_ok=True, mode=0o700)
    (base / "work" / file).write_bytes(content.encode() if isinstance(content, str) else content)
    described = {"input_file": file, "table": "t", **options}
    return await run(dag(step("q", "postgres.import", dsn=dsn, **{"import": described})), base)


@pytest.mark.parametrize(
    ("file", "content", "options"),
    [
        ("in.csv", "id,name,size\n1,a,1.5\n2,NULL,\n", {}),
        ("in.csv", "id,name,size\n1,a,1.5\n2,NULL,\n", {"batch_size": 1}),
        ("in.jsonl", '{"id":1,"name":"a","size":1.5}\n{"id":2}\n', {}),
        ("in.csv", "1,a,1.5\n2,,\n", {"has_header": False, "columns": ["id", "name", "size"]}),
    ],
)
async def test_a_file_is_imported(tmp_path: Path, dsn: str, file: str, content: str, options: dict[str, Any]) -> None:
    seen = await load(tmp_path, dsn, content, file=file, **options)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(dsn, "SELECT id, name, size FROM t ORDER BY id") == [(1, "a", 1.5), (2, None, None)]
    assert metrics_of(seen)["rows_affected"] == 2


async def test_json_values_take_the_type_of_their_column(tmp_path: Path, dsn: str) -> None:
    line = '{"id": 1, "name": true, "size": 2, "data": {"a": [1, "x"]}}\n'
    seen = await load(tmp_path, dsn, line, file="in.jsonl")
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(dsn, "SELECT * FROM t") == [(1, "true", 2.0, {"a": [1, "x"]})]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"on_conflict": "ignore"}, [(1, "old", 1.0), (2, "b", 2.0)]),
        ({"on_conflict": "replace"}, [(1, "old", 1.0), (2, "b", 2.0)]),
        ({"on_conflict": "replace", "conflict_target": "id"}, [(1, "new", None), (2, "b", 2.0)]),
        (
            {"on_conflict": "replace", "conflict_target": "id", "update_columns": ["name"]},
            [(1, "new", 1.0), (2, "b", 2.0)],
        ),
    ],
)
async def test_a_row_that_is_there_is_kept_or_replaced(
    tmp_path: Path, dsn: str, options: dict[str, Any], expected: list[Any]
) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO t VALUES (1, 'old', 1)")
    seen = await load(tmp_path, dsn, "id,name,size\n1,new,\n2,b,2\n", **options)
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    assert rows(dsn, "SELECT id, name, size FROM t ORDER BY id") == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("id,name\n1,a\n1,b\n", "duplicate key"),
        (b"id,name\n1,a\x00b\n", "NUL"),
        ("id,name\nx,a\n", "invalid input syntax"),
    ],
)
async def test_an_import_is_all_or_nothing(tmp_path: Path, dsn: str, content: str | bytes, why: str) -> None:
    seen = await load(tmp_path, dsn, content, batch_size=1)
    assert why in error_of(seen)
    assert rows(dsn, "SELECT * FROM t") == []
