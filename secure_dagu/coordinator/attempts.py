"""What is known of the attempts that report under a task: from memory, from the store after a restart."""

from __future__ import annotations

from secure_dagu.coordinator.ledger import Entry, KnownAttempt
from secure_dagu.run.model import AttemptKey
from secure_dagu.store.api import AttemptRow, Store


async def known_attempt(store: Store, entry: Entry, key: AttemptKey) -> KnownAttempt | None:
    """Return the attempt `key` if it reports under `entry`, None otherwise."""
    known = entry.attempts.get(key)
    if known is None:
        row = await store.attempt(key)
        if row is not None and row.claim_key == entry.key:
            known = entry.attempts[key] = as_known(row)
    return known


def as_known(row: AttemptRow) -> KnownAttempt:
    """Return what the next report is judged on."""
    return KnownAttempt(
        key=row.key, attempt_id=row.attempt_id, run=row.run, claim_key=row.claim_key, status=row.status,
        worker=row.worker, archive=row.archive, labels=row.labels, revision=row.revision,
    )  # fmt: skip
