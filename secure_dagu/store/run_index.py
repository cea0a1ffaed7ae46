"""An index over the records of this host's runs, so that lists need not open every folder: SQLite, made anew at will.

It follows the journal of `store.records`. It is a cache: missing, damaged or old, it is rebuilt from the folders. What
is not in the journal (records of another program, a process killed in between) is found as it is shown, by the times
of folders and files, and by a look at the folders of the newest days. Methods block; call them on a thread.

Processes of one kind share the file. One that is stopped while it writes holds SQLite's lock for as long as it sleeps:
rows are read before the lock is taken, and whoever finds it held for too long goes on with a copy of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from msgspec import Struct

from secure_dagu.dispatch.operating import Document, RunFilter, matches
from secure_dagu.errors import Unavailable
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.store.blobs import safe
from secure_dagu.store.narrowing import label_patterns, part_pattern
from secure_dagu.store.records import Record, Records, record_at
from secure_dagu.store.run_journal import Journal
from secure_dagu.store.run_rows import Current, RunRow, places, row_of, seen_now

log = structlog.get_logger()
T = TypeVar("T")

VERSION: Final = 3
LIVING_EVERY_S: Final = 1.0
"""How often runs that are recorded as running are looked at: their process may be gone."""
FOLDERS_EVERY_S: Final = 30.0
"""How often the folders of the newest days are compared with the index."""
BATCH: Final = 500
_BUSY_MS: Final = 200
_LOCKED_S: Final = 1.0
"""How long another process may write before this one goes on with a copy."""
_REBUILD_S: Final = 20.0
"""How long a process waits at its start for another one that makes the index."""
_MOST_CHANGED: Final = 10_000
_KEPT_ENDS: Final = 10_000
"""Ends that a process of this kind may be behind the others."""

Ended = Callable[[Document], None]
"""Is told of each attempt of a root run that has ended, once in each process that listens."""

_SCHEMA = (
    "DROP TABLE IF EXISTS runs",
    "DROP TABLE IF EXISTS facts",
    "CREATE TABLE runs (place TEXT PRIMARY KEY, dag TEXT NOT NULL, run_id TEXT NOT NULL, at INTEGER NOT NULL,"
    " ident TEXT NOT NULL, status INTEGER NOT NULL, labels TEXT NOT NULL, attempt TEXT NOT NULL, seen TEXT NOT NULL,"
    " summary TEXT NOT NULL)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # Not dropped, and its numbers never come again: other processes of this kind have read it up to one of them.
    "CREATE TABLE IF NOT EXISTS ends (number INTEGER PRIMARY KEY AUTOINCREMENT, summary TEXT NOT NULL)",
)
_INDEXES = (
    "CREATE INDEX by_time ON runs (at DESC, ident DESC, status, dag, run_id, labels)",
    "CREATE INDEX by_dag ON runs (dag, at DESC, ident DESC)",
    "CREATE INDEX by_status ON runs (status, at DESC, ident DESC)",
)
"""Made once all rows are there: half the time of keeping them up with each."""
_INSERT: Final = "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Row(Struct, frozen=True, kw_only=True):
    """One run of a list."""

    at: int
    """When it was made: Unix milliseconds."""
    ident: str
    """`DAG/run id`: orders runs of the same millisecond."""
    place: str
    attempt: str
    seen: str
    """The times of its folder and its status file as they were read."""
    document: Document
    """As lists show it."""


class RunIndex:
    """The index of one folder of records, for one process."""

    def __init__(self, folder: Path, current: Current, *, reader: str = "server") -> None:
        """Take `<data>/dag-runs`.

        Args:
            folder: what is indexed.
            current: how a run stands.
            reader: each kind of process on each host has an index file of its own: the folder may be a shared one.
        """
        self._folder, self._current = folder, current
        self.ended: Ended | None = None
        """What is told of ends from now on; those before the index was made are not told."""
        self._file = folder / f".index-{reader}-{safe(socket.gethostname())}.db"
        self._records, self._journal = Records(folder), Journal(folder)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._pending: set[str] = set()
        """Lines of the journal that are not in the index yet."""
        self._unnoted: set[str] = set()
        """Runs whose folders differ from the index, though no line says so."""
        self._hidden: dict[str, int] = {}
        """Folders of the newest days with hidden attempts only, as of a coordinator's runs; when each changed."""
        self._changed: list[DagRunRef] = []
        self._looked_at_living = self._looked_at_folders = 0.0
        self._locked_since = 0.0
        """Since when another process writes; 0: nobody does."""
        self._told = 0
        """The last end that this process has seen. Whoever of its kind takes an end first notes it for all of them."""

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None) -> list[Row]:
        """Return runs, newest first, older than `before`."""

        def found(database: sqlite3.Connection) -> list[Row]:
            for _ in range(3):
                rows = _found(database, wanted, limit, before)
                stale = [row.place for row in rows if seen_now(self._folder, row.place, row.attempt) != row.seen]
                if not stale or not self._taken(database, stale):
                    break
            return rows

        return self._asked(found)

    def count(self, since: datetime, until: datetime | None) -> Mapping[RunStatus, int]:
        """Return how many runs of a time have each status."""
        query = "SELECT status, count(*) FROM runs WHERE at >= ? AND at < ? GROUP BY status"
        times = (_ms(since), _ms(until) if until else 2**62)
        rows = self._asked(lambda database: database.execute(query, times).fetchall())
        return {RunStatus(status): number for status, number in rows}

    def refresh(self) -> list[DagRunRef]:
        """Bring the index up to date; return the runs that changed since the last call."""

        def taken(_database: sqlite3.Connection) -> list[DagRunRef]:
            changed, self._changed = self._changed, []
            return list(dict.fromkeys(changed))

        return self._asked(taken)

    def look_at_folders(self) -> None:
        """Find runs of the newest two days that nobody noted, and those that are gone."""
        self._looked_at_folders = time.monotonic()
        today = datetime.now(UTC)
        midnight = datetime(today.year, today.month, today.day, tzinfo=UTC) - timedelta(days=1)
        query = "SELECT place FROM runs WHERE at >= ?"
        known = {place for (place,) in self._asked(lambda it: it.execute(query, (_ms(midnight),)).fetchall())}
        there = {self._place(record): record for record in self._records.runs(since=midnight)}
        found = {place for place in known - there.keys() if not (self._folder / place).exists()}
        hidden: dict[str, int] = {}
        for place in there.keys() - known:
            at = _changed_at(there[place])
            if self._hidden.get(place) != at:
                found.add(place)
                if there[place].latest() is not None:
                    continue
            hidden[place] = at
        self._hidden = hidden
        if found:
            with self._lock:
                self._unnoted |= found

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._journal.close()
            if self._db is not None:
                self._db.close()
                self._db = None

    # ── keeping up ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Answer from an index that is up to date; one that is damaged is made anew."""
        if time.monotonic() - self._looked_at_folders >= FOLDERS_EVERY_S:
            self.look_at_folders()
        with self._lock:
            try:
                return self._answer(work)
            except sqlite3.DatabaseError as error:
                log.warning("runs.index_rebuilt", why=str(error))
                self._drop()
                try:
                    return self._answer(work)
                except sqlite3.DatabaseError as again:
                    raise Unavailable("runs cannot be listed", why=str(again), fix="see paths.data_dir") from again

    def _answer(self, work: Callable[[sqlite3.Connection], T]) -> T:
        database = self._open()
        self._follow(database)
        return work(database)

    def _follow(self, database: sqlite3.Connection) -> None:
        now = time.monotonic()
        with contextlib.suppress(OSError):
            self._pending.update(self._journal.lines())
        living: set[str] = set()
        if now - self._looked_at_living >= LIVING_EVERY_S:
            self._looked_at_living = now
            rows = database.execute("SELECT place FROM runs WHERE status = ?", (int(RunStatus.RUNNING),))
            living = {place for (place,) in rows}
        if self._pending or self._unnoted or living:
            self._taken(database, living)
        self._tell(database)

    def _tell(self, database: sqlite3.Connection) -> None:
        """Tell of the ends that were noted since, by this process or another one."""
        query = "SELECT number, summary FROM ends WHERE number > ? ORDER BY number"
        for number, summary in database.execute(query, (self._told,)).fetchall():
            self._told = number
            if self.ended is not None:
                self.ended(json.loads(summary))

    def _taken(self, database: sqlite3.Connection, places: Iterable[str]) -> bool:
        """Bring these and all pending runs up to date; False: another process of this kind is just doing that."""
        wanted = {
            place for place in {*places, *self._pending, *self._unnoted} if record_at(self._folder, place) is not None
        }
        rows = {place: row_of(self._folder, place, self._current) for place in wanted}
        try:
            with _transaction(database):
                for place, row in rows.items():
                    self._take(database, place, row)
                _keep(database, "journal", self._journal.place)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            self._shut_out(database)
            return False
        self._locked_since = 0.0
        self._pending, self._unnoted = set(), set()
        del self._changed[:-_MOST_CHANGED]
        return True

    def _take(self, database: sqlite3.Connection, place: str, after: RunRow | None) -> None:
        found = database.execute("SELECT * FROM runs WHERE place = ?", (place,)).fetchone()
        before = RunRow(*found) if found is not None else None
        if after is not None:
            database.execute(_INSERT, after)
        elif before is not None:
            database.execute("DELETE FROM runs WHERE place = ?", (place,))
        is_changed = place in self._pending or _shown(before) != _shown(after)  # noted: perhaps where no list shows it
        if is_changed and (record := record_at(self._folder, place)) is not None:
            self._changed.append(record.run)
        if after is None or not RunStatus(after.status).is_terminal:
            return
        if before is None or before.attempt != after.attempt or not RunStatus(before.status).is_terminal:
            number = database.execute("INSERT INTO ends (summary) VALUES (?)", (after.summary,)).lastrowid or 0
            database.execute("DELETE FROM ends WHERE number <= ?", (number - _KEPT_ENDS,))

    def _shut_out(self, database: sqlite3.Connection) -> None:
        """Go on with a copy in memory once another process has held the file for too long: it may have been stopped."""
        now = time.monotonic()
        self._locked_since = self._locked_since or now
        if now - self._locked_since < _LOCKED_S:
            return
        copy = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        database.backup(copy)  # reading needs no lock of a writer
        database.close()
        self._db, self._locked_since = copy, 0.0
        log.warning("runs.index_copied", why="another process holds it and does not go on")

    def _place(self, record: Record) -> str:
        return str(record.path.relative_to(self._folder))

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        try:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = self._opened(str(self._file))
        except (OSError, sqlite3.OperationalError) as error:
            log.warning("runs.index_in_memory", why=str(error))  # a full or read-only disk: runs are shown all the same
            self._db = self._opened(":memory:")
        return self._db

    def _opened(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, check_same_thread=False, timeout=_REBUILD_S, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = OFF")  # a cache: what a crash takes is made again
            with _transaction(database):  # one process of a kind makes it, others wait for that
                is_ours = database.execute("PRAGMA user_version").fetchone()[0] == VERSION
                found = database.execute("SELECT value FROM facts").fetchone() if is_ours else None
                if found is None or not self._journal.resume(str(found[0])):
                    self._rebuild(database)
                self._told = database.execute("SELECT coalesce(max(number), 0) FROM ends").fetchone()[0]
            database.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        except BaseException:
            database.close()
            raise
        return database

    def _rebuild(self, database: sqlite3.Connection) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            self._journal.begin()  # what is noted from here on comes on top of what is read now
        for statement in _SCHEMA:
            database.execute(statement)
        rows = (row_of(self._folder, place, self._current) for place in places(self._folder))
        database.executemany(_INSERT, (row for row in rows if row is not None))
        for statement in _INDEXES:
            database.execute(statement)
        _keep(database, "journal", self._journal.place)
        database.execute(f"PRAGMA user_version = {VERSION}")
        log.info("runs.indexed", seconds=round(time.monotonic() - began, 1))

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._file}{suffix}")


