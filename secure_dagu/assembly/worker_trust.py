"""What follows when certificates, CAs or revocation lists of a running worker change.

It connects anew before it lets the old connection go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from secure_dagu.assembly.edge import describe
from secure_dagu.assembly.reload import Reload, look_every, watch
from secure_dagu.config.load import Loaded
from secure_dagu.errors import SecureDaguError
from secure_dagu.link.context import ClientPolicy

if TYPE_CHECKING:
    from secure_dagu.link.dialer import Dialers
    from secure_dagu.wire.routes import WireRoutes

log = structlog.get_logger()

RECONNECT_S: Final = 0.5
"""How long a worker that connects anew keeps a link to a coordinator that no longer stands."""


@contextlib.asynccontextmanager
async def kept_current(
    loaded: Loaded, reload: Reload[ClientPolicy] | None, *, dialers: Dialers, routes: WireRoutes
) -> AsyncIterator[None]:
    """Watch a worker's files for the time of the context; nothing with `peer.insecure`."""
    if reload is None:
        yield
        return

    def refused(address: str, problem: SecureDaguError) -> None:
        log.warning("coordinator.not_reconnected", coordinator=address, **problem.as_dict())

    renewing: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:

        async def used(policy: ClientPolicy) -> None:
            dialers.use(policy)
            describe(policy, side="client")
            log.info("certificates.loaded", serial=f"{policy.own.serial:x}", cas=len(policy.trust))
            task = group.create_task(routes.renew(refused), name="renew connections")
            renewing.add(task)
            task.add_done_callback(renewing.discard)
            await asyncio.sleep(RECONNECT_S)
            now = datetime.now(UTC)
            dialers.cut(lambda peer: policy.standing.objection(peer, now) is not None)

        watching = group.create_task(
            watch(reload, look_every(loaded), told=lambda _change: None, used=used), name="reload"
        )
        try:
            yield
        finally:
            for doomed in (watching, *renewing):  # renewals may wait for old calls for a long time
                doomed.cancel()
