"""Certificate, key, CA bundle and revocation lists of a running process: watched, checked whole, swapped.

The files are looked at by name, number, time and size of what they finally point to, so symlinks that are swapped
(as Kubernetes does) count as changes. A set that cannot be used changes nothing: the last good one stays in use. A
revocation list is judged apart from the other three, so that a broken pair of files cannot hold a revocation back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from cryptography import x509
from msgspec import Struct

from secure_dagu.assembly.edge import minimum
from secure_dagu.assembly.exceptions import InForce
from secure_dagu.config.load import Loaded, peer_files
from secure_dagu.config.peers import Insecure, PeerFiles, Purpose
from secure_dagu.errors import ConfigError
from secure_dagu.link import context, crl
from secure_dagu.link.context import ClientPolicy, ServerPolicy
from secure_dagu.link.crl import Lists
from secure_dagu.link.material import Material
from secure_dagu.pki import files
from secure_dagu.pki.files import Pem
from secure_dagu.security.revocation import Revocation
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

Policy = TypeVar("Policy", ServerPolicy, ClientPolicy)
Signs = tuple[object, ...]


class CrlFile(Struct, frozen=True, kw_only=True):
    """Where revocation lists come from."""

    file: Path
    kept: Path
    """Our copy of the last good ones: by it an older one is known after a restart."""
    is_required: bool
    """Named in the settings, so that its absence at start is an error."""
    issuing: Path
    """Certificate of the issuing CA that may be on this host: lists may be its, when a trusted root signed it."""


class Change(Struct, frozen=True, kw_only=True):
    """One thing that a look found, for log, metrics and audit."""

    what: str
    """`certificate`, `trust` or `crl`."""
    error: ConfigError | None = None
    """None: it was taken into use."""


class Reload(Generic[Policy]):
    """The material of one process. `policy` is what new connections use."""

    def __init__(
        self,
        paths: PeerFiles,
        *,
        crl_file: CrlFile | None,
        read: Callable[[PeerFiles], Material],
        make: Callable[[Material, Lists | None], Policy],
    ) -> None:
        """Read everything for the first time.

        Args:
            paths: certificate, key and CA bundle.
            crl_file: None: this process asks for no revocation lists.
            read: reads and checks the three files; raises ConfigError.
            make: makes a policy of what was read; raises ConfigError.

        Raises:
            ConfigError: something cannot be used, and there is no last good one yet.
        """
        self._files, self._crl, self._read = paths, crl_file, read
        self._make: Callable[[Material, Lists | None], Policy] = make
        self._pair = _Source(self._signs_of_files())
        self._listed = _Source(_signs(crl_file.file) if crl_file else ())
        self._material = read(paths)
        self._lists = self._first_lists()
        self.policy: Policy = make(self._material, self._lists)

    @property
    def revocation(self) -> Revocation | None:
        """Return what is revoked, None where no list is in use."""
        return self._lists.revocation if self._lists is not None else None

    def remake(self) -> Policy:
        """Make the policy again of what is in use, because the settings behind it have changed; return it."""
        self.policy = self._make(self._material, self._lists)
        return self.policy

    def look(self) -> list[Change]:
        """Look once and return what was found; `policy` is another one afterwards if something was taken into use.

        Blocks for file reads only.
        """
        changes: list[Change] = []
        found = self._look_at_files(changes)
        lists = self._look_at_lists(found, changes)
        if found is not self._material or lists is not self._lists:
            self.policy = self._make(found, lists)
            if lists is not None and lists is not self._lists:
                self._keep(lists)
            self._material, self._lists = found, lists
        return changes

    def show_file(self) -> None:
        """Show in the metrics which certificate lies on disk, where it is not the one in use."""
        side = "server" if isinstance(self.policy, ServerPolicy) else "client"
        with contextlib.suppress(OSError, ValueError):
            leaf = x509.load_pem_x509_certificate(self._files.cert.read_bytes())
            metrics.certificate_on_file(side, "peer.cert_file", leaf.not_valid_after_utc)

    def _look_at_files(self, changes: list[Change]) -> Material:
        """Return the certificate, key and bundle to use from now on: those on disk, or those in use."""
        before, signs = self._material, self._signs_of_files()
        if not self._pair.is_news(signs):
            return before
        try:
            found = self._read(self._files)
            self._make(found, None)  # what the TLS library refuses is not taken either
        except ConfigError as error:
            if self._pair.is_settled(signs):
                changes.append(Change(what="certificate", error=error))
            return before
        self._pair.take(signs)
        if found.leaf != before.leaf or found.chain != before.chain:
            changes.append(Change(what="certificate"))
        if found.trusted != before.trusted:
            changes.append(Change(what="trust"))
        return found

    def _look_at_lists(self, found: Material, changes: list[Change]) -> Lists | None:
        """Return the revocation lists to use from now on."""
        before = self._lists
        if self._crl is None:
            return None
        is_other_trust = found.trusted != self._material.trusted
        signs = _signs(self._crl.file)
        if not is_other_trust and not self._listed.is_news(signs):
            return before
        if is_other_trust and before is not None:
            before = self._still_trusted(before, self._signers(found))
        try:
            lists = self._read_lists(self._signers(found), before)
        except ConfigError as error:
            if self._listed.is_settled(signs):
                changes.append(Change(what="crl", error=error))
            return before
        self._listed.take(signs)
        if lists is None or (before is not None and lists.revocation == before.revocation):
            return before
        changes.append(Change(what="crl"))
        return lists

    # ── revocation lists ─────────────────────────────────────────────────────────────────────────────────────────────

    def _first_lists(self) -> Lists | None:
        if self._crl is None:
            return None
        kept: Lists | None = None
        if self._crl.kept.exists():
            try:
                kept = crl.read(self._crl.kept, self._signers(self._material))
            except ConfigError as error:  # of a CA that is gone, or damaged: then there is nothing to compare with
                log.warning("crl.kept_unusable", **error.as_dict())
        try:
            lists = self._read_lists(self._signers(self._material), kept)
        except ConfigError as error:
            if kept is None:
                raise
            _count(Change(what="crl", error=error))
            return kept
        if lists is not None and (kept is None or lists.pem != kept.pem):
            self._keep(lists)
        return lists

    def _signers(self, found: Material) -> tuple[x509.Certificate, ...]:
        """Return whose lists are believed: the trusted CAs, and issuing CAs in our own chain or on this host."""
        assert self._crl is not None, "asked only where lists are wanted"
        here: list[x509.Certificate] = []
        with contextlib.suppress(OSError, ValueError):  # most hosts have none
            here = x509.load_pem_x509_certificates(self._crl.issuing.read_bytes())
        return crl.signers(found.trusted, (*found.chain, *here))

    def _read_lists(self, trusted: Sequence[x509.Certificate], last: Lists | None) -> Lists | None:
        """Return the lists on disk; None when there never was a file."""
        assert self._crl is not None, "asked only where lists are wanted"
        if last is None and not self._crl.is_required and not self._crl.file.exists():
            return None
        return crl.read(self._crl.file, trusted, last=last.revocation if last is not None else None)

    def _still_trusted(self, lists: Lists, trusted: Sequence[x509.Certificate]) -> Lists | None:
        """Return lists without those of CAs that have left the bundle."""
        assert self._crl is not None, "asked only where lists are wanted"
        try:
            return crl.verify(lists.pem, trusted, file=self._crl.file)
        except ConfigError:
            return None

    def _keep(self, lists: Lists) -> None:
        assert self._crl is not None, "asked only where lists are wanted"
        kept = self._crl.kept
        try:
            kept.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            files.write(kept.parent, Pem(kept.name, lists.pem, is_private=True), replace=True)
        except (ConfigError, OSError) as error:  # a full disk must not keep a revocation from working now
            log.error("crl.not_kept", why=str(error), fix="make room: after a restart an old list would be believed")  # noqa: TRY400

    def _signs_of_files(self) -> Signs:
        return (_signs(self._files.cert), _signs(self._files.key), _signs(self._files.ca))


class _Source:
    """What some files looked like when they were used, refused, or doubted."""

    def __init__(self, signs: Signs) -> None:
        self._used: Signs | None = signs
        self._refused: Signs | None = None
        self._doubted: Signs | None = None

    def is_news(self, signs: Signs) -> bool:
        return signs not in (self._used, self._refused)

    def take(self, signs: Signs) -> None:
        self._used, self._refused, self._doubted = signs, None, None

    def is_settled(self, signs: Signs) -> bool:
        """Tell whether unusable files are an error yet; then it is told once.

        Files of one set are written one after the other, so only what looks the same at the next look counts.
        """
        if self._doubted != signs:
            self._doubted = signs
            return False
        self._used, self._refused = None, signs
        return True


def _signs(file: Path) -> Signs:
    try:
        facts = file.stat()
        return (
            os.path.realpath(file), facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size,
            facts.st_mode,
        )  # fmt: skip
    except OSError as error:
        return (error.errno,)


def coordinator_files(loaded: Loaded, held: InForce) -> Reload[ServerPolicy] | None:
    """Read what a coordinator serves with; None with `peer.insecure`. `held` decides about TLS 1.2 at each swap.

    Raises:
        ConfigError: a part is missing or cannot be used.
    """
    found = peer_files(loaded, Purpose.COORDINATOR)
    if isinstance(found, Insecure):
        return None
    peer = loaded.settings.peer
    return Reload(
        found,
        crl_file=_crl_file(loaded, kept="coordinator.crl", standard=True),
        read=lambda of: context.server_material(
            cert=of.cert,
            key=of.key,
            client_ca=of.ca,
            advertised=loaded.settings.coordinator.advertise,
            rules=peer.identity_rules,
        ),
        make=lambda material, lists: context.server_from(
            material, minimum=minimum(loaded, held), lists=lists, grace=peer.crl_grace
        ),
    )


def worker_files(loaded: Loaded, held: InForce, *, check: Callable[[Material], None]) -> Reload[ClientPolicy] | None:
    """Read what a worker dials with; None with `peer.insecure`. `check` raises ConfigError for what it may not use.

    Raises:
        ConfigError: a part is missing or cannot be used.
    """
    found = peer_files(loaded, Purpose.WORKER)
    if isinstance(found, Insecure):
        return None
    peer = loaded.settings.peer

    def read(of: PeerFiles) -> Material:
        material = context.client_material(cert=of.cert, key=of.key, ca=of.ca, rules=peer.identity_rules)
        check(material)
        return material

    return Reload(
        found,
        crl_file=_crl_file(loaded, kept=f"worker-{_safe(loaded.settings.worker.id)}.crl", standard=False),
        read=read,
        make=lambda material, lists: context.client_from(
            material, minimum=minimum(loaded, held), lists=lists, grace=peer.crl_grace
        ),
    )


def _crl_file(loaded: Loaded, *, kept: str, standard: bool) -> CrlFile | None:
    """Return where the revocation lists are; `standard`: also in the standard place, if one is there."""
    said = loaded.settings.peer.crl_file
    if said is None and not standard:
        return None
    from secure_dagu.pki import directory  # a worker without lists has no part in the CA's files

    return CrlFile(
        file=said or loaded.home.pki_dir / "ca.crl",
        kept=loaded.settings.paths.data_dir / kept,
        is_required=said is not None,
        issuing=loaded.home.pki_dir / directory.ISSUING[0],
    )


def _safe(worker_id: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in worker_id.partition("@")[0])[:64]


def look_every(loaded: Loaded) -> timedelta:
    """Return how often the files are looked at."""
    return max(loaded.settings.peer.reload_interval, timedelta(milliseconds=100))


async def watch(
    reload: Reload[Policy],
    interval: timedelta,
    *,
    told: Callable[[Change], None],
    used: Callable[[Policy], Awaitable[None]],
    tick: Callable[[datetime], Awaitable[None]] | None = None,
) -> None:
    """Look for ever.

    Args:
        reload: what is looked at.
        interval: between two looks.
        told: of each change, before it is used.
        used: takes a new policy into use.
        tick: called after each look.
    """
    while True:
        await asyncio.sleep(interval.total_seconds())
        try:
            before = reload.policy
            for change in await asyncio.to_thread(reload.look):
                _count(change)
                told(change)
                if change.error is not None and change.what == "certificate":
                    await asyncio.to_thread(reload.show_file)
            if reload.policy is not before:
                await used(reload.policy)
            if tick is not None:
                await tick(datetime.now(UTC))
        except Exception:  # a bug here must not end the process, nor the watching
            log.exception("reload.failed")


def _count(change: Change) -> None:
    metrics.reloaded(ok=change.error is None)
    if change.error is not None:
        log.error(f"{change.what}.refused", used="the last good one", **change.error.as_dict())
