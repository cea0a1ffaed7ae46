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

from sqlalchemy import Engine, Table, bindparam, create_engine, event, func, inspect, or_, select
from sqlalchemy import delete as sql_delete
from sqlalchemy import update as sql_update
from sqlalchemy.exc import SQLAlchemyError

from secure_dagu.dispatch.model import StateEntry, StateRef, StateSource
from secure_dagu.dispatch.operating import RunFilter
from secure_dagu.errors import Conflict, IntegrityViolation, Unavailable
from secure_dagu.run.model import AttemptId, AttemptKey, DagRunRef
from secure_dagu.store.api import AttemptRow, BundleRow, ListedRow, NewAttempt, Report, TaskRow
from secure_dagu.store.driver import Row, Session, Statement
from secure_dagu.store.narrowing import label_lines, label_patterns, part_pattern
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
_ATTEMPT_AND_RUN = select(*_ATTEMPT).join(runs, runs.c.id == attempts.c.run)
_OF_ROOT = (runs.c.root_dag == bindparam("root_dag"), runs.c.root_run_id == bindparam("root_run_id"))
_ROOTS = _LATEST.where(runs.c.is_root.is_(True)).order_by(runs.c.id.desc()).limit(bindparam("limit"))
_LISTED = (
    select(*_ATTEMPT, runs.c.made_at, func.coalesce(func.nullif(runs.c.summary, ""), attempts.c.document))
    .join(runs, runs.c.latest == attempts.c.key)
    .where(runs.c.is_root.is_(True))
)
_IDENT = runs.c.dag + "/" + runs.c.run_id
_COUNT = Statement(
    select(runs.c.status, func.count())
    .where(runs.c.is_root.is_(True), runs.c.made_at >= bindparam("since"), runs.c.made_at < bindparam("until"))
    .group_by(runs.c.status)
)
_BUNDLE_BYTES = Statement(select(func.coalesce(func.sum(bundles.c.size_bytes), 0)))


def _insert(table: Table, *left_out: str) -> Any:
    return table.insert().values({c.name: bindparam(c.name) for c in table.columns if c.name not in left_out})


_GET_ATTEMPT = Statement(_ATTEMPT_AND_RUN.where(attempts.c.key == bindparam("key")))
_GET_DOCUMENT = Statement(select(attempts.c.document).where(attempts.c.key == bindparam("key")))
_GET_ROOT = Statement(
    _LATEST.where(*_OF_ROOT, runs.c.run_id == bindparam("root_run_id"), runs.c.dag == bindparam("root_dag"))
)
_GET_CHILD = Statement(_LATEST.where(*_OF_ROOT, runs.c.run_id == bindparam("run_id"), runs.c.is_root.is_(False)))
_FIND = Statement(
    _LATEST.where(runs.c.dag == bindparam("dag"), runs.c.run_id == bindparam("run_id"))
    .order_by(runs.c.is_root.desc(), runs.c.id.desc())
    .limit(1)
)
_HAS_ATTEMPT_ID = Statement(
    select(attempts.c.key)
    .join(runs, runs.c.id == attempts.c.run)
    .where(*_OF_ROOT, attempts.c.attempt_id == bindparam("attempt_id"))
    .limit(1)
)
_UNDER = Statement(_ATTEMPT_AND_RUN.where(attempts.c.claim_key == bindparam("claim_key")))
_TASKS = Statement(
    select(
        *_ATTEMPT, tasks.c.place, tasks.c.enqueued_at, tasks.c.leased, tasks.c.worker, tasks.c.token,
        tasks.c.cancelling, tasks.c.revision,
    )
    .join(tasks, tasks.c.key == attempts.c.key)
    .join(runs, runs.c.id == attempts.c.run)
    .order_by(tasks.c.place)
)  # fmt: skip
_GET_BODY = Statement(select(tasks.c.body).where(tasks.c.key == bindparam("key")))

