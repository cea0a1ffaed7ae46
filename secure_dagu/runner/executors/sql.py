"""What the SQL actions share: their options, how rows are printed, the order of a query and of an import.

A database is reached through `Database`; each kind of it is one file. Values never enter the text of a statement.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError
from secure_dagu.run.machine import Result
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import sql_import
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.sql_text import Dialect, Statement, statements
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.executors.threads import in_thread
from secure_dagu.runner.files import path_below

TIMEOUT_S = 60.0
ISOLATION = ("default", "read_committed", "repeatable_read", "serializable")


class Rows(Protocol):
    """A result set that is still being read."""

    @property
    def columns(self) -> Sequence[str]:
        """Return the names, in order."""
        ...

    def batches(self) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        """Yield the rows, some at a time, so that a large result is never held whole."""
        ...

    async def drop(self) -> None:
        """Let the statement run to its end without reading."""
        ...


class Database(Protocol):
    """An open connection. Its methods raise DefinitionError with what the server said."""

    dialect: Dialect

    async def begin(self, isolation: str) -> None: ...

    async def commit(self) -> None: ...

    async def execute(self, statement: Statement) -> Rows | int:
        """Run one statement; return its rows, or how many rows it has changed."""
        ...

    async def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one INSERT for each row; return how many rows went in."""
        ...


Open = Callable[[StepContext, Options], AbstractAsyncContextManager[Database]]


class Metrics(Struct):
    """What the line on stderr says about one query or import."""

    text: str
    counts: dict[str, int]

    @contextmanager
    def written_to(self, write: Callable[[bytes], None]) -> Iterator[None]:
        """Write the line when the work has ended, however it has."""
        started_at, started = datetime.now(UTC), time.monotonic()
        status = "error"
        try:
            yield
            status = "success"
        finally:
            line = {
                "query_hash": hashlib.sha256(self.text.encode(errors="replace")).hexdigest(),
                "started_at": _rfc3339(started_at),
                "finished_at": _rfc3339(datetime.now(UTC)),
                "duration_ms": round((time.monotonic() - started) * 1000),
                **self.counts,
                "status": status,
            }
            write(f"{formats.compact_json(line)}\n".encode())


async def query(context: StepContext, open_database: Open) -> Done:
    """Execute `*.query`: print the rows of one statement, or run several."""
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    return await unless_stopped(context.stop, _in_time(options, lambda: _query(context, options, open_database)))


async def import_(context: StepContext, open_database: Open) -> Done:
    """Execute `*.import`: put the rows of a file into a table, all of them or none."""
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    return await unless_stopped(context.stop, _in_time(options, lambda: _import(context, options, open_database)))


async def _in_time(options: Options, work: Callable[[], Awaitable[Done]]) -> Done:
    limit_s = options.seconds("timeout", TIMEOUT_S)
    try:
        async with asyncio.timeout(limit_s or None):
            return await work()
    except TimeoutError:
        return Done(result=Result.FAILED, exit_code=1, error=f"the database took longer than {limit_s:g}s (`timeout`)")


async def _query(context: StepContext, options: Options, open_database: Open) -> Done:
    text = options.needed("query")
    isolation = options.choice("isolation_level", ISOLATION, "default")
    layout = _Layout.of(options)
    metrics = Metrics(text, {"rows_affected": 0})
    with metrics.written_to(context.stderr or context.stdout):
        async with open_database(context, options) as database:
            found = statements(text, _params(options), database.dialect)
            if not found:
                raise DefinitionError("with.query has no statement")
            is_transaction = options.boolean("transaction")
            if is_transaction:
                await database.begin(isolation)
            if len(found) == 1:
                metrics.counts = await _one(context, options, database, found[0], layout)
            else:
                for statement in found:  # several statements print no rows
                    result = await database.execute(statement)
                    if isinstance(result, int):
                        metrics.counts["rows_affected"] += result
                    else:
                        await result.drop()
            if is_transaction:
                await database.commit()
    return SUCCESS


async def _one(
    context: StepContext, options: Options, database: Database, statement: Statement, layout: _Layout
) -> dict[str, int]:
    """Run a lone statement and print what it returns."""
    limit = options.integer("max_rows")
    result = await database.execute(statement)
    if isinstance(result, int):
        return {"rows_affected": result}
    returned = 0
    with _destination(context, options) as write:
        printer = layout.printer(result.columns, write)
        async with aclosing(result.batches()) as batches:
            async for batch in batches:
                shown = batch[: limit - returned] if limit else batch
                printer.rows(shown)
                returned += len(shown)
                if limit and returned >= limit:
                    break
        printer.end()
    return {"rows_returned": returned}


