"""The exception ledger of a host: kept in `<home>/exceptions.jsonl`, asked at start, watched while a service runs.

What it says is decided in `security.exceptions`; here are the file and the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from secure_dagu.config.home import Home
from secure_dagu.config.load import Loaded
from secure_dagu.config.peers import Purpose
from secure_dagu.errors import ConfigError, IntegrityViolation, SecureDaguError
from secure_dagu.security import exceptions
from secure_dagu.security.exceptions import EMPTY, WEAKNESSES, Exemption, Kind, Ledger
from secure_dagu.security.policy import Mode, Policy, UngrantedLabels
from secure_dagu.telemetry import metrics

if TYPE_CHECKING:
    from secure_dagu.audit.events import Event, Trail

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
"""How soon a revoked exception ends in a running process; one that expires ends on time."""


def ledger_file(home: Home) -> Path:
    """Return where the ledger is; it need not exist."""
    return home.config_dir / "exceptions.jsonl"


# -- what a configuration weakens --------------------------------------------------------------------------------------


def wanted(loaded: Loaded, purpose: Purpose) -> tuple[Kind, ...]:
    """Return what the configuration of a process weakens. Plaintext that stays on this host weakens nothing."""
    settings = loaded.settings
    found: list[Kind] = []
    if settings.peer.insecure:
        if not stays_on_this_host(loaded, purpose):
            found.append(Kind.PLAINTEXT)
    elif settings.peer.min_tls_version == "1.2":
        found.append(Kind.TLS_1_2)
    if purpose is Purpose.COORDINATOR:
        if settings.policy.mode == Mode.DRY_RUN:
            found.append(Kind.POLICY_DRY_RUN)
        if settings.peer.ungranted_labels == UngrantedLabels.ALLOW:
            found.append(Kind.UNGRANTED_LABELS)
    if purpose is not Purpose.OPERATOR:
        own = settings.coordinator if purpose is Purpose.COORDINATOR else settings.worker
        found += _public_metrics(loaded, own.metrics_access, own.health_host, own.health_port)
    return tuple(found)


def wanted_by_scheduler(loaded: Loaded) -> tuple[Kind, ...]:
    """Return what the health port of a scheduler weakens; its way to coordinators is judged as an operator's."""
    own = loaded.settings.scheduler
    return _public_metrics(loaded, own.metrics_access, own.host, own.port)


def _public_metrics(loaded: Loaded, access: str, host: str, port: int) -> tuple[Kind, ...]:
    is_public = access == "public" or (access == "private" and loaded.settings.core.metrics == "public")
    return (Kind.METRICS_PUBLIC,) if is_public and port and not is_loopback(host) else ()


def wanted_by_web(loaded: Loaded) -> tuple[Kind, ...]:
    """Return what the configuration of a web server weakens. What stays on this host weakens nothing."""
    settings = loaded.settings
    if is_loopback(settings.core.host):
        return ()
    found = [Kind.HTTP_PLAINTEXT] if settings.tls.insecure else []
    return (*found, Kind.NO_LOGIN) if settings.auth.mode == "none" else tuple(found)