def _changed_at(record: Record) -> int:
    """Return when an attempt was added, shown or hidden last; 0 when the run is gone."""
    with contextlib.suppress(OSError):
        return record.path.stat().st_mtime_ns
    return 0


def _shown(row: RunRow | None) -> tuple[str, int, str] | None:
    """Return what lists show of a row."""
    return (row.attempt, row.status, row.summary) if row is not None else None


def _found(database: sqlite3.Connection, wanted: RunFilter, limit: int, before: tuple[int, str] | None) -> list[Row]:
    conditions, values = _conditions(wanted)
    found: list[Row] = []
    batch = limit
    while True:
        where, more = list(conditions), list(values)
        if before is not None:
            where.append("(at, ident) < (?, ?)")
            more += before
        query = (
            "SELECT at, ident, place, attempt, seen, summary FROM runs "  # noqa: S608 - only our words
            f"WHERE {' AND '.join(where) or '1'} ORDER BY at DESC, ident DESC LIMIT ?"
        )
        rows = database.execute(query, (*more, batch)).fetchall()
        for at, ident, place, attempt, seen, summary in rows:
            before = at, ident
            row = Row(at=at, ident=ident, place=place, attempt=attempt, seen=seen, document=json.loads(summary))
            if matches(row.document, wanted):
                found.append(row)
                if len(found) == limit:
                    return found
        if len(rows) < batch:
            return found
        batch = BATCH


def _conditions(wanted: RunFilter) -> tuple[list[str], list[Any]]:
    patterns = [("lower(dag)", part_pattern(wanted.name_part)), ("lower(run_id)", part_pattern(wanted.run_id_part))]
    patterns += [("labels", pattern) for pattern in label_patterns(wanted.labels)]
    conditions = [f"{column} LIKE ?" for column, pattern in patterns if pattern is not None]
    values: list[Any] = [pattern for _, pattern in patterns if pattern is not None]
    if wanted.name:
        conditions.append("dag = ?")
        values.append(wanted.name)
    if wanted.statuses:
        conditions.append(f"status IN ({','.join('?' * len(wanted.statuses))})")
        values += sorted(int(status) for status in wanted.statuses)
    for word, moment in ((">=", wanted.since), ("<", wanted.until)):
        if moment is not None:
            conditions.append(f"at {word} ?")
            values.append(_ms(moment))
    return conditions, values


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _keep(database: sqlite3.Connection, name: str, value: str) -> None:
    database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
