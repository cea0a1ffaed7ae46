"""Verify a process's own audit log from time to time: every record, gently, while it is written."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_dagu.assembly.looking import looking
from secure_dagu.audit.chain import Place
from secure_dagu.audit.checkpoints import public_of, read_public
from secure_dagu.audit.events import SYSTEM, Action, Detail, Event, Outcome
from secure_dagu.audit.log import AuditLog
from secure_dagu.audit.verify import Bad, Report, verify
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

FIRST_AFTER_S: Final = 1.0
"""Pause before the first verification, which a start should not wait for."""
SHARE: Final = 0.1
"""Of one core, at most: 13,000 records or 5 MB a second where a core verifies ten times as many."""


class _Stopped(Exception):
    """The process ends before the verification does."""


class _Gentle:
    """Sleep after each piece of work for so long that the work keeps to its share."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._began = time.monotonic()

    def __call__(self) -> None:
        worked = time.monotonic() - self._began
        if self._stopping.wait(min(worked * (1 / SHARE - 1), 1.0)):
            raise _Stopped
        self._began = time.monotonic()


@contextlib.asynccontextmanager
async def verified(trail: AuditLog, folder: Path, source: str, *, every: timedelta) -> AsyncIterator[None]:
    """Verify the log of `folder`, which `trail` writes, soon and then every `every`, for the time of the context.

    What is found goes into the log itself, to `trail.checked`, the metrics and the operators' log. A log that is found
    damaged is still written: what happens now is worth recording too.

    The key and the place of the last verification are remembered here, so a log that is written anew with its key
    meanwhile is found as well.
    """
    stopping = threading.Event()
    key = read_public(public_of(folder))

    async def look() -> None:
        at = datetime.now(UTC)
        try:
            report = await asyncio.to_thread(_verify, folder, key, trail.checked, stopping)
        except OSError as error:
            log.warning("audit.not_verified", why=str(error), fix="see `secure-dagu audit verify`")
            return
        if report is None:
            return
        bad = report.bad
        trail.verified(Place(report.records, report.head), at, damage=_words(bad))
        metrics.audit_verified(ok=bad is None, head=trail.place.hash)
        trail.note(
            Event(
                action=Action.AUDIT_VERIFIED, actor=SYSTEM, target=f"log:{source}", reason=_words(bad),
                outcome=Outcome.SUCCEEDED if bad is None else Outcome.FAILED, details={Detail.NUMBER: report.records},
            )
        )  # fmt: skip
        if bad is not None:
            log.error(
                "audit.damaged", record=bad.seq, kind=bad.kind, why=bad.text,
                fix="look with `secure-dagu audit verify`, and keep the folder as evidence",
            )  # fmt: skip

    name = "verify the audit log"
    async with looking(look, every_s=every.total_seconds(), name=name, first_after_s=FIRST_AFTER_S):
        try:
            yield
        finally:
            stopping.set()


def _verify(folder: Path, key: Ed25519PublicKey, checked: Place, stopping: threading.Event) -> Report | None:
    """Return what a verification finds; None: the process ends before it does."""
    anchor = checked if checked.seq else None
    try:
        report = verify(folder, key=key, anchor=anchor, breathe=_Gentle(stopping))
        if report.bad is not None:  # read while a full disk has a batch taken back, a good log can look bad for once
            report = verify(folder, key=key, anchor=anchor, breathe=_Gentle(stopping))
    except _Stopped:
        return None
    return report


def _words(bad: Bad | None) -> str:
    return f"{bad.kind} at record {bad.seq}" if bad is not None else ""
