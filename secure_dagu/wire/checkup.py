"""What a doctor asks of a coordinator over gRPC: is it serving, what does its clock say, may I come in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct

from secure_dagu.dispatch.model import Caller, Role, WorkerId, WorkerStats
from secure_dagu.errors import SecureDaguError
from secure_dagu.wire import fields
from secure_dagu.wire.channel import HEALTH_CHECK, SERVING, Channel
from secure_dagu.wire.client import RemoteCoordinator

CHECK_S = 5.0
MAX_ADVERTISED = 16


class Health(Struct, frozen=True, kw_only=True):
    """The answer of a health check."""

    is_serving: bool
    clock: datetime | None
    """The coordinator's time; None from one that does not tell it."""
    advertised: tuple[str, ...]
    """`host:port` of each address that it writes into tasks."""


async def health(channel: Channel) -> Health:
    """Ask a coordinator for its health.

    Raises:
        SecureDaguError: whatever it answered, or why it could not be asked.
    """
    told: dict[str, str | bytes] = {}
    answer = await channel.call(HEALTH_CHECK, b"", CHECK_S, told)
    advertised = [word for word in str(told.get(fields.ADVERTISE_KEY, "")).split(",") if word]
    return Health(
        is_serving=answer == SERVING,
        clock=_time(told.get(fields.TIME_KEY)),
        advertised=tuple(advertised[:MAX_ADVERTISED]),
    )


async def admission(channel: Channel, *, name: str, labels: Mapping[str, str]) -> SecureDaguError | None:
    """Return why a worker of this name may not come with these labels; None when it may. No worker appears by it."""
    worker = WorkerId(name.partition("@")[0] + fields.DOCTOR)
    caller = Caller(role=Role.WORKER, name=name, proven=True, worker=worker)
    stats = WorkerStats(total_pollers=0, busy_pollers=0, running=())
    try:
        await RemoteCoordinator(channel).heartbeat(caller, labels=labels, stats=stats)
    except SecureDaguError as error:
        return error
    return None


async def operation(channel: Channel, *, name: str) -> SecureDaguError | None:
    """Return why an operator may not list workers; None when it may."""
    try:
        await RemoteCoordinator(channel).workers(Caller(role=Role.ADMIN, name=name, proven=True))
    except SecureDaguError as error:
        return error
    return None


def _time(said: str | bytes | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None
    return found.astimezone(UTC) if found is not None and found.tzinfo is not None else None
