"""Live connections by peer: look up, count, cut; and what happened to each connection, as events.

The register is how the rest of the program sees the edge. A call's connection name finds its proven `Peer`; a name that
is not here belongs to somebody who went round the front, and is refused by whoever asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum

from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.security.peer import Peer
from secure_dagu.security.verdict import Reason, Side, Verdict


class Happening(StrEnum):
    """What happened to a connection."""

    OPENED = "opened"
    CLOSED = "closed"
    REFUSED = "refused"
    CUT = "cut"
    """Ended by us while it lived, such as after a revocation; `CLOSED` follows."""


class LinkEvent(Struct, frozen=True, kw_only=True):
    """One thing that happened, for audit, metrics and the log. `verdict` only for `REFUSED`, else `peer`."""

    happening: Happening
    side: Side
    address: str
    peer: Peer | None = None
    verdict: Verdict | None = None


OnEvent = Callable[[LinkEvent], None]
"""Called synchronously on the event loop: it must be quick and must not raise."""


def ignore(event: LinkEvent) -> None:
    """Take an event and do nothing."""


class _Entry(Struct, frozen=True):
    peer: Peer
    cut: Callable[[], None]


class Register:
    """All live connections of one listener."""

    def __init__(self, on_event: OnEvent = ignore) -> None:
        self._entries: dict[str, _Entry] = {}
        self._on_event = on_event
        self.opened = 0
        """Connections ever admitted."""
        self.refused: Counter[Reason] = Counter()
        """Connections refused, by reason."""

    def peer_of(self, connection: str) -> Peer | None:
        """Return who is on a connection, by the name that gRPC reports; None: nobody that came through the front."""
        entry = self._entries.get(connection)
        return entry.peer if entry is not None else None

    def __len__(self) -> int:
        return len(self._entries)

    def peers(self) -> Iterator[Peer]:
        """Iterate over the peers of live connections, oldest first."""
        return (entry.peer for entry in tuple(self._entries.values()))

    def counts(self) -> Counter[tuple[Role, str, str]]:
        """Count live connections by role, TLS version and key exchange group."""
        return Counter(
            (peer.identity.role if peer.identity else Role.ANONYMOUS, peer.tls_version, peer.group)
            for peer in self.peers()
        )

    def cut(self, doomed: Callable[[Peer], bool]) -> int:
        """End every connection whose peer is `doomed`; return how many."""
        entries = [entry for entry in self._entries.values() if doomed(entry.peer)]
        for entry in entries:
            self._on_event(
                LinkEvent(happening=Happening.CUT, side=Side.SERVER, address=entry.peer.address, peer=entry.peer)
            )
            entry.cut()
        return len(entries)

    # ── for the listener ─────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, peer: Peer, cut: Callable[[], None]) -> None:
        """Enter a connection. It must be here before gRPC can see it: the first call may arrive at once."""
        self._entries[peer.connection] = _Entry(peer, cut)
        self.opened += 1
        self._on_event(LinkEvent(happening=Happening.OPENED, side=Side.SERVER, address=peer.address, peer=peer))

    def leave(self, peer: Peer) -> None:
        """Remove a connection."""
        if self._entries.pop(peer.connection, None) is not None:
            self._on_event(LinkEvent(happening=Happening.CLOSED, side=Side.SERVER, address=peer.address, peer=peer))

    def refuse(self, verdict: Verdict) -> None:
        """Note a refused connection."""
        self.refused[verdict.reason] += 1
        self._on_event(
            LinkEvent(happening=Happening.REFUSED, side=Side.SERVER, address=verdict.address, verdict=verdict)
        )
