"""Queues of this host: one file an item, in the layout of the workflow language, section 6.4.

    <data>/queue/<queue>/item_<high|low>_<YYYYMMDD_HHMMSS_mmmZ>_<run id>.json
    <data>/queue/<queue>/.paused                 nothing is started from it
    <data>/queue/<queue>/.damaged/               items that cannot be read
    <data>/queue/.bell                           wakes the scheduler (`local.bell`)

The name is the order: high before low, then by time. An item is there once its name is. It is taken out only after what
it asks for is on record elsewhere: a running attempt here, or a run at a coordinator.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct

from secure_dagu.errors import InvalidRequest, NotFound, Unavailable
from secure_dagu.local import bell
from secure_dagu.run.model import DagRunRef
from secure_dagu.store import whole
from secure_dagu.store.records import DAG_NAME

_ITEM = re.compile(r"item_(high|low)_(\d{8}_\d{6}_\d{3})Z_([-A-Za-z0-9_]{1,64})\.json\Z")
_QUEUE = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}\Z")
_MAX_ITEM_BYTES = 64 * 1024


class Item(Struct, frozen=True):
    """One queued run."""

    path: Path
    queue: str
    run: DagRunRef
    queued_at: datetime
    high: bool = False

    def take(self) -> bool:
        """Take the item out of the queue; False when somebody else did."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return False
        return True


class Damaged(Struct, frozen=True):
    """A file that is named as an item and cannot be read as one."""

    path: Path
    why: str

    def quarantine(self) -> None:
        """Put it aside, for a person to look at."""
        aside = self.path.parent / ".damaged"
        with contextlib.suppress(OSError):
            aside.mkdir(mode=0o750, exist_ok=True)
            os.replace(self.path, aside / self.path.name)


class Queues:
    """All queues of this host. Files are read once: an item never changes."""

    def __init__(self, folder: Path) -> None:
        """Take `<data>/queue`, which is made with the first item."""
        self.folder = folder
        self._read: dict[str, dict[str, Item]] = {}

    def put(self, queue: str, run: DagRunRef, *, now: datetime, high: bool = False) -> None:
        """Put a run into a queue; it is on disk when this returns.

        Raises:
            InvalidRequest: the queue's name is malformed.
        """
        folder = self.folder / check_queue(queue)
        body = json.dumps({"name": run.name, "runId": run.run_id}).encode()
        beside = folder / f".{run.name}~{run.run_id}.new"
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            beside.write_bytes(body)
            while True:  # two runs of one id, of two DAGs, may come within a millisecond
                try:
                    os.link(beside, folder / _item_name(run, now, high=high))
                    break
                except FileExistsError:
                    now += timedelta(milliseconds=1)
            bell.ring(self.folder)
            whole.sync(beside)
            os.unlink(beside)
            whole.sync(folder)
        except OSError as error:
            raise Unavailable(
                f"the run cannot be put into the queue {queue}",
                why=f"{folder}: {os.strerror(error.errno or 0)}",
                fix="look at the disk and the rights of paths.data_dir",
            ) from error

    def names(self) -> list[str]:
        """Return the queues that have a folder."""
        return sorted(name for name in _listed(self.folder) if _QUEUE.match(name))

    def items(self, queue: str) -> list[Item]:
        """Return the items of a queue in their order; what is damaged is left out."""
        return [item for item in self.everything(queue) if isinstance(item, Item)]

    def everything(self, queue: str) -> Iterator[Item | Damaged]:
        """Yield the items of a queue in their order, and what is named like one and is none."""
        folder = self.folder / check_queue(queue)
        known = self._read.get(queue, {})
        found: dict[str, Item] = {}
        for name in sorted(_listed(folder)):
            item = known.get(name)
            if item is None:
                read = _read(folder / name, queue) if _ITEM.match(name) else None
                if isinstance(read, Damaged):
                    yield read
                if not isinstance(read, Item):
                    continue
                item = read
            found[name] = item
            yield item
        self._read[queue] = found

    def find(self, queue: str, run: DagRunRef | None) -> Item:
        """Return the item of a run, or the first one.

        Raises:
            NotFound: there is none.
        """
        for item in self.items(queue):
            if run is None or item.run == run:
                return item
        if run is None:
            raise NotFound(f"no dag-run found in queue {queue}")
        raise NotFound(f"no dag-run found in queue {queue}", why=f"{run.name}:{run.run_id} is not queued there")

    def pause(self, queue: str, *, paused: bool) -> None:
        """Hold a queue, or let it go on."""
        flag = self.folder / check_queue(queue) / ".paused"
        try:
            if paused:
                flag.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                flag.touch(mode=0o600)
            else:
                flag.unlink(missing_ok=True)
        except OSError as error:
            why = f"{flag}: {os.strerror(error.errno or 0)}"
            raise Unavailable(f"the queue {queue} cannot be held", why=why, fix="look at paths.data_dir") from error
        bell.ring(self.folder)

    def is_paused(self, queue: str) -> bool:
        """Tell whether a queue is held."""
        return os.path.exists(self.folder / queue / ".paused")


def _item_name(run: DagRunRef, now: datetime, *, high: bool) -> str:
    stamp = now.strftime("%Y%m%d_%H%M%S_") + f"{now.microsecond // 1000:03d}Z"
    return f"item_{'high' if high else 'low'}_{stamp}_{run.run_id}.json"


def _read(path: Path, queue: str) -> Item | Damaged | None:
    """Return an item; None when somebody took it meanwhile."""
    parts = _ITEM.match(path.name)
    assert parts is not None, "only items come here"
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_ITEM_BYTES))
        name, run_id = _named(found)
        at = datetime.strptime(parts[2][:15], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Damaged(path, str(error) or type(error).__name__)
    if not DAG_NAME.match(name) or run_id != parts[3]:
        return Damaged(path, "it names another run than its file")
    at += timedelta(milliseconds=int(parts[2][-3:]))
    return Item(path, queue, DagRunRef(name, run_id), at, parts[1] == "high")


def _named(found: Any) -> tuple[str, str]:
    """Return the run that an item names, in our form or in that of Dagu."""
    if "dagRun" in found:
        return str(found["dagRun"]["name"]), str(found["dagRun"]["id"])
    return str(found["name"]), str(found["runId"])


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def check_queue(queue: str) -> str:
    """Return a queue's name as it is.

    Raises:
        InvalidRequest: it is malformed.
    """
    if not _QUEUE.match(queue):
        raise InvalidRequest(
            f"{queue[:64]!r} is no name of a queue", fix="use at most 64 letters, digits, `_`, `-` and `.`"
        )
    return queue
