"""Fixtures of the coordinator's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.coordinator.harness import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return the folders and the clock of one coordinator."""
    return Place(tmp_path)
