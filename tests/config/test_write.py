"""Settings that a command adds to the file of a person."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from secure_dagu.config import write
from secure_dagu.errors import ConfigError


def test_a_new_file_is_private_and_holds_what_was_wanted(tmp_path: Path) -> None:
    file = tmp_path / "home" / "config.yaml"
    added = write.add_missing(file, {"worker.id": "w1", "worker.coordinators": ["c:1"], "coordinator.port": 5})
    assert added == ("worker.id", "worker.coordinators", "coordinator.port")
    assert file.read_text() == "worker:\n  id: w1\n  coordinators:\n  - c:1\ncoordinator:\n  port: 5\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_there_stays_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    text = "# mine\ntz: 'Europe/Berlin'   # home\nworker:\n  id: mine # stays\n"
    file.write_text(text)
    file.chmod(0o640)
    assert write.add_missing(file, {"worker.id": "w1", "worker.labels": {"a": "b"}}) == ("worker.labels",)
    assert file.read_text() == text + "  labels:\n    a: b\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert write.add_missing(file, {"worker.id": "w1"}) == ()


def test_a_file_of_comments_or_with_an_empty_section_is_filled(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# nothing yet")
    write.add_missing(file, {"worker.id": "w1"})
    assert file.read_text() == "# nothing yet\nworker:\n  id: w1\n"
    file.write_text("worker:\n")
    write.add_missing(file, {"worker.id": "w1"})
    assert "id: w1" in file.read_text()


def test_a_file_that_cannot_be_used_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("worker: [")
    with pytest.raises(ConfigError):
        write.add_missing(file, {"worker.id": "w1"})
    assert file.read_text() == "worker: ["
