"""Whom processes without a list of coordinators ask: those that registered in the shared folder (protocol, section 9).

What the folder says is a hint. Over TLS the certificate must prove the coordinator and the name that was dialled; over
plaintext nobody proves anything, so only addresses of this host are taken from it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from secure_dagu.assembly.exceptions import is_loopback
from secure_dagu.config.load import Loaded
from secure_dagu.config.values import Address
from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.discovery.registry import Instance, Registry
    from secure_dagu.wire.routes import Discover, Retries

log = structlog.get_logger()

WAIT_S: Final = 30.0
"""How long a worker without a list waits for the first coordinator to register."""
LOOK_EVERY_S: Final = 0.5


def registry_of(loaded: Loaded) -> Registry:
    """Return the folder in which this installation registers."""
    from secure_dagu.discovery.registry import Registry  # a worker with a list has nothing to look up there

    return Registry(loaded.settings.paths.service_registry_dir)


@contextlib.asynccontextmanager
async def coordinator_registered(loaded: Loaded, *, started: Instance) -> AsyncIterator[None]:
    """Keep this coordinator in the folder until it stops."""
    from secure_dagu.discovery.registry import Service, registered

    async with registered(registry_of(loaded), Service.COORDINATOR, started):
        yield


def has_coordinator(loaded: Loaded) -> bool:
    """Tell whether processes beside a coordinator, such as a web server, have one to talk to: listed, or registered."""
    if not loaded.settings.coordinator.enabled:
        return False
    if any(loaded.sources[key] != "default" for key in ("client.coordinators", "worker.coordinators")):
        return True
    from secure_dagu.discovery.registry import Service

    return bool(registry_of(loaded).read(Service.COORDINATOR))


def discover(loaded: Loaded, *, is_proven: bool) -> Discover | None:
    """Return what finds the coordinators that operator commands, schedulers and web servers ask; None: a list does."""
    if any(loaded.sources[key] != "default" for key in ("client.coordinators", "worker.coordinators")):
        return None
    from secure_dagu.discovery.registry import Service

    registry = registry_of(loaded)

    async def found() -> Sequence[tuple[str, int]]:
        return [(one.host, one.port) for one in _usable(await registry.known(Service.COORDINATOR), is_proven=is_proven)]

    return found


def retries(loaded: Loaded) -> Retries:
    """Return how a dispatch is tried again."""
    from secure_dagu.wire.routes import Retries

    peer = loaded.settings.peer
    return Retries(most=peer.max_retries, first_s=peer.retry_interval.total_seconds())


async def workers_coordinators(loaded: Loaded, *, is_proven: bool) -> Sequence[Address]:
    """Return the coordinators that a worker polls: those of its list, else those that registered.

    Raises:
        ConfigError: there is neither, after a while.
    """
    own = loaded.settings.worker
    if own.coordinators:
        return own.coordinators
    from secure_dagu.discovery.registry import Service

    registry = registry_of(loaded)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S if registry.folder.is_dir() else 0):
            while True:
                if usable := _usable(await registry.known(Service.COORDINATOR), is_proven=is_proven):
                    found = tuple(Address(one.host, one.port) for one in reversed(usable))
                    log.info("worker.coordinators_found", coordinators=", ".join(str(address) for address in found))
                    return found
                await asyncio.sleep(LOOK_EVERY_S)
    raise ConfigError(
        "worker.coordinators is required",
        why=f"a worker polls the coordinators that it is told, and none has registered in {registry.folder}",
        fix="say --worker.coordinators=HOST:PORT, or set DAGU_WORKER_COORDINATORS",
    )


def _usable(found: Sequence[Instance], *, is_proven: bool) -> list[Instance]:
    usable = [one for one in found if one.port and (is_proven or is_loopback(one.host))]
    if found and not usable:
        log.warning("registry.unproven", why="without TLS nobody proves an address of another host", fix="use a list")
    return usable
