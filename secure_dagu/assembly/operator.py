"""The way to the coordinators as operator commands, schedulers and web servers dial them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import structlog

from secure_dagu.assembly import discovering, renewal
from secure_dagu.assembly.edge import client_policy, proxy_of
from secure_dagu.config.load import Loaded
from secure_dagu.config.peers import Purpose
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import SecureDaguError
from secure_dagu.link import dialer, private
from secure_dagu.link.context import ClientPolicy
from secure_dagu.telemetry import metrics
from secure_dagu.wire import process

log = structlog.get_logger()

LOOK_EVERY_S: Final = 1.0
"""How often a process without a coordinator looks whether one has registered."""
AGAIN_S: Final = 10.0
"""Pause after one was found that cannot be used, such as without a certificate."""


@contextlib.asynccontextmanager
async def operator(loaded: Loaded) -> AsyncIterator[tuple[Coordinator, Caller]]:
    """Open the way to the coordinators that operator commands dial; nothing is dialled before the first call.

    Raises:
        ConfigError: the operator's certificate is missing or cannot be used.
    """
    process.prepare()
    from secure_dagu.wire.routes import WireRoutes

    renewal.finish_interrupted(loaded, "operator")
    await renewal.operator_renewed(loaded)
    policy = client_policy(loaded, Purpose.OPERATOR)
    if isinstance(policy, ClientPolicy):
        own = policy.own
        metrics.certificate_loaded(
            "client", "peer.cert_file", serial=own.serial, not_before=own.not_before, not_after=own.not_after,
            key_type=own.key_type,
        )  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(
            dialer.dialers(policy=policy, directory=folder, proxy=proxy_of(loaded))
        )
        is_proven = isinstance(policy, ClientPolicy)
        routes = WireRoutes(
            [(item.host, item.port) for item in loaded.settings.client.coordinators],
            connect=dialers.connect,
            recorder=metrics.RPC_CLIENT,
            is_proven=is_proven,
            discover=discovering.discover(loaded, is_proven=is_proven),
            retries=discovering.retries(loaded),
        )
        stack.push_async_callback(routes.close)
        identity = policy.identity if isinstance(policy, ClientPolicy) else None
        yield (
            routes.anyone(),
            Caller(
                role=identity.role if identity else Role.ANONYMOUS,
                name=identity.name if identity else "",
                proven=is_proven,
            ),
        )


@contextlib.asynccontextmanager
async def way_to_coordinator(loaded: Loaded, *, name: str) -> AsyncIterator[Way]:
    """Yield the way to the coordinator that is listed or registered; while there is none, look for one.

    Args:
        loaded: the settings.
        name: who this process is as long as everything is done here.

    Raises:
        ConfigError: there is one, and the operator's certificate is missing or cannot be used.
    """
    way = Way(None, Caller(role=Role.ADMIN, name=name, proven=True))
    if discovering.has_coordinator(loaded):
        async with operator(loaded) as opened:
            way.open(*opened)
            yield way
    elif not loaded.settings.coordinator.enabled:
        yield way
    else:
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(_until_there(loaded, way), name="look for a coordinator")
            try:
                yield way
            finally:
                looking.cancel()


async def _until_there(loaded: Loaded, way: Way) -> None:
    """Open the way once a coordinator has registered, and keep it open until cancelled."""
    told = ""
    while True:
        while not await asyncio.to_thread(discovering.has_coordinator, loaded):  # noqa: ASYNC110 - another process registers
            await asyncio.sleep(LOOK_EVERY_S)
        try:
            async with operator(loaded) as opened:
                way.open(*opened)
                log.info("coordinator.found", effect="runs that select workers go to it from now on")
                await asyncio.Event().wait()
        except (SecureDaguError, OSError) as error:
            if str(error) != told:
                log.warning("coordinator.found_unusable", why=str(error), effect="everything still runs here")
            told = str(error)
            await asyncio.sleep(AGAIN_S)
