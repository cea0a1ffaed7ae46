"""One folder, one chain, one writer: lines in files that are only ever appended to.

Everything here blocks; `audit.log` runs it on a thread of its own, commands call it as it is. A batch is on disk whole
or not at all: what a full disk cut short is taken back before the refusal is told.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from secure_dagu.audit import chain
from secure_dagu.audit.chain import MAX_LINE, Broken, Origin, Place
from secure_dagu.audit.checkpoints import Signer, load_or_make
from secure_dagu.audit.events import SYSTEM, Action, Event
from secure_dagu.errors import ConfigError, IntegrityViolation, Unavailable

MAX_FILE = 64 * 1024 * 1024
"""Bytes after which the next file begins."""
SIGN_RECORDS = 1_000
"""Records after which a checkpoint is signed."""
SIGN_AFTER_S = 10.0
"""Seconds after which one is signed if there are new records."""
HEAD_FILE = "checkpoint.json"
"""A copy of the newest checkpoint: how far the log goes at least."""
_LOCK_FILE = "lock"
_SUFFIX = ".jsonl"

Stamped = tuple[Event, datetime]


class Journal:
    """Append events durably. Use `opened`."""

    def __init__(self, folder: Path, *, origin: Origin, signer: Signer, max_file: int) -> None:
        self.folder = folder
        self.place = Place()
        self._origin = origin
        self._signer = signer
        self._max_file = max_file
        self._fd = -1
        self._size = 0
        self._unsigned = 0
        self._signed_at = time.monotonic()
        self._broken = ""
        self.written: list[bytes] = []
        """The lines of the last `append` or `sign`; after opening, all that opening had to say."""

    def append(self, events: Sequence[Stamped]) -> None:
        """Write events and return when they are on disk, all of them.

        Raises:
            Unavailable: none of them is.
        """
        lines, place = [], self.place
        for event, at in events:
            line, place = chain.line_of(event, after=place, at=at, origin=self._origin)
            lines.append(line)
        head = None
        signs = self._unsigned + len(lines) >= SIGN_RECORDS or self._size + sum(map(len, lines)) >= self._max_file
        if signs:
            head, place = self._checkpoint(place)
            lines.append(head)
        self._write(lines)
        self.place, self.written = place, lines
        self._unsigned = 0 if signs else self._unsigned + len(lines)
        if head is not None:
            self._keep_head(head)
        if self._size >= self._max_file:
            self._next_file()

    def sign(self, *, only_after_s: float = 0.0) -> bool:
        """Write a checkpoint if there are records since the last one and that is some seconds ago; tell whether.

        Raises:
            Unavailable: it cannot be written.
        """
        if not self._unsigned or time.monotonic() - self._signed_at < only_after_s:
            return False
        line, place = self._checkpoint(self.place)
        self._write([line])
        self.place, self.written, self._unsigned = place, [line], 0
        self._keep_head(line)
        return True

    def _checkpoint(self, after: Place) -> tuple[bytes, Place]:
        at = datetime.now(UTC)
        return chain.line_of(self._signer.checkpoint(after, at), after=after, at=at, origin=self._origin)

    @property
    def is_whole(self) -> bool:
        """Tell whether the log is still what was written; False for good once it is not, and nothing is written."""
        return not self._broken

    def _check_untouched(self) -> None:
        """See that nobody has cut, extended or removed the file while it was ours."""
        facts = os.fstat(self._fd)
        if facts.st_size != self._size or not facts.st_nlink:
            self._broken = f"somebody else has changed its newest file after record {self.place.seq}"
            raise self._refusal()

    def _refusal(self) -> Unavailable:
        return Unavailable(
            "the audit log cannot be written", why=self._broken,
            fix="look with `secure-dagu audit verify`, then start again",
        )  # fmt: skip

    def _write(self, lines: Sequence[bytes]) -> None:
        if self._broken:
            raise self._refusal()
        self._check_untouched()
        data = b"".join(lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError as problem:
            self._take_back(problem)
            raise Unavailable(
                "the audit log cannot be written", why=problem.strerror or type(problem).__name__,
                fix="make room for the audit log; nothing is done that cannot be recorded",
            ) from problem  # fmt: skip
        self._size += len(data)

    def _take_back(self, problem: OSError) -> None:
        """Remove what may have been written of a batch that is refused; if even that fails, write nothing any more."""
        try:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        except OSError:
            self._broken = f"{problem.strerror}, and what was half written cannot be removed"

    def _keep_head(self, line: bytes) -> None:
        self._signed_at = time.monotonic()
        # Not being able to keep the copy takes nothing from the log: the next one is tried again.
        with contextlib.suppress(OSError):
            path = self.folder / (HEAD_FILE + ".new")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(line)
                file.flush()
                os.fdatasync(fd)
            path.rename(self.folder / HEAD_FILE)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _next_file(self) -> None:
        """Begin a file; while that fails the old one grows on."""
        with contextlib.suppress(OSError):
            fd = _new_file(self.folder, self.place.seq + 1)
            os.close(self._fd)
            self._fd, self._size = fd, 0

    def take_up(self) -> list[str]:
        """Find the end of the chain and check its last file; return what a crash left to be said.

        Raises:
            IntegrityViolation: the log does not go as far as its newest checkpoint says, or its end is damaged.
        """
        files = files_of(self.folder)
        while len(files) > 1 and files[-1].stat().st_size == 0:  # a crash as it was begun
            files.pop().unlink()
        if not files:
            self._fd = _new_file(self.folder, 1)
            last, torn = Place(), 0
        else:
            self._fd = os.open(files[-1], os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
            last, torn = self._checked(files[-1])
        found = [f"{torn} bytes of a line were removed"] if torn else []
        head = head_of(self.folder)
        if head is None and last.seq:
            found.append(f"{HEAD_FILE} was missing")
        if head is not None and head.seq > last.seq:
            raise damaged(self.folder, last.seq + 1, f"a checkpoint says that it goes to {head.seq} at least")
        self.place = last
        self._unsigned = last.seq - (head.seq if head is not None else 0)
        return found

    def _checked(self, path: Path) -> tuple[Place, int]:
        head = head_of(self.folder)
        place: Place | None = None
        unsigned_from = 0
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                if place is None:
                    place = _before(line, int(path.stem))
                after = chain.follows(line, place)
                if isinstance(after, Broken):
                    if after.flaw is chain.Flaw.TORN and not file.readline(1):
                        os.ftruncate(self._fd, unsigned_from)
                        os.fsync(self._fd)
                        self._size = unsigned_from
                        return place, len(line)
                    raise damaged(self.folder, after.seq, after.text)
                place = after
                unsigned_from += len(line)
                if head is not None and place.seq == head.seq and place.hash != head.hash:
                    raise damaged(self.folder, place.seq, "its newest checkpoint has another hash")
        self._size = unsigned_from
        return place or Place(), 0

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def opened(
    folder: Path, *, host: str, source: str, wait_s: float = 10.0, max_file: int = MAX_FILE
) -> Iterator[Journal]:
    """Open the log of a folder, which is made if there is none; signed and closed at the end.

    Args:
        host: this host's name, for the records.
        source: which part of the program writes.
        wait_s: how long another writer may hold the folder.
        max_file: bytes of one file.

    Raises:
        Unavailable: another process writes here, or the disk refuses.
        IntegrityViolation: what is there is damaged.
        ConfigError: the folder or its key cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as problem:
        raise ConfigError(f"the audit log {folder} cannot be opened", why=problem.strerror or "") from problem
    try:
        _lock(lock, folder, wait_s)
        signer, is_new = load_or_make(folder)
        journal = Journal(folder, origin=Origin(host=host, source=source), signer=signer, max_file=max_file)
        try:
            found = journal.take_up()
            began = [_stamped(Action.AUDIT_KEY_MADE, target=f"key:{signer.public}")] if is_new else []
            began += [_stamped(Action.AUDIT_RECOVERED, reason="; ".join(found))] if found else []
            if began:
                journal.append(began)
                lines = journal.written
                journal.sign()
                journal.written = [*lines, *journal.written]
            yield journal
            with contextlib.suppress(Unavailable):  # every record is on disk; the next writer signs them
                journal.sign()
        finally:
            journal.close()
    finally:
        os.close(lock)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a log in the order of the chain; a name is the number of the first record."""
    return sorted(path for path in folder.glob("*" + _SUFFIX) if path.stem.isdecimal())


def head_of(folder: Path) -> Place | None:
    """Return the place of the newest checkpoint's copy; None when there is none or it is no record."""
    line = head_line(folder)
    return chain.place_of(line) if line else None


