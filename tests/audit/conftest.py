"""A log with a few hundred records in several files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from secure_dagu.audit import journal
from secure_dagu.audit.checkpoints import public_of, read_public
from secure_dagu.audit.events import Action, Detail, Event
from secure_dagu.audit.verify import Report, verify

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def an_event(number: int = 0) -> Event:
    return Event(
        action=Action.TASK_DISPATCHED,
        actor="spiffe://secure-dagu/dispatcher/cron",
        serial="1f2e",
        address="192.0.2.7:40000",
        target=f"run:etl/{number}",
        details={Detail.ATTEMPT: "a" * 32},
    )


def write(folder: Path, *numbers: int, max_file: int = journal.MAX_FILE) -> None:
    """Append one event for each number, each as its own batch, and close with a checkpoint."""
    with journal.opened(folder, host="ci", source="coordinator", max_file=max_file) as log:
        for number in numbers:
            log.append([(an_event(number), NOW)])


def check(folder: Path) -> Report:
    return verify(folder, key=read_public(public_of(folder)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a good log: 60 events in several files."""
    folder = tmp_path / "audit"
    write(folder, *range(60), max_file=8_000)
    assert len(journal.files_of(folder)) >= 3
    assert check(folder).bad is None
    return folder
