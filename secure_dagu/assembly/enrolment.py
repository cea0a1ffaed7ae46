"""Enrolment in the coordinator: its CA answers machines that join or renew, unless there is no CA key here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from secure_dagu.assembly.recording import enrolled
from secure_dagu.audit.events import Action, Detail, Event, Outcome, Trail
from secure_dagu.config.load import Loaded, process_environment
from secure_dagu.errors import ConfigError, Unavailable
from secure_dagu.pki import directory, ledger
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.enrolment import Decision, Desk
from secure_dagu.pki.ledger import LedgerEntry
from secure_dagu.pki.passphrase import unattended
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

RECORD_LIMIT_S: Final = 5.0
"""How long a certificate waits for its record in the audit log; without one it is not signed."""


def open_desk(loaded: Loaded) -> Desk | None:
    """Return what signs for machines that join or renew; None where that is not offered, and the log says why.

    Raises:
        ConfigError: there is a CA key, and the configured passphrase does not open it, or `pki.pods_file` is no use.
    """
    pki_dir = loaded.home.pki_dir
    if loaded.settings.peer.insecure:
        _say_not_offered("nobody is proven on a plaintext port", "remove peer.insecure")
        return None
    if not directory.ca_key_file(pki_dir).exists():
        _say_not_offered(
            "there is no CA key on this host",
            f"issue certificates where the CA is; an issuing CA in {pki_dir} would let machines join here",
        )
        return None
    given = unattended(loaded.settings.pki.passphrase_file, process_environment())
    try:
        return Desk(pki_dir, given, pods_file=loaded.settings.pki.pods_file)
    except ConfigError as problem:
        if given is not None or loaded.settings.pki.pods_file is not None:
            raise
        _say_not_offered(str(problem), problem.fix)
        return None


class Answering:
    """Lets the desk decide in a thread, and records before a certificate is signed (`link.enrol.Answerer`)."""

    def __init__(self, desk: Desk, trail: Trail) -> None:
        self._desk, self._trail = desk, trail
        self._thread = ThreadPoolExecutor(1, "enrolment")  # the desk decides one after the other anyway

    async def __call__(self, peer: Peer, request: bytes) -> bytes:
        """Answer one request."""
        loop = asyncio.get_running_loop()
        decision = await loop.run_in_executor(self._thread, self._decide, peer, request, loop)
        _log(peer, decision)
        if decision.answer.problem is not None:
            self._trail.note(_refused(peer, decision))
        return decision.document

    def _decide(self, peer: Peer, request: bytes, loop: asyncio.AbstractEventLoop) -> Decision:
        record = from_thread(self._trail, loop, lambda entry: _certified(peer, entry))
        with ledger.watched(record):
            if peer.is_proven:
                return self._desk.renew(peer, request, now=utc_now())
            return self._desk.join(request, address=peer.address, now=utc_now())


def from_thread(
    trail: Trail, loop: asyncio.AbstractEventLoop, event_of: Callable[[LedgerEntry], Event]
) -> Callable[[LedgerEntry], None]:
    """Return what records, from another thread than the loop's, a certificate that is about to enter the ledger."""

    def record(entry: LedgerEntry) -> None:
        try:
            asyncio.run_coroutine_threadsafe(trail.record(event_of(entry)), loop).result(RECORD_LIMIT_S)
        except TimeoutError:
            raise Unavailable("the audit log did not take the record in time") from None

    return record


def _certified(peer: Peer, entry: LedgerEntry) -> Event:
    return Event(
        action=Action.CERTIFICATE_RENEWED if peer.is_proven else Action.JOINED,
        actor=peer.identity.uri if peer.identity is not None else "",
        serial=f"{peer.serial:x}" if peer.serial else "",
        address=peer.address,
        target=f"certificate:{entry.serial}",
        details=enrolled(entry.role, entry.labels, entry.names)
        | {Detail.SUBJECT: entry.identity, Detail.UNTIL: entry.not_after, Detail.FINGERPRINT: entry.fingerprint},
    )


def _refused(peer: Peer, decision: Decision) -> Event:
    offer = decision.offer
    return Event(
        action=Action.RENEWAL_REFUSED if peer.is_proven else Action.JOIN_REFUSED,
        outcome=Outcome.DENIED,
        actor=peer.identity.uri if peer.identity is not None else "",
        serial=f"{peer.serial:x}" if peer.serial else "",
        address=peer.address,
        target=f"{offer.role.value}:{offer.name}" if offer is not None else "",
        reason=decision.reason,
    )


def _log(peer: Peer, decision: Decision) -> None:
    entry = decision.entry
    if entry is not None:
        metrics.PKI_ISSUED.labels(entry.role).inc()
        what = "enrolment.renewed" if peer.is_proven else "enrolment.joined"
        log.info(what, identity=entry.identity, serial=entry.serial, until=entry.not_after, address=peer.address)
    elif decision.answer.problem is not None:
        log.warning(
            "enrolment.refused", reason=decision.reason, why=decision.detail, address=peer.address, peer=str(peer)
        )


def _say_not_offered(why: str, fix: str) -> None:
    log.info("enrolment.not_offered", why=why, fix=fix)
