"""The other end of a connection, as proven once by its handshake. One `Peer` for each connection."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct, field

from secure_dagu.security.grants import NOTHING, Grants
from secure_dagu.security.identity import Identity


class Peer(Struct, frozen=True, kw_only=True):
    """Who is on a connection. `identity` None: an unproven link (h2c, chosen with `peer.insecure`)."""

    connection: str
    """The unguessable name by which the private socket reports this connection."""
    address: str
    """Remote `host:port`."""
    identity: Identity | None = None
    serial: int = 0
    issuers: tuple[str, ...] = ()
    """SHA-256 of the public key of each CA in the verified chain, hex, the issuing one first."""
    not_after: datetime | None = None
    names: tuple[str, ...] = ()
    """The host names and addresses that its certificate is for; only kept of coordinators."""
    grants: Grants = NOTHING
    """The labels that its certificate grants."""
    tls_version: str = "none"
    """`TLSv1.3`, `TLSv1.2` or `none`."""
    cipher: str = ""
    group: str = ""
    """Negotiated key exchange group, such as `X25519MLKEM768`."""
    opened_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_proven(self) -> bool:
        """Tell whether a certificate stands behind this connection."""
        return self.identity is not None

    def __str__(self) -> str:
        return f"{self.identity or 'unproven'} at {self.address}"