_FIND_RUN = Statement(
    select(runs.c.id, runs.c.latest).where(
        *_OF_ROOT, runs.c.run_id == bindparam("run_id"), runs.c.dag == bindparam("dag")
    )
)
_ADD_RUN = Statement(_insert(runs, "id").returning(runs.c.id))
_ADD_ATTEMPT = Statement(_insert(attempts))
_ADD_TASK = Statement(_insert(tasks))
_MOVE_RUN = Statement(
    sql_update(runs)
    .where(runs.c.id == bindparam("id_"), runs.c.latest == bindparam("seen"))
    .values(
        latest=bindparam("latest_"),
        status=bindparam("status_"),
        labels=bindparam("labels_"),
        summary=bindparam("summary_"),
    )
)
_SHOW = Statement(
    sql_update(runs)
    .where(runs.c.latest == bindparam("key_"), runs.c.is_root.is_(True))
    .values(status=bindparam("status_"), summary=bindparam("summary_"))
)
_LEASE = Statement(
    sql_update(tasks)
    .where(tasks.c.key == bindparam("key_"), tasks.c.revision == bindparam("seen"))
    .values(
        leased=bindparam("leased_"), worker=bindparam("worker_"), token=bindparam("token_"),
        revision=tasks.c.revision + 1,
    )
)  # fmt: skip
_CANCEL = Statement(
    sql_update(tasks).where(tasks.c.key == bindparam("key_")).values(cancelling=bindparam("cancelling_"))
)
_END_TASK = Statement(sql_delete(tasks).where(tasks.c.key == bindparam("key_")))
_ATTEMPTS_OF = Statement(_ATTEMPT_AND_RUN.where(*_OF_ROOT))
_RUNS_OF = select(runs.c.id).where(*_OF_ROOT)
_HAS_TASK = Statement(
    select(tasks.c.key).join(attempts, attempts.c.key == tasks.c.key).where(attempts.c.run.in_(_RUNS_OF)).limit(1)
)
_REMOVE_ATTEMPTS = Statement(sql_delete(attempts).where(attempts.c.run.in_(_RUNS_OF)))
_REMOVE_RUNS = Statement(sql_delete(runs).where(*_OF_ROOT))
_REPORTED = ("document", "claim_key", "status", "worker", "archive", "error", "started_at", "finished_at")
_REPORT = Statement(
    sql_update(attempts)
    .where(attempts.c.key == bindparam("key_"), attempts.c.revision == bindparam("seen"))
    .values({name: bindparam(f"{name}_") for name in _REPORTED} | {"revision": attempts.c.revision + 1})
)

_STATE_AT = (
    state.c.scope == bindparam("scope_"),
    state.c.namespace == bindparam("namespace_"),
    state.c.key == bindparam("key_"),
)
_STATE_VALUES = ("value", "version", "hash", "updated_at_ns", "by_dag", "by_run_id", "by_attempt_id", "by_step")
_STATE = (
    state.c.scope, state.c.namespace, state.c.key, state.c.value, state.c.version, state.c.hash, state.c.created_at_ns,
    state.c.updated_at_ns, state.c.by_dag, state.c.by_run_id, state.c.by_attempt_id, state.c.by_step,
)  # fmt: skip
_GET_STATE = Statement(select(*_STATE).where(*_STATE_AT))
_ADD_STATE = Statement(_insert(state))
_SET_STATE = Statement(
    sql_update(state)
    .where(*_STATE_AT, state.c.version == bindparam("seen"))
    .values({name: bindparam(f"{name}_new") for name in _STATE_VALUES})
)
_DELETE_STATE = Statement(sql_delete(state).where(*_STATE_AT))
_HAS_BUNDLE = Statement(select(bundles.c.digest).where(bundles.c.digest == bindparam("digest")))
_ADD_BUNDLE = Statement(_insert(bundles))


