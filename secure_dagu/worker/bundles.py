"""Download a workspace bundle: bounded, and only what the task promised by size and digest (protocol, section 7)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

from secure_dagu.dispatch.api import Bundles
from secure_dagu.dispatch.model import BundleRef, Caller
from secure_dagu.errors import IntegrityViolation, Unavailable
from secure_dagu.worker.timings import Timings, half_jitter

_TRIES = 5


async def fetch(bundles: Bundles, caller: Caller, bundle: BundleRef, target: Path, *, timings: Timings) -> None:
    """Write the archive to `target` (a new file, mode 0600).

    Raises:
        IntegrityViolation: it is longer or shorter than promised, or has another digest.
        NotFound: the coordinator does not have it.
        Unavailable: it broke off five times.
    """
    for failures in range(1, _TRIES + 1):
        try:
            await _fetch_once(bundles, caller, bundle, target)
            return
        except Unavailable:
            if failures == _TRIES:
                raise
            await asyncio.sleep(half_jitter(failures, first_s=timings.first_retry_s, cap_s=timings.retry_cap_s))


async def _fetch_once(bundles: Bundles, caller: Caller, bundle: BundleRef, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    digest = hashlib.sha256()
    received = 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        async for data in bundles.get(caller, bundle.digest):
            received += len(data)
            # Before writing: a stranger must not be able to fill our disk.
            if received > bundle.size_bytes:
                raise _broken(bundle, f"it is longer than the promised {bundle.size_bytes} bytes")
            digest.update(data)
            file.write(data)
    if received != bundle.size_bytes:
        raise _broken(bundle, f"{received} of {bundle.size_bytes} bytes came")
    if digest.hexdigest() != bundle.digest:
        raise _broken(bundle, f"its digest is {digest.hexdigest()}")


def _broken(bundle: BundleRef, why: str) -> IntegrityViolation:
    return IntegrityViolation(
        f"workspace bundle {bundle.digest[:12]} is not what was promised",
        why=why,
        fix="dispatch the workflow again; if it happens twice, inspect the coordinator's bundle store",
    )