def stays_on_this_host(loaded: Loaded, purpose: Purpose) -> bool:
    """Tell whether a process listens, or dials, on loopback addresses only."""
    settings = loaded.settings
    if purpose is Purpose.COORDINATOR:
        return is_loopback(settings.coordinator.host)
    dialled = settings.worker.coordinators if purpose is Purpose.WORKER else settings.client.coordinators
    return all(is_loopback(item.host) for item in dialled)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address never leaves this host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class InForce:
    """The exceptions that a process was started with, and what became of them since."""

    def __init__(self, home: Home, ledger: Ledger, kinds: tuple[Kind, ...], now: datetime) -> None:
        self._home = home
        self._signs = _signs(ledger_file(home))
        self._ledger = ledger
        self._now: dict[Kind, Exemption] = {
            kind: found for kind in kinds if (found := ledger.valid(kind, now)) is not None
        }
        self._show()

    def permits(self, kind: Kind) -> bool:
        """Tell whether a weakening holds now."""
        return kind in self._now

    def facts(self) -> list[dict[str, str]]:
        """Return what `/health` says of them."""
        return [
            {"kind": kind.value, "id": item.id, "owner": item.owner, "until": item.until.isoformat()}
            for kind, item in self._now.items()
        ]

    def __iter__(self) -> Iterator[Exemption]:
        return iter(tuple(self._now.values()))

    def look(self, now: datetime) -> list[tuple[Exemption, str]]:
        """Return what has ended since the last look, each with why; a later entry takes over from one that ends."""
        why = ""
        path = ledger_file(self._home)
        is_news = (signs := _signs(path)) != self._signs
        if is_news:
            self._signs = signs
            try:
                self._ledger = read_ledger(self._home)
            except SecureDaguError as error:  # nobody can say that an exception still holds
                log.error("exceptions.unreadable", **error.as_dict())  # noqa: TRY400  no bug, no trace
                self._ledger, why = EMPTY, error.code
        ended = []
        for kind, item in tuple(self._now.items()):
            found = self._ledger.valid(kind, now)
            if found is not None:
                self._now[kind] = found
                continue
            del self._now[kind]
            ended.append((item, why or ("expired" if now >= item.until else "revoked")))
        if ended or is_news:
            self._show()
        return ended

    def next_end(self) -> datetime | None:
        """Return when the first of them ends."""
        return min((item.until for item in self._now.values()), default=None)

    def _show(self) -> None:
        for kind in Kind:
            item = self._now.get(kind)
            metrics.SECURITY_EXCEPTIONS.labels(kind.value).set(0 if item is None else 1)
            if item is not None:
                metrics.SECURITY_EXCEPTION_EXPIRY.labels(kind.value).set(item.until.timestamp())
            else:
                metrics.SECURITY_EXCEPTION_EXPIRY.remove_by_labels({"kind": kind.value})


def admitted(loaded: Loaded, purpose: Purpose) -> InForce:
    """Return the exceptions that the configuration of a process needs now.

    Raises:
        ConfigError: one is missing, has ended, or the ledger cannot be read; with the command that grants it.
        IntegrityViolation: the ledger was changed by hand.
    """
    kinds = wanted(loaded, purpose)
    if loaded.settings.peer.insecure and Kind.PLAINTEXT not in kinds and purpose is not Purpose.OPERATOR:
        log.info("exception.not_needed", setting="peer.insecure=true", why="it stays on this host's loopback addresses")
    return held_for(loaded, kinds)


def held_for(loaded: Loaded, kinds: tuple[Kind, ...]) -> InForce:
    """Return the exceptions for these weakenings now.

    Raises:
        ConfigError, IntegrityViolation: as `admitted`.
    """
    now = datetime.now(UTC)
    if not kinds:
        return InForce(loaded.home, EMPTY, (), now)
    ledger = read_ledger(loaded.home)
    missing = [kind for kind in kinds if ledger.valid(kind, now) is None]
    if missing:
        raise _needs_exception(loaded, ledger, missing, now)
    return InForce(loaded.home, ledger, kinds, now)


def _needs_exception(loaded: Loaded, ledger: Ledger, missing: list[Kind], now: datetime) -> ConfigError:
    first = missing[0]
    weakness = WEAKNESSES[first]
    before = [item for item in ledger.exemptions if item.kind is first]
    was = f"; the last one, {before[-1].id} of {before[-1].owner}, is {before[-1].state(now)}" if before else ""
    said = f" --dagu-home {loaded.home.config_dir}" if loaded.home.said == "--dagu-home" else ""
    commands = " && ".join(exceptions.command_for(kind, now) + said for kind in missing)
    local = ", or stay on this host (127.0.0.1)" if first is Kind.PLAINTEXT else ""
    return ConfigError(
        f"{', '.join(WEAKNESSES[kind].setting for kind in missing)} needs an exception",
        why=f"{weakness.means}; {ledger_file(loaded.home)} has no valid entry for it{was}",
        fix=f"remove the setting, or say who answers for it: {commands}{local}",
    )


def policy_of(held: InForce) -> Policy:
    """Return what a coordinator refuses beyond role and identity, as its exceptions stand now."""
    return Policy(
        mode=Mode.DRY_RUN if held.permits(Kind.POLICY_DRY_RUN) else Mode.ENFORCE,
        ungranted_labels=UngrantedLabels.ALLOW if held.permits(Kind.UNGRANTED_LABELS) else UngrantedLabels.DENY,
    )


