"""Raise the alarm while a worker's certificate is in use on more than one host: somebody may have its key (T06)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Final

import structlog

from secure_dagu.assembly.looking import looking
from secure_dagu.audit.events import Action, Detail, Event, Outcome, Trail
from secure_dagu.security.copies import in_several_places
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

LOOK_EVERY_S: Final = 15.0


class Watch:
    """What was said already: each certificate once for as long as it goes on."""

    def __init__(
        self,
        peers: Callable[[], Iterable[Peer]],
        by_design: Collection[str],
        trail: Trail,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._peers, self._by_design, self._trail, self._clock = peers, by_design, trail, clock
        self._said: frozenset[int] = frozenset()

    async def look(self) -> None:
        """Compare the live connections once."""
        found = in_several_places(self._peers(), by_design=self._by_design, now=self._clock())
        metrics.COPIED_CERTIFICATES.set(len(found))
        for serial in found.keys() - self._said:
            self._alarm(found[serial])
        self._said = frozenset(found)

    def _alarm(self, places: list[Peer]) -> None:
        newest = places[-1]
        assert newest.identity is not None, "asked only of workers"
        serial = f"{newest.serial:x}"
        log.warning(
            "certificate.on_several_hosts",
            identity=newest.identity.uri,
            serial=serial,
            addresses=", ".join(peer.address for peer in places),
            why="its key is in use from more than one address at the same time: it was copied, or that machine has "
            "two ways to this coordinator",
            fix=f"if it was stolen, `secure-dagu pki revoke {newest.identity.name}` and enrol the machine anew; if "
            f"several hosts share it on purpose, list {newest.identity.name} in coordinator.shared_certificates",
        )
        self._trail.note(
            Event(
                action=Action.CERTIFICATE_COPIED,
                outcome=Outcome.FAILED,
                actor=newest.identity.uri,
                serial=serial,
                address=newest.address,
                target=f"certificate:{serial}",
                reason="several_hosts",
                details={Detail.COUNT: len(places), Detail.NAMES: ", ".join(peer.address for peer in places)},
            )
        )


def watched(
    peers: Callable[[], Iterable[Peer]], *, by_design: Collection[str], trail: Trail
) -> AbstractAsyncContextManager[None]:
    """Compare the live connections again and again for the time of the context."""
    return looking(Watch(peers, by_design, trail).look, every_s=LOOK_EVERY_S, name="certificates on several hosts")
