"""`sqlite.query` and `sqlite.import` (workflow language, section 4.5)."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import sqlite3
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode

from secure_dagu.dag import formats
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.context import Done, StepContext
from secure_dagu.runner.executors import sql
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.sql_text import Dialect, Statement
from secure_dagu.runner.executors.threads import in_thread
from secure_dagu.runner.files import path_below

BATCH_ROWS = 500
LOCK_POLL_S = 0.05
_PROGRESS_STEPS = 10_000
"""Instructions of SQLite's machine between two looks at whether to stop: well below a millisecond."""

T = TypeVar("T")


async def query(context: StepContext) -> Done:
    """Run SQL and print the rows."""
    return await sql.query(context, open_database)


async def import_(context: StepContext) -> Done:
    """Put the rows of a file into a table."""
    return await sql.import_(context, open_database)


@asynccontextmanager
async def open_database(context: StepContext, options: Options) -> AsyncIterator[sql.Database]:
    """Give the database of `dsn`, made if it is missing, as one connection."""
    uri, path = _locate(context, options)
    async with _file_lock(path if options.boolean("file_lock") else ""):
        database = await _Database.open(uri)
        try:
            yield database
        finally:
            database.close()


def _locate(context: StepContext, options: Options) -> tuple[str, str]:
    """Return the URI of the database and its path; the path is empty for one in memory."""
    dsn = options.needed("dsn")
    name, _, tail = dsn.removeprefix("file:").partition("?") if dsn.startswith("file:") else (dsn, "", "")
    parameters = dict(parse_qsl(tail, keep_blank_values=True))
    if dsn.startswith("file:"):
        name = unquote(name)
        if name.startswith("//"):  # an authority, which SQLite wants to be empty or localhost
            name = "/" + name[2:].partition("/")[2]
    if "\0" in name:
        raise DefinitionError("with.dsn cannot be used", why="it holds a NUL character")
    if name != ":memory:" and parameters.get("mode") != "memory":
        path = str(path_below(context.cwd, name).absolute())
        return f"file:{quote(path)}" + (f"?{urlencode(parameters)}" if parameters else ""), path
    if not options.boolean("shared_memory") and parameters.get("cache") != "shared":
        return ":memory:", ""
    return _shared_memory(context, name), ""


_kept: dict[str, sqlite3.Connection] = {}
"""Databases in memory that the steps of a run share: one connection holds each while the run lasts."""


def _shared_memory(context: StepContext, name: str) -> str:
    """Return the URI of a database in memory that only this attempt's steps can see."""
    key = hashlib.sha256(f"{context.request.attempt_key}\0{name}".encode()).hexdigest()[:32]
    uri = f"file:{key}?mode=memory&cache=shared"
    if key not in _kept:
        _kept[key] = sqlite3.connect(uri, uri=True, check_same_thread=False)
        weakref.finalize(context.children, _forget, key)  # which lives as long as the run
    return uri


def _forget(key: str) -> None:
    _kept.pop(key).close()


@asynccontextmanager
async def _file_lock(path: str) -> AsyncIterator[None]:
    """Hold `<db>.lock`; the wait for it ends with the step's time."""
    if not path:
        yield
        return
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_S)  # flock has no way to wait that a stop could end
        yield
    finally:
        os.close(handle)


class _Database:
    """One connection, used by one thread at a time."""

    dialect = Dialect.SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._is_stopped = False
        connection.set_progress_handler(lambda: self._is_stopped, _PROGRESS_STEPS)

    @classmethod
    async def open(cls, uri: str) -> _Database:
        connection = await in_thread(lambda: _connected(uri), lambda: None)
        return cls(connection)

    def close(self) -> None:
        """Close; what was not committed is undone."""
        self._connection.close()

    async def begin(self, isolation: str) -> None:
        await self._call(
            lambda: self._connection.execute("BEGIN IMMEDIATE" if isolation == "serializable" else "BEGIN")
        )

    async def commit(self) -> None:
        await self._call(self._connection.commit)

    async def execute(self, statement: Statement) -> sql.Rows | int:
        params = statement.params or ()
        if isinstance(params, Sequence):
            values: Any = [_bound(value) for value in params]
        else:
            values = {name: _bound(value) for name, value in params.items()}
        cursor = await self._call(lambda: self._connection.execute(statement.text, values))
        if cursor.description is None:
            return max(cursor.rowcount, 0)
        return _Rows(cursor, self._call)

    async def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        cursor = await self._call(lambda: self._connection.executemany(statement, rows))
        return max(cursor.rowcount, 0)

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work, self._stop)
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            raise DefinitionError("SQLite refused", why=str(error)) from None

    def _stop(self) -> None:
        self._is_stopped = True  # also for a statement that is about to begin
        self._connection.interrupt()


class _Rows:
    """What a statement returns, fetched as it is asked for."""

    def __init__(self, cursor: sqlite3.Cursor, call: Any) -> None:
        self.columns = [str(column[0]) for column in cursor.description]
        self._cursor = cursor
        self._call = call

    async def drop(self) -> None:
        await self._call(lambda: deque(self._cursor, maxlen=0))

    async def batches(self) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        while batch := await self._call(lambda: self._cursor.fetchmany(BATCH_ROWS)):
            yield batch


def _connected(uri: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA busy_timeout=5000")
            connection.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise DefinitionError("the database cannot be opened", why=str(error)) from None
    return connection


def _bound(value: Any) -> Any:
    """Return a value as SQLite stores it: a list or map is JSON text."""
    return formats.compact_json(value) if isinstance(value, dict | list) else value
