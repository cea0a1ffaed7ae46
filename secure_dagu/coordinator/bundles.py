"""Content-addressed workspace bundles (protocol, section 7; gap G24)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from hashlib import sha256

import structlog

from secure_dagu.audit.events import Action, Detail, Trail, by
from secure_dagu.coordinator.ledger import Ledger, is_limited
from secure_dagu.dispatch.api import Clock
from secure_dagu.dispatch.model import BundleRef, Caller, Verdict
from secure_dagu.errors import InvalidRequest, NotFound, Refused
from secure_dagu.store.api import BundleRow, Store
from secure_dagu.store.blobs import Blobs, checked_digest
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

MAX_BUNDLE = 64 * 1024 * 1024
PIECE = 1024 * 1024
_IN = metrics.BUNDLE_BYTES.labels("in")
_OUT = metrics.BUNDLE_BYTES.labels("out")


class BundleShelf:
    """Implement `dispatch.api.Bundles`."""

    def __init__(
        self, *, store: Store, blobs: Blobs, ledger: Ledger, clock: Clock, trail: Trail, max_total: int
    ) -> None:
        """Take the shelf. `max_total`: bytes that all bundles together may take; a put beyond is refused in-band."""
        self._store = store
        self._blobs = blobs
        self._ledger = ledger
        self._clock = clock
        self._trail = trail
        self._max_total = max_total

    async def put(self, caller: Caller, bundle: BundleRef, data: AsyncIterator[bytes]) -> Verdict:
        """Store an archive (`Bundles.put`)."""
        digest = checked_digest(bundle.digest)
        if self._blobs.has_bundle(digest):
            self._trail.note(by(caller, Action.BUNDLE_STORED, f"bundle:{digest}", reason="it was there"))
            return Verdict(accepted=True)
        room = self._max_total - await self._store.bundle_bytes()
        file = self._blobs.new_bundle(digest)
        try:
            summed = sha256()
            async for piece in data:
                if file.size + len(piece) > MAX_BUNDLE:
                    raise InvalidRequest(f"workspace bundle exceeds {MAX_BUNDLE} bytes", fix="pack fewer files")
                if file.size + len(piece) > room:
                    return Verdict(accepted=False, error="the bundle store is full")
                summed.update(piece)
                file.write(piece)
            if bundle.size_bytes and file.size != bundle.size_bytes:
                return Verdict(
                    accepted=False, error=f"workspace bundle size mismatch: got {file.size}, want {bundle.size_bytes}"
                )
            if summed.hexdigest() != digest:
                return Verdict(accepted=False, error="workspace bundle digest mismatch")
            await self._trail.record(
                by(caller, Action.BUNDLE_STORED, f"bundle:{digest}", details={Detail.SIZE: file.size})
            )
            file.keep()
        finally:
            file.close()
        at = int(self._clock.now().timestamp() * 1000)
        await self._store.add_bundle(BundleRow(digest=digest, size_bytes=file.size, stored_at=at))
        _IN.inc(file.size)
        log.info("bundle.stored", digest=digest, size_bytes=file.size, by=caller.name)
        return Verdict(accepted=True)

    async def has(self, caller: Caller, digest: str) -> bool:
        """Tell whether the archive is stored (`Bundles.has`)."""
        self._check(caller, checked_digest(digest))
        self._trail.note(by(caller, Action.BUNDLE_READ, f"bundle:{digest}"))
        return self._blobs.has_bundle(digest)

    async def get(self, caller: Caller, digest: str) -> AsyncIterator[bytes]:
        """Yield the archive (`Bundles.get`)."""
        self._check(caller, checked_digest(digest))
        try:
            fd = self._blobs.read_bundle(digest)
        except NotFound:
            raise NotFound(f"workspace bundle not found: {digest}", fix="dispatch the run again") from None
        self._trail.note(by(caller, Action.BUNDLE_READ, f"bundle:{digest}"))
        try:
            offset = 0
            while piece := os.pread(fd, PIECE, offset):
                offset += len(piece)
                _OUT.inc(len(piece))
                yield piece
        finally:
            os.close(fd)

    def _check(self, caller: Caller, digest: str) -> None:
        """Workers see only bundles that a task of theirs names; the digest of another is not theirs to probe."""
        if is_limited(caller) and not any(
            entry.bundle is not None and entry.bundle.digest == digest
            for entry in self._ledger.held_by(caller, self._clock.now())
        ):
            raise Refused("a worker may read only bundles of its own tasks", why="no task that it holds names this one")
