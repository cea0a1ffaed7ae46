"""Raise the alarm when a peer comes with a certificate that our CA signed and its ledger does not know (threat T18).

Only somebody with the CA's key can make one. Where a coordinator has no ledger, because the CA is elsewhere, nothing is
watched; certificates of other CAs have nothing to do with it.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from secure_dagu.audit.events import Action, Detail, Event, Outcome, Trail
from secure_dagu.errors import ConfigError
from secure_dagu.link.register import Happening, LinkEvent, OnEvent
from secure_dagu.pki.directory import ledger, signer_keys
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import metrics

log = structlog.get_logger()


def watching(pki_dir: Path, trail: Trail, also: OnEvent) -> OnEvent:
    """Return what looks at the certificate of every link that opens, after telling `also`."""
    book = ledger(pki_dir)

    def happened(event: LinkEvent) -> None:
        also(event)
        peer = event.peer
        if event.happening is Happening.OPENED and peer is not None and peer.identity is not None and peer.issuers:
            try:
                is_known = (
                    not book.exists or book.knows(peer.serial) or peer.issuers[0] not in signer_keys(pki_dir, book)
                )
            except ConfigError as problem:
                log.error("ledger.unreadable", **problem.as_dict())  # noqa: TRY400 - the words say it all
                return
            if not is_known:
                _alarm(peer, trail)

    return happened


def _alarm(peer: Peer, trail: Trail) -> None:
    assert peer.identity is not None, "asked only of proven peers"
    metrics.UNKNOWN_CERTIFICATES.inc()
    log.error(
        "certificate.unknown",
        identity=peer.identity.uri,
        serial=f"{peer.serial:x}",
        address=peer.address,
        why="our CA signed it, and its ledger does not know it: somebody used the CA's key outside secure-dagu",
        fix="revoke that serial number, find out who has the key, and rotate the CA (`secure-dagu pki rotate prepare`)",
    )
    trail.note(
        Event(
            action=Action.CERTIFICATE_UNKNOWN,
            outcome=Outcome.FAILED,
            actor=peer.identity.uri,
            serial=f"{peer.serial:x}",
            address=peer.address,
            target=f"certificate:{peer.serial:x}",
            reason="unknown_serial",
            details={Detail.ISSUER: peer.issuers[0]},
        )
    )