# -- while a service runs ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def watching(held: InForce, ended: Callable[[Kind], None], trail: Trail | None = None) -> AsyncIterator[None]:
    """Say which exceptions are in force, and watch them for the time of the context.

    `ended` is called once for each that expires or is revoked; it takes the weakening back. `trail`: None in a process
    that keeps no audit log.
    """
    for item in held:
        weakness = WEAKNESSES[item.kind]
        log.warning(
            "exception.in_force", setting=weakness.setting, means=weakness.means, id=item.id, owner=item.owner,
            reason=item.reason, until=item.until.isoformat(),
        )  # fmt: skip
        if trail is not None and item.kind not in _TRANSPORT:  # of those the trail has been told with the transport
            from secure_dagu.assembly import exception_events

            await trail.record(exception_events.in_force(item))
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(held, ended, trail), name="exceptions")
        try:
            yield
        finally:
            watch.cancel()


_TRANSPORT = frozenset({Kind.PLAINTEXT, Kind.TLS_1_2})


async def _watch(held: InForce, ended: Callable[[Kind], None], trail: Trail | None) -> None:
    while (end := held.next_end()) is not None:
        left = (end - datetime.now(UTC)).total_seconds()
        await asyncio.sleep(min(max(left, 0.0), LOOK_EVERY_S))
        for item, why in held.look(datetime.now(UTC)):
            ended(item.kind)
            log.warning(
                "exception.ended", setting=WEAKNESSES[item.kind].setting, id=item.id, why=why,
                now=WEAKNESSES[item.kind].ends,
            )  # fmt: skip
            if trail is not None:
                from secure_dagu.assembly import exception_events

                trail.note(exception_events.ended(item, why))


# -- the file ----------------------------------------------------------------------------------------------------------


def read_ledger(home: Home) -> Ledger:
    """Return the ledger of a home; an absent file is an empty one.

    Raises:
        ConfigError: it cannot be read, or somebody else can write it.
        IntegrityViolation: its chain is broken.
    """
    try:
        file = os.open(ledger_file(home), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return EMPTY
    except OSError as error:
        raise _unusable(home, error.strerror or str(error)) from error
    try:
        return exceptions.read(_content(home, file))
    finally:
        os.close(file)


def grant(
    home: Home, *, kind: Kind, owner: str, reason: str, until: datetime, by: str, record: Callable[[Event], None]
) -> Exemption:
    """Add an exception; it is in the audit log and on disk when this returns.

    Raises:
        InvalidRequest: `security.exceptions.granted`.
        ConfigError, IntegrityViolation: the ledger cannot be used.
    """
    from secure_dagu.assembly import exception_events

    now = exceptions.utc(datetime.now(UTC))
    with _locked(home) as (file, ledger):
        line, item, head = exceptions.granted(
            ledger, kind=kind, owner=owner, reason=reason, until=until, by=by, now=now
        )
        record(exception_events.granted(item, head))
        _append(file, line)
    return item


def revoke(home: Home, name: str, *, by: str, record: Callable[[Event], None]) -> Exemption:
    """End an exception before its time.

    Raises:
        NotFound, InvalidRequest: `security.exceptions.revoked`.
        ConfigError, IntegrityViolation: the ledger cannot be used.
    """
    from secure_dagu.assembly import exception_events

    now = exceptions.utc(datetime.now(UTC))
    with _locked(home) as (file, ledger):
        line, item, head = exceptions.revoked(ledger, name, by=by, now=now)
        record(exception_events.withdrawn(item, head))
        _append(file, line)
    return item


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[tuple[int, Ledger]]:
    path = ledger_file(home)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(home, error.strerror or str(error)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file, exceptions.read(_content(home, file))
    finally:
        os.close(file)


def _append(file: int, line: bytes) -> None:
    if os.write(file, line) != len(line):
        raise IntegrityViolation("the exception ledger took half a line", why="the disk is full", fix="make room")
    os.fsync(file)


def _content(home: Home, file: int) -> bytes:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise _unusable(home, "it is not a regular file of this user with mode 0600")
    return os.pread(file, exceptions.MAX_BYTES + 1, 0)


def _unusable(home: Home, why: str) -> ConfigError:
    path = ledger_file(home)
    return ConfigError("the exception ledger cannot be used", why=f"{path}: {why}", fix=f"look at `ls -l {path}`")


def _signs(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode
