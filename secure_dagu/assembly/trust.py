"""What follows when certificates, CAs or revocation lists of a running coordinator change.

It uses the new policy for new connections, cuts the links of those who no longer stand, and hands on what revoked
workers held.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from secure_dagu.assembly.edge import describe
from secure_dagu.assembly.reload import Change, Reload, look_every, watch
from secure_dagu.audit.events import SYSTEM, Action, Detail, Event, Outcome, Trail
from secure_dagu.config.load import Loaded, process_environment
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.link.context import ServerPolicy, UnsafePlaintext
from secure_dagu.pki import crl, directory, files
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.files import Pem
from secure_dagu.pki.opening import Passphrase
from secure_dagu.pki.passphrase import unattended
from secure_dagu.pki.rotation import signers
from secure_dagu.pki.rotation_state import SEEN
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.revocation import Revocation, cut_error
from secure_dagu.telemetry import metrics

if TYPE_CHECKING:
    from secure_dagu.coordinator.releasing import Releasing
    from secure_dagu.link.listener import Listener
    from secure_dagu.security.peer import Peer
    from secure_dagu.wire.interceptors import Gate

log = structlog.get_logger()

ANSWERS_S: Final = 0.05
"""Between the answers of the open calls of a peer, which name the reason, and the end of its link: they go out."""
LATEST_S: Final = 1.0
"""How long those answers may take: a peer that does not read does not keep its link."""
LOOK_AT_PEERS_S: Final = 5.0
"""How often live peers are looked at whose certificate has ended, and the list of peers is written."""
RENEW_LIST_S: Final = 3600.0
"""How often a coordinator beside a CA tries to sign a list anew that is half-way to its next update."""


class Current:
    """The policy that a coordinator has now. `standing` is what the wall asks at every call."""

    __slots__ = ("policy",)

    def __init__(self, policy: ServerPolicy | UnsafePlaintext) -> None:
        self.policy = policy

    def standing(self, peer: Peer, now: datetime) -> DenyReason | None:
        """Return why a peer may not speak any more; None when it may."""
        policy = self.policy
        return None if isinstance(policy, UnsafePlaintext) else policy.standing.objection(peer, now)


class _Coordinator:
    def __init__(
        self,
        reload: Reload[ServerPolicy],
        current: Current,
        *,
        edge: Listener,
        gate: Gate,
        releasing: Releasing,
        trail: Trail,
        pki_dir: Path,
        passphrase: Passphrase | None,
    ) -> None:
        self._passphrase = passphrase
        self._current, self._edge, self._gate = current, edge, gate
        self._releasing, self._trail, self._pki_dir = releasing, trail, pki_dir
        self._revoked = _pairs(reload.revocation)
        self._looked_at = 0.0
        self._is_stale = self._is_closed = False
        self._seen = ""
        self._tried_to_sign = float("-inf")

    def told(self, change: Change) -> None:
        self._trail.note(_event(change, self._current.policy))

    async def used(self, policy: ServerPolicy) -> None:
        self._current.policy = self._edge.policy = policy
        describe(policy, side="server")
        pairs = _pairs(policy.standing.revocation)
        new, self._revoked = pairs - self._revoked, pairs
        self._is_stale = self._is_closed = False
        log.info(
            "certificates.loaded",
            serial=f"{policy.own.serial:x}",
            cas=len(policy.trust),
            revoked=len(pairs),
            crl=policy.standing.revocation.number if policy.standing.revocation else None,
        )
        doomed = await self.cut(datetime.now(UTC))
        if new:
            _count_revoked(new, policy.standing.revocation)
            await self._release(new, doomed)

    async def tick(self, now: datetime) -> None:
        policy = self._current.policy
        if isinstance(policy, UnsafePlaintext):
            return
        revocation = policy.standing.revocation
        if revocation is not None:
            await self._watch_age(policy, revocation, now)
        clock = asyncio.get_running_loop().time()
        if revocation is not None and clock - self._tried_to_sign >= RENEW_LIST_S:
            self._tried_to_sign = clock
            await self._sign_again(revocation, now)
        if clock - self._looked_at < LOOK_AT_PEERS_S:
            return
        self._looked_at = clock
        await self.cut(now)
        await asyncio.to_thread(self._write_seen, policy, tuple(self._edge.register.peers()), now)

    async def cut(self, now: datetime) -> Mapping[str, tuple[Peer, DenyReason]]:
        """End the calls and links of every peer that no longer stands."""
        doomed = {
            peer.connection: (peer, reason)
            for peer in self._edge.register.peers()
            if (reason := self._objection(peer, now)) is not None
        }
        if not doomed:
            return doomed
        calls: list[asyncio.Task[Any]] = []
        for reason in {reason for _, reason in doomed.values()}:
            hit = frozenset(name for name, (_, why) in doomed.items() if why is reason)
            calls += self._gate.cut(lambda peer, hit=hit: peer.connection in hit, cut_error(reason))  # type: ignore[misc]
        if calls:
            await asyncio.wait(calls, timeout=LATEST_S)
        await asyncio.sleep(ANSWERS_S)
        count = self._edge.register.cut(lambda peer: peer.connection in doomed)
        log.warning("peers.cut", links=count, reasons=sorted({reason.value for _, reason in doomed.values()}))
        return doomed

    def _objection(self, peer: Peer, now: datetime) -> DenyReason | None:
        if peer.not_after is not None and now >= peer.not_after:
            return DenyReason.CERT_EXPIRED  # so that it comes back with the one that it has renewed
        return self._current.standing(peer, now)

    async def _release(
        self, revoked: frozenset[tuple[str, int]], doomed: Mapping[str, tuple[Peer, DenyReason]]
    ) -> None:
        cut = {
            peer.identity.name
            for peer, reason in doomed.values()
            if reason is DenyReason.CERT_REVOKED and peer.identity is not None and peer.identity.role is Role.WORKER
        }
        still = {
            peer.identity.name
            for peer in self._edge.register.peers()
            if peer.identity is not None and peer.connection not in doomed
        }
        serials = frozenset(f"{serial:x}" for _, serial in revoked)
        await self._releasing.release(serials=serials, names=cut - still)

    async def _watch_age(self, policy: ServerPolicy, revocation: Revocation, now: datetime) -> None:
        if revocation.stale(now) and not self._is_stale:
            self._is_stale = True
            self._trail.note(
                Event(
                    action=Action.CRL_STALE, outcome=Outcome.FAILED, actor=SYSTEM, target="crl", reason="stale",
                    details={Detail.NUMBER: revocation.number, Detail.UNTIL: revocation.next_update.isoformat()},
                )
            )  # fmt: skip
            log.error(
                "crl.stale",
                next_update=f"{revocation.next_update:%Y-%m-%d %H:%M}Z",
                fix="bring a fresh ca.crl (`secure-dagu pki crl --renew`); after peer.crl_grace nobody is admitted",
            )
        if policy.standing.is_closed(now) and not self._is_closed:
            self._is_closed = True
            log.error("crl.closed", why="the revocation list is past its grace: nobody is admitted")
            await self.cut(now)

    async def _sign_again(self, revocation: Revocation, now: datetime) -> None:
        """Sign the list anew in good time where the CA is on this host, so that nobody's calendar closes the port."""
        if not is_due(self._pki_dir, revocation, now):
            return
        await self._trail.record(Event(action=Action.CRL_SIGNED, actor=SYSTEM, target="crl"))
        try:
            await asyncio.to_thread(sign_again, self._pki_dir, self._passphrase)
        except ConfigError as error:
            log.warning("crl.not_renewed", **error.as_dict())

    def _write_seen(self, policy: ServerPolicy, peers: tuple[Peer, ...], now: datetime) -> None:
        """Tell the CA on this host who is connected; nothing where there is none."""
        if not (self._pki_dir / "ledger.jsonl").exists():
            return
        live = {
            (peer.identity.uri, f"{peer.serial:x}", peer.issuers[0] if peer.issuers else "")
            for peer in peers
            if peer.identity is not None
        }
        rows = [{"identity": uri, "serial": serial, "issuer": issuer} for uri, serial, issuer in sorted(live)]
        text = json.dumps({"coordinator": f"{policy.own.serial:x}", "peers": rows}, indent=1)
        if text == self._seen:
            return
        try:
            files.write(self._pki_dir, Pem(SEEN, text.encode(), is_private=True), replace=True)
        except ConfigError as error:
            log.warning("peers.not_written", why=error.why)
        self._seen = text