def head_line(folder: Path) -> bytes:
    """Return the newest checkpoint's copy as it is; empty when there is none."""
    try:
        with (folder / HEAD_FILE).open("rb") as file:
            return file.readline(MAX_LINE)
    except OSError:
        return b""


def damaged(folder: Path, seq: int, why: str) -> IntegrityViolation:
    """Return the error of a log that is not what was written."""
    return IntegrityViolation(
        f"the audit log {folder} is damaged at record {seq}",
        why=why,
        fix="look with `secure-dagu audit verify`; keep the folder as evidence: move it away, and a new log begins",
    )


def _before(line: bytes, seq: int) -> Place:
    """Return the place before a file's first line, whose number its name says."""
    said = chain.before(line)
    return Place(seq - 1, said.hash if said is not None else chain.START)


def _new_file(folder: Path, seq: int) -> int:
    path = folder / f"{seq:012d}{_SUFFIX}"
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return fd


def _stamped(action: Action, *, target: str = "", reason: str = "") -> Stamped:
    return Event(action=action, actor=SYSTEM, target=target, reason=reason), datetime.now(UTC)


def _lock(fd: int, folder: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise Unavailable(
                    f"another process writes the audit log {folder}", why="a log has one writer",
                    fix="stop the other server, start-all or coordinator of this data directory, or give it its own",
                ) from None  # fmt: skip
            time.sleep(0.02)
        else:
            return