class SqlStore:
    """Implement `store.api.Store`, which has the contract of every method. Make it with `open_store`."""

    def __init__(self, engine: Engine, writer: Writer) -> None:
        """Take an engine whose schema is current, and its running writer."""
        self._engine = engine
        self._writer = writer
        # One connection for reads on the loop's thread, outside transactions: each read sees what is committed.
        self._reader = Session(engine) if engine.dialect.name == "sqlite" else None

    def close_reader(self) -> None:
        """Give the read connection back."""
        if self._reader is not None:
            self._reader.close()

    # -- runs and tasks -----------------------------------------------------------------------------------------------

    async def tasks(self) -> Sequence[TaskRow]:
        def read(session: Session) -> list[TaskRow]:
            return [_task(session, row) for row in session.rows(_TASKS, {})]

        return await self._read(read)

    async def task_body(self, key: AttemptKey) -> str | None:
        row = await self._read(lambda session: session.row(_GET_BODY, {"key": key}))
        return None if row is None else str(row[0])

    async def latest(self, *, run: DagRunRef, root: DagRunRef) -> AttemptRow | None:
        values = {"root_dag": root.name, "root_run_id": root.run_id, "run_id": run.run_id}
        return await self._one(_GET_ROOT if run == root else _GET_CHILD, values)

    async def find(self, run: DagRunRef) -> AttemptRow | None:
        return await self._one(_FIND, {"dag": run.name, "run_id": run.run_id})

    async def attempt(self, key: AttemptKey) -> AttemptRow | None:
        return await self._one(_GET_ATTEMPT, {"key": key})

    async def attempts_under(self, claim_key: AttemptKey) -> Sequence[AttemptRow]:
        return await self._many(_UNDER, {"claim_key": claim_key})

    async def document(self, key: AttemptKey) -> str:
        row = await self._read(lambda session: session.row(_GET_DOCUMENT, {"key": key}))
        return "" if row is None else str(row[0])

    async def has_attempt_id(self, *, root: DagRunRef, attempt_id: AttemptId) -> bool:
        values = {"root_dag": root.name, "root_run_id": root.run_id, "attempt_id": attempt_id}
        return await self._read(lambda session: session.row(_HAS_ATTEMPT_ID, values)) is not None

    async def roots(self, *, name: str | None, run_id: str | None, limit: int) -> Sequence[AttemptRow]:
        query = _ROOTS
        if name is not None:
            query = query.where(runs.c.dag == name)
        if run_id is not None:
            query = query.where(runs.c.run_id == run_id)
        return await self._many(Statement(query), {"limit": limit})

    async def listed(self, wanted: RunFilter, *, limit: int, before: tuple[int, str] | None) -> Sequence[ListedRow]:
        made, query = runs.c.made_at, _LISTED
        if wanted.name:
            query = query.where(runs.c.dag == wanted.name)
        if wanted.statuses:
            query = query.where(or_(*(runs.c.status == int(status) for status in sorted(wanted.statuses))))
        if wanted.since is not None:
            query = query.where(made >= int(wanted.since.timestamp() * 1000))
        if wanted.until is not None:
            query = query.where(made < int(wanted.until.timestamp() * 1000))
        if before is not None:
            query = query.where(made <= before[0], or_(made < before[0], before[1] > _IDENT))
        for column, part in ((runs.c.dag, wanted.name_part), (runs.c.run_id, wanted.run_id_part)):
            if (pattern := part_pattern(part)) is not None:
                query = query.where(func.lower(column).like(pattern))
        for pattern in label_patterns(wanted.labels):
            query = query.where(runs.c.labels.like(pattern))
        query = query.order_by(made.desc(), _IDENT.desc()).limit(limit)
        rows = await self._read(lambda session: session.rows(Statement(query), {}))
        return [ListedRow(row=_attempt(row[:-2]), made_at=row[-2], summary=str(row[-1])) for row in rows]

    async def count(self, *, since: int, until: int) -> Sequence[tuple[int, int]]:
        rows = await self._read(lambda session: session.rows(_COUNT, {"since": since, "until": until}))
        return [(int(status), int(number)) for status, number in rows]

    async def add_attempt(self, new: NewAttempt) -> None:
        row = new.row
        run = {"root_dag": row.root.name, "root_run_id": row.root.run_id, "dag": row.run.name, "run_id": row.run.run_id}
        attempt = {
            "key": row.key, "attempt_id": row.attempt_id, "parent_dag": row.parent.name if row.parent else "",
            "parent_run_id": row.parent.run_id if row.parent else "", "claim_key": row.claim_key, "status": row.status,
            "worker": row.worker, "archive": row.archive, "labels": json.dumps(row.labels), "error": row.error,
            "created_at": row.created_at, "started_at": row.started_at, "finished_at": row.finished_at,
            "revision": row.revision, "document": new.document,
        }  # fmt: skip
        task = {
            "key": row.key, "place": new.place, "enqueued_at": row.created_at, "leased": False, "worker": "",
            "token": "", "cancelling": False, "revision": 1, "body": new.body,
        }  # fmt: skip

        def write(session: Session) -> None:
            found = session.row(_FIND_RUN, run)
            if (found[1] if found else None) != new.supersedes:
                raise _moved(row.run)
            shown = {"status": row.status, "labels": label_lines(row.labels), "summary": new.summary}
            if found is None:
                made = {"is_root": row.run == row.root, "latest": row.key, "made_at": row.created_at}
                added = session.row(_ADD_RUN, run | made | shown)
                assert added is not None, "an insert returns its row"
                attempt["run"] = added[0]
            else:
                attempt["run"] = found[0]
                moved = {"id_": found[0], "seen": new.supersedes, "latest_": row.key}
                if session.run(_MOVE_RUN, moved | {f"{name}_": value for name, value in shown.items()}) != 1:
                    raise _moved(row.run)
            session.run(_ADD_ATTEMPT, attempt)
            if new.body:
                session.run(_ADD_TASK, task)

        try:
            await self._writer.write(write)
        except Unavailable as error:
            if isinstance(error.__cause__, self._engine.dialect.loaded_dbapi.IntegrityError):
                raise _moved(row.run) from error  # two coordinators, one run: the row is the arbiter
            raise

    async def lease(self, key: AttemptKey, *, revision: int, worker: str, token: str) -> None:
        await self._hold(key, {"seen": revision, "leased_": True, "worker_": worker, "token_": token})

    async def release(self, key: AttemptKey, *, revision: int) -> None:
        await self._hold(key, {"seen": revision, "leased_": False, "worker_": "", "token_": ""})

    async def _hold(self, key: AttemptKey, values: dict[str, object]) -> None:
        def write(session: Session) -> None:
            if session.run(_LEASE, {"key_": key} | values) != 1:
                raise Conflict("the task has moved on", fix="poll again")

        await self._writer.write(write)

    async def mark_cancelling(self, key: AttemptKey) -> None:
        await self._writer.write(lambda session: session.run(_CANCEL, {"key_": key, "cancelling_": True}))

    async def report(self, report: Report) -> None:
        values = {f"{name}_": getattr(report, name) for name in _REPORTED}
        values |= {"key_": report.key, "seen": report.revision}

        def write(session: Session) -> None:
            if session.run(_REPORT, values) != 1:
                raise Conflict("the attempt has moved on", fix="read it again")
            session.run(_SHOW, {"key_": report.key, "status_": report.status, "summary_": report.summary})
            if report.ends_task:
                session.run(_END_TASK, {"key_": report.key})

        await self._writer.write(write)

    async def attempts_of(self, root: DagRunRef) -> Sequence[AttemptRow]:
        return await self._many(_ATTEMPTS_OF, {"root_dag": root.name, "root_run_id": root.run_id})

    async def remove(self, root: DagRunRef, *, latest: AttemptKey) -> None:
        values = {"root_dag": root.name, "root_run_id": root.run_id}

        def write(session: Session) -> None:
            found = session.row(_FIND_RUN, {**values, "dag": root.name, "run_id": root.run_id})
            if found is None or found[1] != latest or session.row(_HAS_TASK, values) is not None:
                raise _moved(root)
            session.run(_REMOVE_ATTEMPTS, values)
            session.run(_REMOVE_RUNS, values)

        await self._writer.write(write)

    # -- shared state -------------------------------------------------------------------------------------------------

    async def state(self, ref: StateRef) -> StateEntry | None:
        row = await self._read(lambda session: session.row(_GET_STATE, _at(ref)))
        return None if row is None else _state_entry(row)

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
        address = {"scope": ref.scope, "namespace": ref.namespace, "key": ref.key}

        def write(session: Session) -> StateEntry | None:
            row = session.row(_GET_STATE, _at(ref))
            version = 0 if row is None else _state_entry(row).version
            if (create_only and row is not None) or (expected_version is not None and expected_version != version):
                return None
            values["version"] = version + 1
            if row is None:
                session.run(_ADD_STATE, address | values | {"created_at_ns": now_ns})
            else:
                new = {f"{name}_new": values[name] for name in _STATE_VALUES}
                if session.run(_SET_STATE, _at(ref) | new | {"seen": version}) != 1:
                    return None
            written = session.row(_GET_STATE, _at(ref))
            assert written is not None, "it was written in this transaction"
            return _state_entry(written)

        return await self._writer.write(write)

    async def delete_state(self, ref: StateRef) -> bool:
        return await self._writer.write(lambda session: session.run(_DELETE_STATE, _at(ref))) == 1

    async def list_state(self, *, scope: str, namespace: str, prefix: str, limit: int) -> Sequence[StateEntry]:
        query = (
            select(*_STATE)
            .where(state.c.scope == scope, state.c.namespace == namespace)
            .where(func.substr(state.c.key, 1, len(prefix)) == prefix)
            .order_by(state.c.key)
        )
        if limit:
            query = query.limit(limit)
        return [_state_entry(row) for row in await self._read(lambda session: session.rows(Statement(query), {}))]

    # -- bundles ------------------------------------------------------------------------------------------------------

    async def add_bundle(self, bundle: BundleRow) -> None:
        values = {"digest": bundle.digest, "size_bytes": bundle.size_bytes, "stored_at": bundle.stored_at}

        def write(session: Session) -> None:
            if session.row(_HAS_BUNDLE, values) is None:
                session.run(_ADD_BUNDLE, values)

        await self._writer.write(write)

    async def bundle_bytes(self) -> int:
        row = await self._read(lambda session: session.row(_BUNDLE_BYTES, {}))
        return 0 if row is None else int(row[0])

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _one(self, statement: Statement, values: dict[str, str]) -> AttemptRow | None:
        row = await self._read(lambda session: session.row(statement, values))
        return None if row is None else _attempt(row)

    async def _many(self, statement: Statement, values: dict[str, Any]) -> list[AttemptRow]:
        return [_attempt(row) for row in await self._read(lambda session: session.rows(statement, values))]

    async def _read(self, query: Callable[[Session], T]) -> T:
        try:
            if self._reader is not None:
                return query(self._reader)
            return await asyncio.to_thread(self._read_pooled, query)
        except (SQLAlchemyError, self._writer.driver_error) as error:
            raise Unavailable("the store cannot be read", why=type(error).__name__, fix="see the log") from error

    def _read_pooled(self, query: Callable[[Session], T]) -> T:
        with contextlib.closing(Session(self._engine)) as session:
            return query(session)


