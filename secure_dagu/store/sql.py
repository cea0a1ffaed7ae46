"""The store over SQLAlchemy Core: SQLite in WAL mode by default.

Writes go through one writer thread with group commit (`writer`). Reads of SQLite run where they are asked for: an
indexed read takes tens of microseconds, less than a hop to a thread, and WAL readers wait for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, bindparam, create_engine, event, func, inspect, select
from sqlalchemy import delete as sql_delete
from sqlalchemy import update as sql_update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from secure_dagu.dispatch.model import StateEntry, StateRef, StateSource
from secure_dagu.errors import Conflict, IntegrityViolation, Unavailable
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.store.api import AttemptRow, BundleRow, NewAttempt, Report, TaskRow
from secure_dagu.store.tables import SCHEMA, attempts, bundles, metadata, runs, state, tasks
from secure_dagu.store.writer import Writer

T = TypeVar("T")
BUSY_TIMEOUT_MS = 5_000
"""How long SQLite waits for another process that writes (a backup, a person with a shell)."""

_ATTEMPT = (
    attempts.c.key, attempts.c.attempt_id, runs.c.dag, runs.c.run_id, runs.c.root_dag, runs.c.root_run_id,
    attempts.c.parent_dag, attempts.c.parent_run_id, attempts.c.claim_key, attempts.c.status, attempts.c.worker,
    attempts.c.archive, attempts.c.labels, attempts.c.error, attempts.c.created_at, attempts.c.started_at,
    attempts.c.finished_at, attempts.c.revision,
)  # fmt: skip
_LATEST = select(*_ATTEMPT).join(runs, runs.c.latest == attempts.c.key)
_OF_ROOT = (runs.c.root_dag == bindparam("root_dag"), runs.c.root_run_id == bindparam("root_run_id"))

_GET_ATTEMPT = (
    select(*_ATTEMPT).join(runs, runs.c.id == attempts.c.run).where(attempts.c.key == bindparam("key"))
)  # fmt: skip
_GET_DOCUMENT = select(attempts.c.document).where(attempts.c.key == bindparam("key"))
_GET_ROOT = _LATEST.where(*_OF_ROOT, runs.c.run_id == bindparam("root_run_id"), runs.c.dag == bindparam("root_dag"))
_GET_CHILD = _LATEST.where(*_OF_ROOT, runs.c.run_id == bindparam("run_id"), runs.c.is_root.is_(False))
_FIND = (
    _LATEST.where(runs.c.dag == bindparam("dag"), runs.c.run_id == bindparam("run_id"))
    .order_by(runs.c.is_root.desc(), runs.c.id.desc())
    .limit(1)
)
_HAS_ATTEMPT_ID = (
    select(attempts.c.key)
    .join(runs, runs.c.id == attempts.c.run)
    .where(*_OF_ROOT, attempts.c.attempt_id == bindparam("attempt_id"))
    .limit(1)
)
_UNDER = select(*_ATTEMPT).join(runs, runs.c.id == attempts.c.run).where(attempts.c.claim_key == bindparam("claim_key"))
_ROOTS = _LATEST.where(runs.c.is_root.is_(True)).order_by(runs.c.id.desc()).limit(bindparam("limit"))
_TASKS = (
    select(
        tasks.c.place, tasks.c.enqueued_at, tasks.c.leased, tasks.c.worker.label("holder"), tasks.c.token,
        tasks.c.cancelling, tasks.c.revision.label("task_revision"), *_ATTEMPT,
    )
    .join(attempts, attempts.c.key == tasks.c.key)
    .join(runs, runs.c.id == attempts.c.run)
    .order_by(tasks.c.place)
)  # fmt: skip
_GET_BODY = select(tasks.c.body).where(tasks.c.key == bindparam("key"))

_FIND_RUN = select(runs.c.id, runs.c.latest).where(
    *_OF_ROOT, runs.c.run_id == bindparam("run_id"), runs.c.dag == bindparam("dag")
)
_MOVE_RUN = sql_update(runs).where(runs.c.id == bindparam("id_"), runs.c.latest == bindparam("seen"))
_LEASE = (
    sql_update(tasks)
    .where(tasks.c.key == bindparam("key_"), tasks.c.revision == bindparam("seen"))
    .values(leased=True, worker=bindparam("worker"), token=bindparam("token"), revision=tasks.c.revision + 1)
)
_CANCEL = sql_update(tasks).where(tasks.c.key == bindparam("key_")).values(cancelling=True)
_END_TASK = sql_delete(tasks).where(tasks.c.key == bindparam("key_"))
_REPORT = (
    sql_update(attempts)
    .where(attempts.c.key == bindparam("key_"), attempts.c.revision == bindparam("seen"))
    .values(
        {
            name: bindparam(name)
            for name in ("document", "claim_key", "status", "worker", "archive", "error", "started_at", "finished_at")
        }
        | {"revision": attempts.c.revision + 1}
    )
)
_STATE_AT = (
    state.c.scope == bindparam("scope_"),
    state.c.namespace == bindparam("namespace_"),
    state.c.key == bindparam("key_"),
)
_GET_STATE = select(state).where(*_STATE_AT)


class SqlStore:
    """Implement `store.api.Store`, which has the contract of every method. Make it with `open_store`."""

    def __init__(self, engine: Engine, writer: Writer) -> None:
        """Take an engine whose schema is current, and its running writer."""
        self._engine = engine
        self._writer = writer
        # One connection for reads on the loop's thread, outside transactions: each read sees what is committed.
        self._reader = engine.connect().execution_options(sqlite_begin="") if engine.dialect.name == "sqlite" else None

    def close_reader(self) -> None:
        """Give the read connection back."""
        if self._reader is not None:
            self._reader.close()

    # -- runs and tasks -----------------------------------------------------------------------------------------------

    async def tasks(self) -> Sequence[TaskRow]:
        def read(connection: Connection) -> list[TaskRow]:
            found = connection.execute(_TASKS).all()
            return [
                TaskRow(
                    key=AttemptKey(row.key), place=row.place, enqueued_at=row.enqueued_at, leased=row.leased,
                    worker=row.holder, token=row.token, cancelling=row.cancelling, revision=row.task_revision,
                    attempt=_attempt(row),
                    body="" if row.leased else connection.execute(_GET_BODY, {"key": row.key}).scalar_one(),
                )
                for row in found
            ]  # fmt: skip

        return await self._read(read)

    async def task_body(self, key: AttemptKey) -> str | None:
        return await self._read(lambda c: c.execute(_GET_BODY, {"key": key}).scalar_one_or_none())

    async def latest(self, *, run: DagRunRef, root: DagRunRef) -> AttemptRow | None:
        values = {"root_dag": root.name, "root_run_id": root.run_id, "run_id": run.run_id}
        return await self._one(_GET_ROOT if run == root else _GET_CHILD, values)

    async def find(self, run: DagRunRef) -> AttemptRow | None:
        return await self._one(_FIND, {"dag": run.name, "run_id": run.run_id})

    async def attempt(self, key: AttemptKey) -> AttemptRow | None:
        return await self._one(_GET_ATTEMPT, {"key": key})

    async def document(self, key: AttemptKey) -> str:
        found = await self._read(lambda c: c.execute(_GET_DOCUMENT, {"key": key}).scalar_one_or_none())
        return found or ""

    async def attempts_under(self, claim_key: AttemptKey) -> Sequence[AttemptRow]:
        return await self._read(lambda c: [_attempt(row) for row in c.execute(_UNDER, {"claim_key": claim_key}).all()])

    async def has_attempt_id(self, *, root: DagRunRef, attempt_id: AttemptId) -> bool:
        values = {"root_dag": root.name, "root_run_id": root.run_id, "attempt_id": attempt_id}
        return await self._read(lambda c: c.execute(_HAS_ATTEMPT_ID, values).first() is not None)

    async def roots(self, *, name: str | None, run_id: str | None, limit: int) -> Sequence[AttemptRow]:
        query = _ROOTS
        if name is not None:
            query = query.where(runs.c.dag == name)
        if run_id is not None:
            query = query.where(runs.c.run_id == run_id)
        return await self._read(lambda c: [_attempt(row) for row in c.execute(query, {"limit": limit}).all()])

    async def add_attempt(self, new: NewAttempt) -> None:
        row = new.row
        place = {
            "root_dag": row.root.name,
            "root_run_id": row.root.run_id,
            "dag": row.run.name,
            "run_id": row.run.run_id,
        }
        values = {
            "key": row.key, "attempt_id": row.attempt_id, "parent_dag": row.parent.name if row.parent else "",
            "parent_run_id": row.parent.run_id if row.parent else "", "claim_key": row.claim_key, "status": row.status,
            "worker": row.worker, "archive": row.archive, "labels": json.dumps(row.labels), "error": row.error,
            "created_at": row.created_at, "started_at": row.started_at, "finished_at": row.finished_at,
            "revision": row.revision, "document": new.document,
        }  # fmt: skip

        def write(connection: Connection) -> None:
            found = connection.execute(_FIND_RUN, place).first()
            if (found.latest if found else None) != new.supersedes:
                raise Conflict(f"run {row.run} has moved on", fix="read it again")
            if found is None:
                run_row = connection.execute(
                    runs.insert(), place | {"is_root": row.run == row.root, "latest": row.key}
                ).inserted_primary_key
                assert run_row is not None
                number = run_row[0]
            else:
                number = found.id
                moved = {"id_": number, "seen": new.supersedes, "latest": row.key}
                if connection.execute(_MOVE_RUN, moved).rowcount != 1:
                    raise Conflict(f"run {row.run} has moved on", fix="read it again")
            connection.execute(attempts.insert(), values | {"run": number})
            if new.body:
                connection.execute(
                    tasks.insert(),
                    {
                        "key": row.key, "place": new.place, "enqueued_at": row.created_at, "leased": False,
                        "worker": "", "token": "", "cancelling": False, "revision": 1, "body": new.body,
                    },
                )  # fmt: skip

        try:
            await self._writer.write(write)
        except Unavailable as error:
            if isinstance(error.__cause__, IntegrityError):  # two coordinators, one run: the row is the arbiter
                raise Conflict(f"run {row.run} has moved on", fix="read it again") from error
            raise

    async def lease(self, key: AttemptKey, *, revision: int, worker: str, token: str) -> None:
        values = {"key_": key, "seen": revision, "worker": worker, "token": token}

        def write(connection: Connection) -> None:
            if connection.execute(_LEASE, values).rowcount != 1:
                raise Conflict("the task has moved on", fix="poll again")

        await self._writer.write(write)

    async def mark_cancelling(self, key: AttemptKey) -> None:
        await self._writer.write(lambda c: c.execute(_CANCEL, {"key_": key}).rowcount)

    async def report(self, report: Report) -> None:
        values = {
            "key_": report.key, "seen": report.revision, "document": report.document, "status": report.status,
            "claim_key": report.claim_key, "worker": report.worker, "archive": report.archive, "error": report.error,
            "started_at": report.started_at, "finished_at": report.finished_at,
        }  # fmt: skip

        def write(connection: Connection) -> None:
            if connection.execute(_REPORT, values).rowcount != 1:
                raise Conflict("the attempt has moved on", fix="read it again")
            if report.ends_task:
                connection.execute(_END_TASK, {"key_": report.key})

        await self._writer.write(write)

    # -- shared state -------------------------------------------------------------------------------------------------

    async def state(self, ref: StateRef) -> StateEntry | None:
        def read(connection: Connection) -> StateEntry | None:
            row = connection.execute(_GET_STATE, _at(ref)).first()
            return None if row is None else _state_entry(row)

        return await self._read(read)

    async def put_state(
        self,
        ref: StateRef,
        value: bytes,
        *,
        expected_version: int | None,
        create_only: bool,
        by: StateSource,
        now_ns: int,
    ) -> StateEntry | None:
        values = {
            "value": value, "hash": sha256(value).hexdigest(), "updated_at_ns": now_ns, "by_dag": by.dag_name,
            "by_run_id": by.run_id, "by_attempt_id": by.attempt_id, "by_step": by.step,
        }  # fmt: skip

        def write(connection: Connection) -> StateEntry | None:
            row = connection.execute(_GET_STATE, _at(ref)).first()
            version = 0 if row is None else row.version
            if (create_only and row is not None) or (expected_version is not None and expected_version != version):
                return None
            if row is None:
                address = {"scope": ref.scope, "namespace": ref.namespace, "key": ref.key}
                connection.execute(state.insert(), address | values | {"version": 1, "created_at_ns": now_ns})
            else:
                query = sql_update(state).where(*_STATE_AT, state.c.version == version)
                if connection.execute(query.values(**values, version=version + 1), _at(ref)).rowcount != 1:
                    return None
            return _state_entry(connection.execute(_GET_STATE, _at(ref)).one())

        return await self._writer.write(write)

    async def delete_state(self, ref: StateRef) -> bool:
        return await self._writer.write(
            lambda c: c.execute(sql_delete(state).where(*_STATE_AT), _at(ref)).rowcount == 1
        )

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        query = (
            select(state)
            .where(state.c.scope == scope, state.c.namespace == namespace)
            .where(func.substr(state.c.key, 1, len(prefix)) == prefix)
            .order_by(state.c.key)
        )
        if limit:
            query = query.limit(limit)
        return await self._read(lambda c: [_state_entry(row) for row in c.execute(query).all()])

    # -- bundles ------------------------------------------------------------------------------------------------------

    async def add_bundle(self, bundle: BundleRow) -> None:
        def write(connection: Connection) -> None:
            known = select(bundles.c.digest).where(bundles.c.digest == bundle.digest)
            if connection.execute(known).first() is None:
                row = {"digest": bundle.digest, "size_bytes": bundle.size_bytes, "stored_at": bundle.stored_at}
                connection.execute(bundles.insert(), row)

        await self._writer.write(write)

    async def bundle_bytes(self) -> int:
        query = select(func.coalesce(func.sum(bundles.c.size_bytes), 0))
        return int(await self._read(lambda c: c.execute(query).scalar_one()))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _one(self, query: Any, values: dict[str, str]) -> AttemptRow | None:
        def read(connection: Connection) -> AttemptRow | None:
            row = connection.execute(query, values).first()
            return None if row is None else _attempt(row)

        return await self._read(read)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        try:
            if self._reader is not None:
                return query(self._reader)
            return await asyncio.to_thread(self._read_pooled, query)
        except SQLAlchemyError as error:
            raise Unavailable("the store cannot be read", why=type(error).__name__, fix="see the log") from error

    def _read_pooled(self, query: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            return query(connection)


def _attempt(row: Any) -> AttemptRow:
    return AttemptRow(
        key=AttemptKey(row.key), attempt_id=AttemptId(row.attempt_id), run=DagRunRef(row.dag, row.run_id),
        root=DagRunRef(row.root_dag, row.root_run_id),
        parent=DagRunRef(row.parent_dag, row.parent_run_id) if row.parent_run_id else None,
        claim_key=AttemptKey(row.claim_key), status=row.status, worker=row.worker, archive=row.archive,
        labels=tuple(json.loads(row.labels)), error=row.error, created_at=row.created_at, started_at=row.started_at,
        finished_at=row.finished_at, revision=row.revision,
    )  # fmt: skip


def _at(ref: StateRef) -> dict[str, str]:
    return {"scope_": ref.scope, "namespace_": ref.namespace, "key_": ref.key}


def _state_entry(row: Any) -> StateEntry:
    return StateEntry(
        ref=StateRef(row.scope, row.namespace, row.key), value=bytes(row.value), version=row.version, hash=row.hash,
        created_at_ns=row.created_at_ns, updated_at_ns=row.updated_at_ns,
        updated_by=StateSource(
            dag_name=row.by_dag, run_id=row.by_run_id, attempt_id=row.by_attempt_id, step=row.by_step
        ),
    )  # fmt: skip


# -- opening ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_store(url: str, *, write_failed: Callable[[], None] = lambda: None) -> AsyncIterator[SqlStore]:
    """Open the store at a SQLAlchemy URL (`sqlite:///path`), bring its schema up to date, close it in the end.

    Raises:
        IntegrityViolation: the schema is of a later version than this program.
        Unavailable: the database cannot be opened.
    """
    engine = _engine(url)
    try:
        try:
            _bring_up_to_date(engine)
        except SQLAlchemyError as error:
            raise Unavailable(
                "the store cannot be opened", why=str(error.args[0] if error.args else error), fix="check the data path"
            ) from error
        writer = Writer(engine, write_failed)
        writer.start()
        store = SqlStore(engine, writer)
        try:
            yield store
        finally:
            await writer.stop()
            store.close_reader()
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_size=4, pool_pre_ping=True)
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path == ":memory:":
        raise Unavailable("the store needs a file", why=f"{url!r} names none", fix="use sqlite:///<path>")
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not Path(path).exists():  # status documents hold parameters and outputs: the owner's eyes only
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    engine = create_engine(url, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver starts no transactions of its own; `begin` below does
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a commit needs no fsync to survive the death of this process; a power cut may cost the last ones.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_as_told(connection: Connection) -> None:
        if begin := connection.get_execution_options().get("sqlite_begin", "BEGIN"):
            connection.exec_driver_sql(begin)

    return engine


def _bring_up_to_date(engine: Engine) -> None:
    with engine.connect() as connection:
        found = inspect(connection).has_table("alembic_version")
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() if found else None
    if version == SCHEMA:
        return
    if version is None:
        # A new store is made as the tables stand, without loading Alembic: it costs a start 200 ms and 10 MiB.
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            connection.exec_driver_sql("INSERT INTO alembic_version (version_num) VALUES ('" + SCHEMA + "')")  # noqa: S608
        return
    if version > SCHEMA:
        raise IntegrityViolation(
            "the store is newer than this program", why=f"its schema is {version}, ours {SCHEMA}", fix="upgrade"
        )
    from secure_dagu.store.migrate import upgrade  # noqa: PLC0415, RUF100  loads Alembic: only when it is needed

    upgrade(engine)
