"""The shared folder in which coordinators and schedulers say where they are (protocol, section 9.2).

One file for each instance, `<folder>/<service>/<safe(id)>.json`, whose modification time is its last word. What a file
says is a hint and no proof: the certificate at the other end must prove the role and the name that was dialled. Files
that are not what an instance of ours would write are left alone and named once in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import random
import re
import secrets
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final

import msgspec
import structlog
from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dispatch.address import host_port
from secure_dagu.store.blobs import safe

log = structlog.get_logger()

HEARTBEAT_S: Final = 10.0
STALE_S: Final = 30.0
CACHE_S: Final = 3.0
"""How long what was read is believed; nothing found is asked again at once."""
COLLECT_BETWEEN_S: Final = (300.0, 3600.0)
DIR_MODE: Final = 0o750
FILE_MODE: Final = 0o600
MAX_FILES: Final = 256
MAX_BYTES: Final = 4096
"""One real entry has about 150 bytes."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_COLLECTED = re.compile(r".*\.json\.gc\.\d+\.\d+\.\d+")


class Service(StrEnum):
    """Who registers; the name of its folder."""

    COORDINATOR = "coordinator"
    SCHEDULER = "scheduler"


class Status(IntEnum):
    """What an instance says of itself."""

    UNKNOWN = 0
    ACTIVE = 1
    """Serves; of schedulers: the one that holds the lock."""
    INACTIVE = 2


