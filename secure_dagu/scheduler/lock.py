"""One active scheduler among several on one folder, which may be shared by hosts: `<data>/scheduler/locks`.

The file `term-<n>.json` with the highest number names the active one. It is made exclusively, so one scheduler wins;
its modification time is the last word of the winner, judged by each standby's own clock. Where the winner's process
has died on the same host the kernel says so at once (`flock`); of another host, silence must last for the threshold.

A scheduler that was paused and wakes up finds a higher term, and does nothing more. Between that look and what it does
next lies a moment that no lock on a shared folder can close: the ids of scheduled runs close it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

_TERM = re.compile(r"term-(\d{1,12})\.json\Z")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_BYTES = 4096


class Holder(Struct, frozen=True, kw_only=True, rename="camel"):
    """Who is active."""

    id: str
    host: str
    boot: str = ""
    """Of the host's kernel: together with `host`, whether the kernel can be asked about the process."""
    pid: int = 0
    released: bool = False
    """It has stopped in good order."""


def holder(instance_id: str) -> Holder:
    """Return this process as a holder."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = _BOOT_ID.read_text().strip()
    return Holder(id=instance_id, host=socket.gethostname(), boot=boot, pid=os.getpid())


class Lock:
    """The lock of one process. Methods block on the disk for a moment, and raise OSError where it refuses."""

    def __init__(self, folder: Path, own: Holder, *, stale_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Take the folder, who we are, how long silence must last, and the clock that tells, in seconds."""
        self._folder, self._own, self._stale_s, self._now = folder, own, stale_s, now
        self._term = 0
        """Ours; 0: we are not active."""
        self._handle = -1
        self._heard: tuple[int, int] = (0, 0)
        """Term and modification time of the last word that we saw of another."""
        self._heard_at = 0.0

    def take(self) -> bool:
        """Become the active one if nobody is; tell whether we are."""
        if self.is_held():
            return True
        self._let_go()
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        terms = self._terms()
        latest = terms[-1] if terms else 0
        if latest and not self._is_over(latest):
            return False
        try:
            handle = os.open(self._path(latest + 1), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False  # somebody was faster
        with contextlib.suppress(OSError):  # a file system without it: silence alone counts
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(handle, msgspec.json.encode(self._own), 0)
        os.fsync(handle)
        self._term, self._handle = latest + 1, handle
        for term in terms:
            self._path(term).unlink(missing_ok=True)
        return self.is_held()

    def is_held(self) -> bool:
        """Tell whether we are active now: our term is there, and none is higher."""
        if not self._term:
            return False
        try:
            ours = os.fstat(self._handle)
            there = os.stat(self._path(self._term))
            if (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev):
                return False
            return self._terms()[-1] == self._term
        except (OSError, IndexError):
            return False

    def beat(self) -> bool:
        """Say that we are alive; tell whether we still are the active one."""
        if not self.is_held():
            return False
        os.utime(self._handle)
        return self.is_held()

    def release(self) -> None:
        """Let another one take over at once."""
        if self._term and self.is_held():
            said = msgspec.json.encode(replace(self._own, released=True))
            os.pwrite(self._handle, said + b" " * 8, 0)
            os.ftruncate(self._handle, len(said))
        self._let_go()

    def active(self) -> Holder | None:
        """Return who was active last."""
        terms = self._terms()
        return self._read(terms[-1]) if terms else None

    def _let_go(self) -> None:
        self._term = 0
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _is_over(self, term: int) -> bool:
        """Tell whether the holder of a term has stopped, was killed on this host, or has been silent for too long."""
        found = self._read(term)
        if found is not None and found.released:
            return True
        is_here = found is not None and found.boot and (found.host, found.boot) == (self._own.host, self._own.boot)
        if is_here and self._is_unlocked(term):
            return True
        try:
            word = (term, os.stat(self._path(term)).st_mtime_ns)
        except FileNotFoundError:
            word = (term, 0)
        now = self._now()
        if word != self._heard:
            self._heard, self._heard_at = word, now
        return now - self._heard_at >= self._stale_s

    def _is_unlocked(self, term: int) -> bool:
        try:
            handle = os.open(self._path(term), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    def _read(self, term: int) -> Holder | None:
        """Return what a term's file says; None while it is being written."""
        try:
            with self._path(term).open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_BYTES), type=Holder)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _terms(self) -> list[int]:
        return sorted(int(found[1]) for name in os.listdir(self._folder) if (found := _TERM.match(name)))

    def _path(self, term: int) -> Path:
        return self._folder / f"term-{term}.json"
