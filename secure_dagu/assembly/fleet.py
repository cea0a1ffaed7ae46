"""The machines as the REST API and the Web UI see them (`dispatch.operating.Fleet`).

async with operator(loaded) as (coordinator, caller):
    fleet = Machines(loaded, Way(coordinator, caller))

A coordinator of the same process is taken as it is; `caller` then says in whose name this process asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from secure_dagu.assembly.recording import commands_trail, crl_signed, of_ledger
from secure_dagu.config.load import Loaded, peer_files, process_environment
from secure_dagu.config.peers import Insecure, Purpose
from secure_dagu.discovery.registry import Instance, Registry, Service, Status
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, WorkerId
from secure_dagu.dispatch.operating import CertificateView, LinkView, ServiceView, WorkerView
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import ConfigError, NotFound, Refused, SecureDaguError, Unavailable
from secure_dagu.link import material
from secure_dagu.pki import crl
from secure_dagu.pki.directory import ca_key_file, ledger
from secure_dagu.pki.facts import read_certificates
from secure_dagu.pki.ledger import LedgerEntry, watched
from secure_dagu.pki.passphrase import unattended
from secure_dagu.pki.rotation import signers

_STATUS: Final = {Status.ACTIVE: "active", Status.INACTIVE: "inactive"}


class Machines:
    """Implement `dispatch.operating.Fleet`."""

    def __init__(self, loaded: Loaded, way: Way) -> None:
        """Take the configuration and the way to a coordinator."""
        self._loaded = loaded
        self._way = way
        self._registry = Registry(loaded.settings.paths.service_registry_dir)

    async def workers(self) -> Sequence[WorkerView]:
        """Return all known workers (`Fleet.workers`)."""
        coordinator, caller = self._asked()
        return await coordinator.fleet(caller)

    async def drain(self, worker: str, *, draining: bool, actor: str) -> None:
        """Hold a worker or free it (`Fleet.drain`). The coordinator's audit log names `actor` where it is here."""
        coordinator, caller = self._asked()
        await coordinator.drain(_as(caller, actor), worker=WorkerId(worker), draining=draining)

    async def revoke(self, worker: str, *, reason: str, actor: str) -> int:
        """Revoke a worker's certificates as `pki revoke` does; the coordinator that reads the list cuts its links."""
        return await asyncio.to_thread(self._revoke, worker.partition("@")[0], reason, actor)

    async def coordinators(self) -> Sequence[ServiceView]:
        """Return the coordinators that registered."""
        return [_service(one) for one in await self._registry.known(Service.COORDINATOR)]

    async def schedulers(self) -> Sequence[ServiceView]:
        """Return the schedulers that registered."""
        return [_service(one) for one in await self._registry.known(Service.SCHEDULER)]

    async def links(self) -> Sequence[LinkView]:
        """Return the live connections (`Fleet.links`)."""
        coordinator, caller = self._asked()
        return await coordinator.links(caller)

    async def certificates(self) -> Sequence[CertificateView]:
        """Return the certificates in use here, and the ledger of our CA (`Fleet.certificates`)."""
        return await asyncio.to_thread(self._certificates)

    def _asked(self) -> tuple[Coordinator, Caller]:
        if self._way.coordinator is None:
            raise Unavailable(
                "Coordinator service not configured",
                why="this installation runs without one",
                fix="start one with `--coordinator.host`, or name one in client.coordinators",
            )
        return self._way.coordinator, self._way.caller

    # ── certificates ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _revoke(self, name: str, reason: str, actor: str) -> int:
        place = self._loaded.home.pki_dir
        if not ca_key_file(place).exists():
            raise Refused(
                "certificates cannot be revoked from here",
                why="the CA's key is not on this host",
                fix=f"run `secure-dagu pki revoke worker/{name}` on the host of the CA",
            )
        if reason not in crl.REASONS:
            raise Refused(f"{reason[:40]} is no reason", why=f"known are {', '.join(crl.REASONS)}")
        now = datetime.now(UTC).replace(microsecond=0)
        given = unattended(self._loaded.settings.pki.passphrase_file, process_environment())
        try:
            authorities = signers(place, given)
        except ConfigError as error:
            raise Refused(
                "certificates cannot be revoked from here",
                why=str(error),
                fix=f"give pki.passphrase_file, or run `secure-dagu pki revoke worker/{name}` on the host of the CA",
            ) from error
        try:
            doomed = crl.find(authorities[0].ledger, f"worker/{name}", now=now)
        except ConfigError as error:
            raise NotFound(error.what, why=error.why, fix=error.fix) from error
        with commands_trail(self._loaded.home) as record, watched(lambda entry: record(of_ledger(entry))):
            record(crl_signed())
            crl.revoke(place, authorities, doomed, reason=reason, now=now, actor=actor)
        return len(doomed)

    def _certificates(self) -> list[CertificateView]:
        used = {view.serial: view for view in self._in_use()}
        book = ledger(self._loaded.home.pki_dir)
        listed: list[CertificateView] = []
        if book.exists:
            for entry in book.entries():
                own = used.pop(entry.serial.lower().lstrip("0"), None)
                listed.append(_of_entry(entry, subject=own.subject if own is not None else "", in_use=own is not None))
        return [*used.values(), *listed]

    def _in_use(self) -> Iterator[CertificateView]:
        for subject, path in self._files():
            try:
                found = read_certificates(path)[0]
            except SecureDaguError:
                continue  # whoever uses the file says what is wrong with it
            names = material.names_of(found)
            yield CertificateView(
                subject=subject,
                identity=next(iter(names.uris), ""),
                serial=f"{found.serial_number:x}",
                issuer=found.issuer.rfc4514_string(),
                names=(*names.dns, *(str(address) for address in names.ips)),
                not_before=found.not_valid_before_utc,
                not_after=found.not_valid_after_utc,
                in_use=True,
            )

    def _files(self) -> Iterator[tuple[str, Path]]:
        for purpose in (Purpose.COORDINATOR, Purpose.OPERATOR, Purpose.WORKER):
            try:
                files = peer_files(self._loaded, purpose)
            except ConfigError:
                continue
            if not isinstance(files, Insecure):
                yield purpose.value, files.cert
        if (https := self._loaded.settings.tls.cert_file) is not None:
            yield "tls.cert_file", https


def _as(caller: Caller, actor: str) -> Caller:
    """Return the caller as who asks for something: in this process the coordinator's audit log shows that person."""
    return replace(caller, identity=actor) if actor and not caller.serial else caller


def _service(one: Instance) -> ServiceView:
    return ServiceView(
        instance_id=one.id,
        host=one.host,
        port=one.port,
        status=_STATUS.get(Status(one.status), "unknown"),
        started_at=one.started_at,
    )


def _of_entry(entry: LedgerEntry, *, subject: str, in_use: bool) -> CertificateView:
    is_revoked = entry.status.value == "revoked"
    return CertificateView(
        subject=subject or f"{entry.role} {entry.name}",
        identity=entry.identity,
        serial=entry.serial,
        issuer=entry.issuer,
        names=entry.names,
        not_before=datetime.fromisoformat(entry.not_before),
        not_after=datetime.fromisoformat(entry.not_after),
        in_use=in_use,
        revoked_at=datetime.fromisoformat(entry.status_at) if is_revoked and entry.status_at else None,
        revocation_reason=entry.reason if is_revoked else "",
    )
