"""`postgres.query` and `postgres.import` (workflow language, section 4.5)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from secure_dagu.dag import formats
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import sql
from secure_dagu.runner.executors.extras import library
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.sql_text import Dialect, Statement

if TYPE_CHECKING:
    from psycopg import AsyncConnection, AsyncCursor

BATCH_ROWS = 500
_READS = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:select|values|table|with)\b", re.S | re.I)
_WRITES = re.compile(r"\b(?:into|insert|update|delete|merge)\b", re.I)
_AS_TEXT = ("numeric", "interval", "uuid")
"""Types that are printed as the server writes them, because JSON has no exact form of them."""
_ISOLATION = {name: name.replace("_", " ").upper() for name in sql.ISOLATION if name != "default"}


async def query(context: StepContext) -> Done:
    """Run SQL and print the rows."""
    return await sql.query(context, open_database)


async def import_(context: StepContext) -> Done:
    """Put the rows of a file into a table."""
    return await sql.import_(context, open_database)


@asynccontextmanager
async def open_database(context: StepContext, options: Options) -> AsyncIterator[sql.Database]:
    """Give one connection to the server of `dsn`; what was not committed at its end is undone."""
    psycopg: Any = library("psycopg", extra="postgres")
    connection: AsyncConnection[Any]
    with _reported(psycopg):
        connection = await psycopg.AsyncConnection.connect(
            _conninfo(psycopg, context, options.needed("dsn")), autocommit=True, cursor_factory=psycopg.AsyncRawCursor
        )
    database = _Database(psycopg, connection)
    try:
        for name in _AS_TEXT:
            connection.adapters.register_loader(name, psycopg.types.string.TextLoader)
        if lock := options.text("advisory_lock"):
            # Released by the server when the connection ends, however it ends.
            await database.execute(Statement("SELECT pg_advisory_lock($1)", [lock_number(lock)]), buffered=True)
        yield database
    finally:
        await database.close()


def _conninfo(psycopg: Any, context: StepContext, dsn: str) -> str:
    """Return the connection string, complete as far as this host's environment must not complete it."""
    try:
        values = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        # The library's text repeats what it could not read, which may be a password.
        raise DefinitionError("with.dsn is no connection string of PostgreSQL") from None
    # The password of whoever runs this service is nobody's business but its own; a step may bring one in its `env`.
    values.setdefault("password", context.env.get("PGPASSWORD", ""))
    values.setdefault("application_name", "secure-dagu")
    return str(psycopg.conninfo.make_conninfo("", **values))


def lock_number(name: str) -> int:
    """Return the number by which the server knows an `advisory_lock`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


class _Database:
    """One connection."""

    dialect = Dialect.POSTGRES

    def __init__(self, psycopg: Any, connection: AsyncConnection[Any]) -> None:
        self._psycopg = psycopg
        self._connection = connection
        self._reader: AsyncCursor[Any] | None = None

    async def close(self) -> None:
        await self._connection.close()
        if self._reader is not None:  # it may have been left by an error or a stop
            await self._reader.close()

    async def begin(self, isolation: str) -> None:
        level = f" ISOLATION LEVEL {_ISOLATION[isolation]}" if isolation in _ISOLATION else ""
        await self._plain(f"BEGIN{level}")

    async def commit(self) -> None:
        await self._plain("COMMIT")

    async def execute(self, statement: Statement, *, buffered: bool = False) -> sql.Rows | int:
        """Run one statement.

        What only reads goes through a cursor of the server, so that a large result is never held whole; `buffered`
        does without.
        """
        params = None if statement.params is None else [self._bound(value) for value in statement.params]
        text = statement.text
        if not buffered and _READS.match(text) and not _WRITES.search(text):
            return await self._read(text, params)
        cursor = self._connection.cursor()
        with _reported(self._psycopg):
            await cursor.execute(text.encode(), params)
        if cursor.description is None:
            return max(cursor.rowcount, 0)
        return _Rows(self._psycopg, cursor, self._connection, is_ours=False)

    async def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        # Every value as text without a type: the server reads it as its column wants it.
        values = [[None if value is None else formats.as_text(value) for value in row] for row in rows]
        cursor = self._connection.cursor()
        with _reported(self._psycopg):
            await cursor.executemany(statement.encode(), values)
        return max(cursor.rowcount, 0)

    async def _read(self, text: str, params: Sequence[Any] | None) -> sql.Rows:
        is_ours = self._connection.info.transaction_status is self._psycopg.pq.TransactionStatus.IDLE
        if is_ours:  # a cursor lives in a transaction
            await self._plain("BEGIN")
        self._reader = self._psycopg.AsyncRawServerCursor(self._connection, "rows")
        with _reported(self._psycopg):
            await self._reader.execute(text.encode(), params)
        return _Rows(self._psycopg, self._reader, self._connection, is_ours=is_ours)

    async def _plain(self, text: str) -> None:
        with _reported(self._psycopg):
            await self._connection.execute(text.encode())

    def _bound(self, value: Any) -> Any:
        return self._psycopg.types.json.Jsonb(value) if isinstance(value, dict) else value


class _Rows:
    """What a statement returns, fetched as it is asked for; its own transaction ends with it."""

    def __init__(
        self, psycopg: Any, cursor: AsyncCursor[Any], connection: AsyncConnection[Any], *, is_ours: bool
    ) -> None:
        self.columns = [column.name for column in cursor.description or ()]
        self._psycopg = psycopg
        self._cursor = cursor
        self._connection = connection
        self._is_ours = is_ours

    async def batches(self) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        try:
            with _reported(self._psycopg):
                while batch := await self._cursor.fetchmany(BATCH_ROWS):
                    yield batch
        except GeneratorExit:
            await self._end()
            raise
        await self._end()

    async def drop(self) -> None:
        async for _ in self.batches():
            pass

    async def _end(self) -> None:
        with _reported(self._psycopg):
            await self._cursor.close()
            if self._is_ours:
                await self._connection.execute(b"COMMIT")


@contextmanager
def _reported(psycopg: Any) -> Iterator[None]:
    """Turn an error of the server into ours: its own sentence, without the text of the query."""
    try:
        yield
    except psycopg.Error as error:
        why = error.diag.message_primary or str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise DefinitionError("PostgreSQL refused", why=why) from None
