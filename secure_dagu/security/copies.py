"""Which certificates of workers are in use on more than one host (threat T06): pure, from the live connections."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from secure_dagu.dispatch.model import Role
from secure_dagu.security.peer import Peer

SETTLED: Final = timedelta(minutes=1)
"""A connection counts from this age on: a machine that got another address leaves its old one behind for a moment."""


def in_several_places(peers: Iterable[Peer], *, by_design: Collection[str], now: datetime) -> Mapping[int, list[Peer]]:
    """Return by serial the connections of each worker's certificate that is live from two or more addresses at once.

    One connection for each remote address (its port does not count), the oldest first.

    Args:
        peers: the live connections.
        by_design: names of certificates that several hosts share on purpose, such as a pool of pods.
        now: for the age of connections.
    """
    seen: dict[int, dict[str, Peer]] = {}
    for peer in sorted(peers, key=lambda peer: peer.opened_at):
        identity = peer.identity
        if identity is None or identity.role is not Role.WORKER or identity.name in by_design:
            continue
        if now - peer.opened_at >= SETTLED:
            seen.setdefault(peer.serial, {}).setdefault(_host(peer.address), peer)
    return {serial: list(places.values()) for serial, places in seen.items() if len(places) > 1}


def _host(address: str) -> str:
    return address.rpartition(":")[0]