def _moved(run: DagRunRef) -> Conflict:
    return Conflict(f"run {run} has moved on", fix="read it again")


def _attempt(row: Row) -> AttemptRow:
    """Return an attempt from the columns of `_ATTEMPT`."""
    parent = DagRunRef(row[6], row[7]) if row[7] else None
    return AttemptRow(
        key=AttemptKey(row[0]), attempt_id=AttemptId(row[1]), run=DagRunRef(row[2], row[3]),
        root=DagRunRef(row[4], row[5]), parent=parent, claim_key=AttemptKey(row[8]), status=row[9], worker=row[10],
        archive=row[11], labels=tuple(json.loads(row[12])), error=row[13], created_at=row[14], started_at=row[15],
        finished_at=row[16], revision=row[17],
    )  # fmt: skip


def _task(session: Session, row: Row) -> TaskRow:
    place, enqueued_at, leased, worker, token, cancelling, revision = row[len(_ATTEMPT) :]
    body = None if leased else session.row(_GET_BODY, {"key": row[0]})
    return TaskRow(
        key=AttemptKey(row[0]), place=place, enqueued_at=enqueued_at, leased=bool(leased), worker=worker, token=token,
        cancelling=bool(cancelling), revision=revision, attempt=_attempt(row), body=body[0] if body else "",
    )  # fmt: skip


def _at(ref: StateRef) -> dict[str, Any]:
    return {"scope_": ref.scope, "namespace_": ref.namespace, "key_": ref.key}


def _state_entry(row: Row) -> StateEntry:
    """Return a shared value from the columns of `_STATE`."""
    return StateEntry(
        ref=StateRef(row[0], row[1], row[2]), value=bytes(row[3]), version=row[4], hash=row[5], created_at_ns=row[6],
        updated_at_ns=row[7],
        updated_by=StateSource(dag_name=row[8], run_id=row[9], attempt_id=row[10], step=row[11]),
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
        connection.isolation_level = None  # the driver starts no transactions of its own
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a commit needs no fsync to survive the death of this process; a power cut may cost the last ones.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:  # migrations only; our own writes are `Session.transact`
        connection.exec_driver_sql("BEGIN")

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