@contextlib.asynccontextmanager
async def coordinator_kept_current(
    loaded: Loaded,
    reload: Reload[ServerPolicy] | None,
    current: Current,
    *,
    edge: Listener,
    gate: Gate,
    releasing: Releasing,
    trail: Trail,
) -> AsyncIterator[None]:
    """Watch a coordinator's files for the time of the context; nothing with `peer.insecure`."""
    if reload is None:
        yield
        return
    keeper = _Coordinator(
        reload, current, edge=edge, gate=gate, releasing=releasing, trail=trail, pki_dir=loaded.home.pki_dir,
        passphrase=unattended(loaded.settings.pki.passphrase_file, process_environment()),
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(
            watch(reload, look_every(loaded), told=keeper.told, used=keeper.used, tick=keeper.tick), name="reload"
        )
        try:
            yield
        finally:
            watching.cancel()


def is_due(pki_dir: Path, revocation: Revocation, now: datetime) -> bool:
    """Tell whether the list of the CA in this directory is half-way to its next update, and its key is here."""
    half = revocation.this_update + (revocation.next_update - revocation.this_update) / 2
    return now >= half and (pki_dir / crl.FILE).exists() and directory.ca_key_file(pki_dir).exists()


def sign_again(pki_dir: Path, passphrase: Passphrase | None) -> None:
    """Sign the lists in this directory anew.

    Raises:
        ConfigError: the CA cannot be opened, or the disk refuses.
    """
    crl.sign(pki_dir, signers(pki_dir, passphrase), now=utc_now())


def _count_revoked(new: frozenset[tuple[str, int]], revocation: Revocation | None) -> None:
    for issuer, serial in new:
        found = revocation.of(issuer) if revocation is not None else None
        metrics.PKI_REVOKED.labels(found.reasons.get(serial, "unspecified") if found else "unspecified").inc()


def _pairs(revocation: Revocation | None) -> frozenset[tuple[str, int]]:
    return revocation.pairs() if revocation is not None else frozenset()


_USED = {"certificate": Action.CERTIFICATE_LOADED, "trust": Action.TRUST_CHANGED, "crl": Action.CRL_LOADED}
_REFUSED = {
    "certificate": Action.CERTIFICATE_UNUSABLE,
    "trust": Action.CERTIFICATE_UNUSABLE,
    "crl": Action.CRL_REFUSED,
}


def _event(change: Change, policy: ServerPolicy | UnsafePlaintext) -> Event:
    if change.error is not None:
        return Event(
            action=_REFUSED[change.what], outcome=Outcome.FAILED, actor=SYSTEM, target=change.what,
            reason=change.error.why,
        )  # fmt: skip
    details: dict[Detail, str | int] = {}
    if change.what == "certificate" and not isinstance(policy, UnsafePlaintext):
        details[Detail.SUBJECT] = policy.own.subject
    return Event(action=_USED[change.what], actor=SYSTEM, target=change.what, details=details)