class Instance(Struct, frozen=True, kw_only=True, rename="camel"):
    """One coordinator or scheduler as its file says it. The keys are those of the protocol."""

    id: str
    host: str
    port: int
    """0: a scheduler that listens nowhere."""
    pid: int
    status: int = Status.ACTIVE
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def address(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return host_port(self.host, self.port)


class Registry:
    """The folder. All methods block on the disk for a moment; `known` does not."""

    def __init__(self, folder: Path) -> None:
        """Take the folder (`paths.service_registry_dir`); nothing is touched yet."""
        self.folder = folder
        self._cached: dict[Service, tuple[float, tuple[Instance, ...]]] = {}
        self._warned: set[str] = set()

    # ── an instance of its own ───────────────────────────────────────────────────────────────────────────────────────

    def write(self, service: Service, instance: Instance) -> None:
        """Write an instance's file, atomically.

        Raises:
            OSError: the disk refuses.
        """
        place = self._place(service)
        for directory in (self.folder, place):
            directory.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        path = place / file_name(instance.id)
        new = place / f".{path.name}.{secrets.token_hex(6)}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(instance))
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def beat(self, service: Service, instance: Instance) -> None:
        """Say that an instance is alive: touch its file, made again where it is missing or is not ours any more.

        Raises:
            OSError: the disk refuses.
        """
        try:
            fd = os.open(self._place(service) / file_name(instance.id), _READ)
        except OSError:
            self.write(service, instance)
            return
        try:
            if not _is_plain(os.fstat(fd)) or _parse(os.read(fd, MAX_BYTES + 1)) != instance:
                self.write(service, instance)
            else:
                os.utime(fd)
        finally:
            os.close(fd)

    def remove(self, service: Service, instance: Instance) -> None:
        """Take an instance out of the folder; nothing happens when it is not there."""
        (self._place(service) / file_name(instance.id)).unlink(missing_ok=True)

    def collect(self, service: Service) -> None:
        """Delete what instances left behind that went without a word, and what other readers set aside."""
        place = self._place(service)
        now = time.time()
        for number, name in enumerate(_names(place)):
            path = place / name
            with contextlib.suppress(OSError):
                if _COLLECTED.fullmatch(name):
                    path.unlink()
                elif _is_entry(name) and now - path.lstat().st_mtime > STALE_S and stat.S_ISREG(path.lstat().st_mode):
                    # Set aside first: one that comes back meanwhile finds its file missing, and makes it again.
                    aside = path.with_name(f"{name}.gc.{os.getpid()}.{time.time_ns()}.{number}")
                    path.rename(aside)
                    aside.unlink()

    # ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, service: Service) -> tuple[Instance, ...]:
        """Return the live instances, the newest first; of those with one address only the newest.

        A folder or file that cannot be used counts as absent and is named once in the log.
        """
        at, found = self._cached.get(service, (0.0, ()))
        if found and time.monotonic() - at < CACHE_S:
            return found
        place = self._place(service)
        by_address: dict[str, Instance] = {}
        for name in _names(place):
            if not _is_entry(name):
                continue
            instance = self._read_one(place / name)
            if instance is None:
                continue
            key = instance.address if service is Service.COORDINATOR else instance.id
            if key not in by_address or by_address[key].started_at < instance.started_at:
                by_address[key] = instance
        found = tuple(sorted(by_address.values(), key=lambda one: (one.started_at, one.id), reverse=True))
        self._cached[service] = (time.monotonic(), found)
        return found

    async def known(self, service: Service) -> tuple[Instance, ...]:
        """Return the same without holding up the loop: the folder may be on another machine's disk."""
        at, found = self._cached.get(service, (0.0, ()))
        if found and time.monotonic() - at < CACHE_S:
            return found
        return await asyncio.to_thread(self.read, service)

    def _read_one(self, path: Path) -> Instance | None:
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._ignored(path, error.strerror or "it cannot be opened")
        try:
            facts = os.fstat(fd)
            if not _is_plain(facts):
                return self._ignored(path, "it is no plain file, or somebody else may write to it")
            age = time.time() - facts.st_mtime
            if age > STALE_S:
                return None
            if age < -STALE_S:
                return self._ignored(path, "its time is in the future; compare the clocks of both hosts")
            raw = os.read(fd, MAX_BYTES + 1)
        except OSError as error:
            return self._ignored(path, error.strerror or "it cannot be read")
        finally:
            os.close(fd)
        instance = _parse(raw)
        if instance is None:
            return self._ignored(path, "it does not say where an instance is")
        if path.name != file_name(instance.id):
            return self._ignored(path, "it speaks for an instance of another name")
        return instance

    def _ignored(self, path: Path, why: str) -> Instance | None:
        if path.name not in self._warned and len(self._warned) < MAX_FILES:
            self._warned.add(path.name)
            log.warning("registry.entry_ignored", file=str(path), why=why)
        return None

    def _place(self, service: Service) -> Path:
        return self.folder / service.value


@contextlib.asynccontextmanager
async def registered(
    registry: Registry, service: Service, instance: Instance
) -> AsyncIterator[Callable[[Status], None]]:
    """Keep an instance in the folder for the time of the context: a word every 10 s, and gone at the end.

    What is yielded changes its status: call it whenever that changes. A disk that refuses is logged and tried again.
    """
    present = [instance]
    woken = asyncio.Event()
    failed = False
    is_over = False
    writing = threading.Lock()

    def beat() -> None:
        with writing:  # one that is still on its thread at the end must not make the file again
            if not is_over:
                registry.beat(service, present[0])

    def tell(status: Status) -> None:
        present[0] = replace(present[0], status=int(status))
        woken.set()

    async def once() -> None:
        nonlocal failed
        try:
            await asyncio.to_thread(beat)
        except OSError as error:
            if not failed:
                log.warning("registry.not_written", folder=str(registry.folder), why=error.strerror)
            failed = True
        else:
            failed = False

    async def keep() -> None:
        loop = asyncio.get_running_loop()
        collect_at = loop.time() + random.uniform(*COLLECT_BETWEEN_S)  # noqa: S311  jitter is no secret
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await woken.wait()
            woken.clear()
            await once()
            if loop.time() >= collect_at:
                collect_at = loop.time() + random.uniform(*COLLECT_BETWEEN_S)  # noqa: S311  as above
                await asyncio.to_thread(registry.collect, service)

    await once()
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(keep(), name=f"registry of {service}s")
        try:
            yield tell
        finally:
            keeping.cancel()
            with writing, contextlib.suppress(OSError):
                is_over = True
                registry.remove(service, present[0])


def file_name(instance_id: str) -> str:
    """Return the name of an instance's file."""
    return f"{safe(instance_id)}.json"


_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _is_entry(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def _is_plain(facts: os.stat_result) -> bool:
    return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and not facts.st_mode & stat.S_IWOTH


def _names(place: Path) -> Iterator[str]:
    """Yield the first names in a folder, in no order; none where it cannot be read."""
    try:
        with os.scandir(place) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_FILES:
                    log.warning("registry.too_many_files", folder=str(place), limit=MAX_FILES)
                    return
                yield entry.name
    except OSError:
        return


def _parse(raw: bytes) -> Instance | None:
    """Return what a file says; None unless every value is what it should be."""
    if len(raw) > MAX_BYTES:
        return None
    try:
        instance = msgspec.json.decode(raw, type=Instance)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    is_usable = (
        0 < len(instance.id) <= 255
        and instance.id.isprintable()
        and 0 <= instance.port <= 65535
        and instance.status in (0, 1, 2)
        and instance.started_at.tzinfo is not None
        and _is_host(instance.host)
    )
    return instance if is_usable else None


def _is_host(text: str) -> bool:
    if len(text) <= 253 and _HOST.fullmatch(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