async def _import(context: StepContext, options: Options, open_database: Open) -> Done:
    described = options.mapping("import")
    if described is None:
        raise DefinitionError("with.import must not be empty")
    plan = sql_import.Plan.of(described, context.cwd)
    metrics = Metrics(f"import into {plan.table}", {"rows_affected": 0, "rows_read": 0})
    with metrics.written_to(context.stderr or context.stdout), sql_import.reading(plan) as source:
        async with open_database(context, options) as database:
            statement = sql_import.insert_statement(plan, source.columns, source.width, database.dialect)
            if not plan.dry_run:
                await database.begin("default")
            # A file on a slow disk must not hold up everybody else's steps.
            while batch := await in_thread(source.next_batch, source.interrupt):
                metrics.counts["rows_read"] += len(batch)
                if not plan.dry_run:
                    metrics.counts["rows_affected"] += await database.insert(statement, batch)
            if not plan.dry_run:
                await database.commit()
    return SUCCESS


def _params(options: Options) -> Mapping[str, Any] | Sequence[Any] | None:
    params = options.any("params")
    if params is None or isinstance(params, Mapping | list):
        return params
    raise DefinitionError("with.params cannot be used", why="expected a map or a list")


@contextmanager
def _destination(context: StepContext, options: Options) -> Iterator[Callable[[bytes], None]]:
    """Give where rows go: stdout, or a file that appears whole or not at all."""
    name = options.text("output_file")
    if not name:
        yield context.stdout
        return
    target = path_below(context.cwd, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield lambda data: _written(file, data)
        Path(part).replace(target)
    finally:
        Path(part).unlink(missing_ok=True)


def _written(file: io.BufferedWriter, data: bytes) -> None:
    file.write(data)


# -------------------------------------------------------------------------------------------------------------- rows


class _Printer(Protocol):
    def rows(self, rows: Sequence[Sequence[Any]]) -> None: ...

    def end(self) -> None: ...


class _Layout(Struct, frozen=True, kw_only=True):
    """How rows are written (workflow language, section 4.5)."""

    format: str
    headers: bool
    null: str

    @classmethod
    def of(cls, options: Options) -> _Layout:
        return cls(
            format=options.choice("output_format", ("jsonl", "json", "csv"), "jsonl"),
            headers=options.boolean("headers"),
            null=options.text("null_string", "null"),
        )

    def printer(self, columns: Sequence[str], write: Callable[[bytes], None]) -> _Printer:
        if self.format == "csv":
            return _Csv(columns, write, headers=self.headers, null=self.null)
        return (_JsonArray if self.format == "json" else _JsonLines)(columns, write)


class _JsonLines:
    """One compact object a line, its keys in column order."""

    def __init__(self, columns: Sequence[str], write: Callable[[bytes], None]) -> None:
        self._columns = columns
        self._write = write

    def rows(self, rows: Sequence[Sequence[Any]]) -> None:
        lines = [formats.compact_json(_object(self._columns, row)) + "\n" for row in rows]
        self._write("".join(lines).encode(errors="replace"))

    def end(self) -> None:
        pass


class _JsonArray:
    """One array of objects, two spaces of indentation."""

    def __init__(self, columns: Sequence[str], write: Callable[[bytes], None]) -> None:
        self._columns = columns
        self._write = write
        self._between = "["

    def rows(self, rows: Sequence[Sequence[Any]]) -> None:
        texts = []
        for row in rows:
            text = formats.pretty_json(_object(self._columns, row), 2)
            texts.append(f"{self._between}\n  " + text.replace("\n", "\n  "))
            self._between = ","
        self._write("".join(texts).encode(errors="replace"))

    def end(self) -> None:
        self._write(b"[]\n" if self._between == "[" else b"\n]\n")


class _Csv:
    """Comma-separated values; a null is written as `null_string`."""

    def __init__(self, columns: Sequence[str], write: Callable[[bytes], None], *, headers: bool, null: str) -> None:
        self._null = null
        self._write = write
        if headers:
            self._put([columns])

    def rows(self, rows: Sequence[Sequence[Any]]) -> None:
        self._put([[self._null if value is None else formats.as_text(plain(value)) for value in row] for row in rows])

    def end(self) -> None:
        pass

    def _put(self, lines: Sequence[Sequence[str]]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(lines)
        self._write(buffer.getvalue().encode(errors="replace"))


def _object(columns: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in zip(columns, row, strict=True)}


def plain(value: Any) -> Any:
    """Return a value as JSON has it: times in RFC 3339, bytes as text or else base64, exact numbers as text."""
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else formats.float_text(value)  # NaN and infinity are no JSON
    if isinstance(value, bytes | memoryview):
        data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return base64.b64encode(data).decode()
    if isinstance(value, datetime):
        return _rfc3339(value) if value.tzinfo else value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
