"""A host of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.local.command import Host


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a home and a folder of workflow files, which is the current directory."""
    return Host(tmp_path, capsys, monkeypatch)
