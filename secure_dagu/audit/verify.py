"""Verify a log offline: every hash, every number, every signature, every file; name the first record that is bad."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Struct, field

from secure_dagu.audit import chain, journal
from secure_dagu.audit.chain import MAX_LINE, Broken, Place
from secure_dagu.audit.checkpoints import is_signed
from secure_dagu.audit.journal import HEAD_FILE, SIGN_RECORDS
from secure_dagu.audit.log import MAX_BATCH

MAX_UNSIGNED = SIGN_RECORDS + MAX_BATCH
"""More records than this without a checkpoint were not written so."""
SLICE = 500
"""Records between two pauses: about 4 ms of work."""


class Bad(Struct, frozen=True, kw_only=True):
    """What is wrong first."""

    seq: int
    """The first bad record."""
    kind: str
    """A `chain.Flaw`, or one of truncated, missing-file, unsigned, bad-signature, not-the-anchor, no-checkpoint."""
    text: str
    file: str
    line: int
    """From 1; 0 when the file itself is at fault."""


class Report(Struct, frozen=True, kw_only=True):
    """What a verification found. `bad` None: every record is what was written."""

    folder: str
    records: int
    files: int
    head: str
    """Hash of the last good record."""
    signed: int
    """The last record that a signature covers."""
    checkpoints: int
    bad: Bad | None = field(default=None)

    @property
    def unsigned(self) -> int:
        """Return how many records at the end are chained and not yet signed: what a cut could take unseen."""
        return self.records - self.signed


class _Verified:
    """How far it is good."""

    def __init__(self) -> None:
        self.place = Place()
        self.signed = 0
        self.checkpoints = 0
        self.files = 0


def verify(
    folder: Path, *, key: Ed25519PublicKey, anchor: Place | None = None, breathe: Callable[[], None] = lambda: None
) -> Report:
    """Read every file of a log from the first record to the last. A log that is written meanwhile is no trouble.

    Args:
        folder: the log, or a copy of its files.
        key: the public half that signed it.
        anchor: a place that was noted elsewhere before; the log must contain it.
        breathe: called after every `SLICE` records: to pause, or to raise what ends the verification.
    """
    done = _Verified()
    # The copy of the newest checkpoint before the files: a log that grows meanwhile goes at least that far.
    head = journal.head_line(folder)
    places = [place for place in (chain.place_of(head), anchor) if place is not None]
    bad = _walk(folder, done, key, {place.seq: place.hash for place in places}, breathe)
    bad = bad or _end(done.place.seq, head, key, anchor)
    return Report(
        folder=str(folder), records=done.place.seq, files=done.files, head=done.place.hash, signed=done.signed,
        checkpoints=done.checkpoints, bad=bad,
    )  # fmt: skip


def _walk(
    folder: Path, done: _Verified, key: Ed25519PublicKey, watched: Mapping[int, str], breathe: Callable[[], None]
) -> Bad | None:
    follows, is_checkpoint = chain.follows, chain.is_checkpoint
    for path in journal.files_of(folder):
        expected = done.place.seq + 1
        if int(path.stem) > expected:
            return Bad(
                seq=expected, kind="missing-file", text=f"the file that begins with record {expected} is not here",
                file=path.name, line=0,
            )  # fmt: skip
        done.files += 1
        for number, line in _lines(path):
            after = follows(line, done.place)
            if isinstance(after, Broken):
                return Bad(seq=after.seq, kind=after.flaw.value, text=after.text, file=path.name, line=number)
            if is_checkpoint(line):
                try:
                    signed = is_signed(chain.read(line), key)
                except ValueError:
                    signed = False
                if not signed:
                    return Bad(
                        seq=done.signed + 1, kind="bad-signature", file=path.name, line=number,
                        text=f"the key did not sign record {after.seq}: records {done.signed + 1} to {after.seq} "
                        "may be anybody's",
                    )  # fmt: skip
                done.signed = after.seq
                done.checkpoints += 1
            elif after.seq - done.signed > MAX_UNSIGNED:
                return Bad(
                    seq=done.signed + 1, kind="unsigned", file=path.name, line=number,
                    text=f"more than {MAX_UNSIGNED} records without a checkpoint: they were not written so",
                )  # fmt: skip
            if after.seq in watched and watched[after.seq] != after.hash:
                return Bad(
                    seq=after.seq, kind="not-the-anchor", file=path.name, line=number,
                    text="a checkpoint that was kept has another hash for this record: the log was rewritten",
                )  # fmt: skip
            done.place = after
            if not after.seq % SLICE:
                breathe()
    return None


def _end(last: int, head: bytes, key: Ed25519PublicKey, anchor: Place | None) -> Bad | None:
    """Judge where the log ends: it must go as far as what was kept of it says."""

    def bad(kind: str, text: str) -> Bad:
        return Bad(seq=last + 1, kind=kind, text=text, file="", line=0)

    if anchor is not None and anchor.seq > last:
        return bad("truncated", f"it ends at record {last}; the anchor says that it went to {anchor.seq}")
    if not head:
        return bad("no-checkpoint", f"{HEAD_FILE} is not here, so the end may be missing as well")
    place = chain.place_of(head)
    try:
        is_good = place is not None and is_signed(chain.read(head), key)
    except ValueError:
        is_good = False
    if place is None or not is_good:
        return bad("bad-signature", f"{HEAD_FILE} is not what was signed, so the end may be missing")
    if place.seq > last:
        return bad(
            "truncated", f"it ends at record {last}, and record {place.seq} was signed: the records between are gone"
        )
    return None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.endswith(b"\n") and len(line) < MAX_LINE:  # perhaps it is being written now
                time.sleep(0.2)
                line += file.readline(MAX_LINE)
            yield number, line
