"""Records of runs on this host, as files in the layout of the workflow language, section 6.3.

    <data>/dag-runs/<dag>/ids/<run id>           where the run's folder is; one process at a time: ids are unique
    <data>/dag-runs/<dag>/dag-runs/YYYY/MM/DD/dag-run_<YYYYMMDD_HHMMSSZ>_<run id>/
        a_<YYYYMMDD_HHMMSS_mmmZ>_<attempt id>/status.jsonl  dag.json  outputs.json  previous.json  conditions.json
            CANCEL_REQUESTED  alive
        sub/<child run id>/a_…/

The last line of `status.jsonl` is the status. We write the file whole, beside it, and rename it: a reader needs no lock
and sees an old or a new status, a kill loses neither, and a run of thousands of steps does not grow a file of
thousands of snapshots. Records that Dagu itself wrote are read as well. Names come from ids that were checked before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, Unavailable
from secure_dagu.run.model import AttemptId, DagRunRef
from secure_dagu.store import whole

DAG_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,40}\Z")
RUN_ID = re.compile(r"[-A-Za-z0-9_]{1,64}\Z")
RUN_FOLDER = re.compile(r"dag-run_(\d{8}_\d{6})Z_([-A-Za-z0-9_]{1,64})\Z")
ATTEMPT_FOLDER = re.compile(r"a_(\d{8}_\d{6}_\d{3})Z_([-A-Za-z0-9_]{1,64})\Z")
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,6})?\Z")
MAX_STATUS_BYTES = 256 * 2**20
TURN_S = 5.0
"""How long another process may take to make the folder of a run."""
SILENT_S = 90.0
"""How long a run of another host may say nothing before it counts as gone, unless that host says otherwise."""


class Attempt(Struct, frozen=True):
    """The folder of one attempt."""

    path: Path

    @property
    def attempt_id(self) -> AttemptId:
        """Return the attempt's id."""
        return AttemptId(self.path.name.rsplit("_", 1)[1])

    def document(self) -> str:
        """Return the newest status document as JSON text; empty when there is none yet."""
        try:
            with (self.path / "status.jsonl").open("rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_STATUS_BYTES:
                    return ""
                lines = file.read().splitlines()
        except OSError:
            return ""
        for line in reversed(lines):
            if line.startswith(b"{") and line.endswith(b"}"):
                return line.decode(errors="replace")
        return ""

    def status(self) -> dict[str, Any]:
        """Return the newest status document; empty when there is none, or none that can be read."""
        try:
            found = json.loads(self.document() or "{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, document: str, *, final: bool = False) -> None:
        """Put a status document in the place of the one before; a final one is on disk when this returns."""
        _replace(self.path / "status.jsonl", document.encode() + b"\n", sync=final)
        note_change(self.path.parent)

    def sync(self) -> None:
        """Return when all that was written of the attempt is on the disk."""
        for name in ("dag.json", "status.jsonl", ""):
            with contextlib.suppress(FileNotFoundError):
                whole.sync(self.path / name)

    def write_definition(self, snapshot: Mapping[str, Any]) -> None:
        """Keep what the attempt was started with, for later retries."""
        _replace(self.path / "dag.json", json.dumps(snapshot, ensure_ascii=False).encode(), sync=False)

    def definition(self) -> dict[str, Any]:
        """Return what the attempt was started with.

        Raises:
            NotFound: it was not kept, or cannot be read.
        """
        try:
            found = json.loads((self.path / "dag.json").read_bytes())
            if isinstance(found, dict) and isinstance(found.get("definition"), str):
                return found
        except (OSError, ValueError):
            pass
        raise NotFound(
            "the definition of this run was not kept", why=f"{self.path / 'dag.json'} is missing or another program's"
        )

    def write_previous(self, document: str) -> None:
        """Keep the status document that the attempt continues."""
        _replace(self.path / "previous.json", document.encode(), sync=True)

    def previous(self) -> str:
        """Return the status document that the attempt continues; empty when it begins anew."""
        try:
            return (self.path / "previous.json").read_text(errors="replace")
        except OSError:
            return ""

    def write_outputs(self, outputs: Mapping[str, Any]) -> None:
        """Keep the outputs of the run."""
        text = formats.pretty_json(outputs, 2)
        _replace(self.path / "outputs.json", text.encode() + b"\n", sync=False)

    def write_conditions(self, conditions: Sequence[Mapping[str, str]]) -> None:
        """Keep why the queued attempt waits; beside its status, which a run may be writing."""
        _replace(self.path / "conditions.json", json.dumps(list(conditions)).encode(), sync=False)

    def conditions(self) -> list[dict[str, str]]:
        """Return why a queued attempt waits, as last noted: `type`, `status`, `reason`, `message`, `checkedAt`."""
        try:
            found = json.loads((self.path / "conditions.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return []
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def request_cancel(self) -> None:
        """Ask whoever runs the attempt to stop it."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path / "CANCEL_REQUESTED", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def is_cancel_requested(self) -> bool:
        """Tell whether somebody asked for a stop."""
        return os.path.exists(self.path / "CANCEL_REQUESTED")

    def hold(self) -> int:
        """Hold the attempt by the descriptor that is returned: as long as it or a copy is open, in any process.

        Raises:
            Conflict: another process holds it.
            Unavailable: its folder is gone, or cannot be written.
        """
        try:
            handle = os.open(self.path / "alive", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            why = f"{self.path}: {os.strerror(error.errno or 0)}"
            raise Unavailable("this attempt cannot be held", why=why, fix="look at paths.data_dir") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise Conflict("this attempt is being run already", why="another process holds it") from None
        with contextlib.suppress(OSError):  # a full disk: then its host is not known, as it was with older records
            os.pwrite(handle, said := socket.gethostname().encode(), 0)
            os.ftruncate(handle, len(said))
        return handle

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Hold the attempt as long as this process lives: however it ends, the kernel lets go.

        Raises:
            Conflict: another process holds it.
        """
        handle = self.hold()
        try:
            yield
        finally:
            os.close(handle)

    def is_alive(self) -> bool:
        """Tell whether a process holds the attempt."""
        try:
            handle = os.open(self.path / "alive", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def may_be_silent(self, seconds: float) -> None:
        """Say to other hosts for how long who holds the attempt may say nothing; unsaid, it is `SILENT_S`."""
        with contextlib.suppress(OSError):
            (self.path / "alive").write_text(f"{socket.gethostname()}\n{seconds:g}")

    def beat(self) -> None:
        """Say to other hosts that the attempt is still being run."""
        with contextlib.suppress(OSError):
            os.utime(self.path / "alive")

    def lives_elsewhere(self) -> bool:
        """Tell whether another host runs the attempt: its locks may not be seen here, so its last word counts."""
        try:
            host, _, silent = (self.path / "alive").read_text(errors="replace").partition("\n")
            age_s = time.time() - os.stat(self.path / "alive").st_mtime
        except OSError:
            return False
        silent_s = float(silent) if _SECONDS.fullmatch(silent) else SILENT_S
        return bool(host) and host != socket.gethostname() and age_s < silent_s

    def show(self) -> Attempt:
        """Let a hidden attempt be the latest one, whole as it is; it is on disk when this returns."""
        path = self.path.with_name(self.path.name.removeprefix("."))
        self.path.rename(path)
        whole.sync(path.parent)
        note_change(path.parent)
        return Attempt(path)

    def hide(self) -> None:
        """Take the attempt out of every list, as a queued one that is dequeued."""
        self.path.rename(self.path.with_name("." + self.path.name))
        note_change(self.path.parent)


class Record(Struct, frozen=True):
    """The folder of one run, a root or a child."""

    run: DagRunRef
    path: Path

    def add_attempt(self, attempt_id: AttemptId, *, now: datetime, hidden: bool = False) -> Attempt:
        """Make the folder of a new attempt, which is the latest one from now on; `hidden`: once it is shown.

        Raises:
            Unavailable: the disk refuses.
        """
        stamp = now.strftime("%Y%m%d_%H%M%S_") + f"{now.microsecond // 1000:03d}Z"
        path = self.path / f"{'.' if hidden else ''}a_{stamp}_{attempt_id}"
        try:
            path.mkdir(mode=0o750, parents=True)
        except OSError as error:
            raise _refused(path, error) from error
        return Attempt(path)

    def begin_attempt(self, attempt_id: AttemptId, snapshot: Mapping[str, Any], *, now: datetime) -> Attempt:
        """Make a new attempt with what it is started with. It is the latest one then, or nothing has changed.

        Raises:
            Unavailable: the disk refuses.
        """
        attempt = self.add_attempt(attempt_id, now=now)
        try:
            attempt.write_definition(snapshot)
        except Unavailable:  # one that says nothing would hide what the one before it came to
            shutil.rmtree(attempt.path, ignore_errors=True)
            raise
        return attempt

    def attempts(self) -> list[Attempt]:
        """Return the attempts that are not hidden, oldest first."""
        try:
            names = sorted(name for name in os.listdir(self.path) if ATTEMPT_FOLDER.match(name))
        except OSError:
            return []
        return [Attempt(self.path / name) for name in names]

    def kept(self) -> Attempt | None:
        """Return the newest attempt whose definition is kept, hidden or not: what a further attempt is made of."""
        try:
            names = [name for name in os.listdir(self.path) if ATTEMPT_FOLDER.match(name.removeprefix("."))]
        except OSError:
            return None
        for name in sorted(names, key=lambda name: name.removeprefix("."), reverse=True):
            if (self.path / name / "dag.json").is_file():
                return Attempt(self.path / name)
        return None

    def latest(self) -> Attempt | None:
        """Return the latest attempt; None when all are hidden."""
        attempts = self.attempts()
        return attempts[-1] if attempts else None

    def child(self, run: DagRunRef) -> Record:
        """Return the record of a child run at any depth, which need not exist yet."""
        return Record(run, self.path / "sub" / _checked(run).run_id)

    def children(self) -> list[str]:
        """Return the run ids of the children, at every depth."""
        try:
            return sorted(name for name in os.listdir(self.path / "sub") if RUN_ID.match(name))
        except OSError:
            return []


class Records:
    """All runs of this host."""

    def __init__(self, folder: Path) -> None:
        """Take `<data>/dag-runs`, which is made with the first run."""
        self._folder = folder

    def create(self, run: DagRunRef, *, now: datetime) -> Record:
        """Make the folder of a new root run.

        Raises:
            Conflict: the DAG has a run of that id.
            Unavailable: the disk refuses, or another process makes a run of the DAG and does not go on.
        """
        with self._turn(_checked(run).name):
            if self._by_id(run) is not None:
                raise _exists(run)
            return self._make(run, now)

    def made(self, run: DagRunRef, *, now: datetime) -> Record:
        """Return the folder of a root run, made anew where there is none or `create` was killed.

        Raises:
            Unavailable: as `create`.
        """
        with self._turn(_checked(run).name):
            return self._by_id(run) or self._make(run, now)

    def _make(self, run: DagRunRef, now: datetime) -> Record:
        """Make the folder of a run whose turn it is; an id that names no folder is of somebody who was killed."""
        where = f"dag-runs/{now:%Y/%m/%d}/dag-run_{now:%Y%m%d_%H%M%S}Z_{run.run_id}"
        path = self._folder / run.name / where
        try:
            taken = self._folder / run.name / "ids" / run.run_id
            handle = os.open(taken, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o640)
            with os.fdopen(handle, "wb") as file:
                file.write(where.encode())
            path.mkdir(mode=0o750, parents=True)
        except OSError as error:
            raise _refused(self._folder, error) from error
        return Record(run, path)

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """Have the ids of a DAG to oneself: one process at a time makes a run of it, and a kill passes the turn on."""
        ids = self._folder / name / "ids"
        try:
            ids.mkdir(mode=0o750, parents=True, exist_ok=True)
            handle = os.open(ids.with_name(".ids.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _refused(self._folder, error) from error
        try:
            until = time.monotonic() + TURN_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:  # not waited for in the kernel: who holds it may have been stopped
                    if time.monotonic() > until:
                        raise Unavailable(
                            "the run cannot be recorded", why=f"who makes a run of {name} does not go on",
                            fix="look for one that was stopped",
                        ) from error  # fmt: skip
                    time.sleep(0.001)
                except OSError as error:
                    raise _refused(self._folder, error) from error
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # a fork of this process may hold a copy
            os.close(handle)

    def find(self, run: DagRunRef) -> Record | None:
        """Return a root run by its id; None when there is none, or only hidden attempts."""
        record = self.find_any(run)
        return record if record is not None and record.latest() is not None else None

    def find_any(self, run: DagRunRef) -> Record | None:
        """Return a root run by its id, also one that only left its definition here and is recorded elsewhere."""
        if not DAG_NAME.match(run.name) or not RUN_ID.match(run.run_id):
            return None
        return self._by_id(run) or self._without_id(run)

    def _without_id(self, run: DagRunRef) -> Record | None:
        if (self._folder / run.name / "ids").is_dir():
            return None  # each of ours has one; a folder of Dagu's alone has none at all
        return next((record for record in self.runs(run.name) if record.run.run_id == run.run_id), None)

    def _by_id(self, run: DagRunRef) -> Record | None:
        try:
            where = (self._folder / run.name / "ids" / run.run_id).read_text()
        except OSError:
            return None
        path = self._folder / run.name / where
        found = RUN_FOLDER.match(path.name)
        return Record(run, path) if found and found[2] == run.run_id and path.is_dir() else None

    def newest(self, name: str) -> Record | None:
        """Return the newest run of a DAG that has an attempt to show."""
        return next((record for record in self.runs(name) if record.latest() is not None), None)

    def names(self) -> list[str]:
        """Return the names of all DAGs that have records."""
        try:
            return sorted(name for name in os.listdir(self._folder) if DAG_NAME.match(name))
        except OSError:
            return []

    def runs(
        self, name: str | None = None, *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[Record]:
        """Yield root runs, newest first, created in `since` ≤ t < `until`; runs of the same second by attempt."""
        names = self.names() if name is None else [name] if DAG_NAME.match(name) else []
        for day in sorted({day for one in names for day in self._days(one)}, reverse=True):
            if (since and day < since.date()) or (until and day > until.date()):
                continue
            found: list[tuple[str, str, Record]] = []
            for one in names:
                folder = self._folder / one / "dag-runs" / f"{day:%Y/%m/%d}"
                for entry in _listed(folder):
                    if parts := RUN_FOLDER.match(entry):
                        found.append((parts[1], entry, Record(DagRunRef(one, parts[2]), folder / entry)))
            for stamp, _, record in _in_order(found):
                at = datetime.strptime(stamp, "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
                if (since is None or at >= since.replace(microsecond=0)) and (until is None or at < until):
                    yield record

    def _days(self, name: str) -> Iterator[date]:
        base = self._folder / name / "dag-runs"
        for year in _listed(base):
            for month in _listed(base / year):
                for day in _listed(base / year / month):
                    with contextlib.suppress(ValueError):
                        yield date(int(year), int(month), int(day))

    def remove(self, record: Record) -> None:
        """Remove the record of a root run with its children; what its steps left is the caller's to remove first."""
        shutil.rmtree(record.path, ignore_errors=True)
        note_change(record.path)
        if record.path.exists():
            return  # the disk refused: what is left of it is found by its id still
        taken = self._folder / record.run.name / "ids" / record.run.run_id
        with (
            contextlib.suppress(OSError, Unavailable),
            self._turn(record.run.name),
        ):  # else the next one of the id does it
            if taken.read_text() == str(record.path.relative_to(self._folder / record.run.name)):
                os.unlink(taken)  # and not that of another run, made since the folder went


def _in_order(found: list[tuple[str, str, Record]]) -> list[tuple[str, str, Record]]:
    """Return runs newest first. A folder's name counts seconds; its first attempt's tells who was first within one."""
    alike = {stamp for stamp, count in Counter(stamp for stamp, _, _ in found).items() if count > 1}

    def place(item: tuple[str, str, Record]) -> tuple[str, str, str]:
        stamp, name, record = item
        first = next(iter(record.attempts()), None) if stamp in alike else None
        return stamp, first.path.name if first else "", name

    return sorted(found, key=place, reverse=True)


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


JOURNAL = ".changes"
"""Below `<data>/dag-runs`: one line, the folder of a root run, each time that something about it changed. Readers that
keep an index follow it; nothing is lost without it, for an index is made anew from the folders."""
_DEPTH = 6
"""Folders between `<data>/dag-runs` and that of a root run: DAG, `dag-runs`, year, month, day, run."""


def note_change(run: Path) -> None:
    """Note that a root run changed. Children are noted by what their root writes."""
    if not RUN_FOLDER.match(run.name):
        return
    root, *place = str(run).rsplit("/", _DEPTH)
    with contextlib.suppress(OSError):  # an index that misses a line is mended as the run is shown
        handle = os.open(f"{root}/{JOURNAL}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(handle, f"{'/'.join(place)}\n".encode())
        finally:
            os.close(handle)


def record_at(folder: Path, where: str) -> Record | None:
    """Return the root run of a line of the journal; None for what is no line of it."""
    parts = where.split("/")
    found = RUN_FOLDER.match(parts[-1])
    if len(parts) != _DEPTH or found is None or not DAG_NAME.match(parts[0]) or ".." in parts:
        return None
    return Record(DagRunRef(parts[0], found[2]), folder / where)


def _refused(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "the run cannot be recorded", why=f"{path}: {os.strerror(error.errno or 0)}",
        fix="look at the disk and the rights of paths.data_dir",
    )  # fmt: skip


def _replace(path: Path, data: bytes, *, sync: bool) -> None:
    """Write a file whole: a reader finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb", buffering=0) as file:
            file.write(data)
            if sync:
                os.fsync(file.fileno())
        os.replace(beside, path)
        if sync:
            whole.sync(path.parent)
    except OSError as error:
        raise Unavailable(
            f"{path.name} of a run cannot be written",
            why=f"{path}: {os.strerror(error.errno or 0)}",
            fix="look at the disk of paths.data_dir: space, inodes, rights",
        ) from error


def _checked(run: DagRunRef) -> DagRunRef:
    """Return `run` if a path may be made of its ids.

    Raises:
        InvalidRequest: a name or an id is malformed.
    """
    if not DAG_NAME.match(run.name):
        raise InvalidRequest("the DAG name is malformed", why=f"{run.name[:64]!r}")
    if not RUN_ID.match(run.run_id):
        raise InvalidRequest("dag-run ID must only contain alphanumeric characters, dashes, and underscores")
    return run


def _exists(run: DagRunRef) -> AlreadyExists:
    return AlreadyExists(
        f"local execution already exists: dag-run ID {run.run_id} already exists for DAG {run.name}",
        fix="leave out --run-id, or retry that run",
    )
