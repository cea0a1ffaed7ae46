"""Small files written whole: what a reader finds, before, meanwhile and when the disk refuses."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from secure_dagu.store import whole


def test_a_file_is_replaced_private_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    path.chmod(0o644)
    whole.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"precious")
    path = tmp_path / "state.json"
    path.symlink_to(tmp_path / "outside")
    whole.replace(path, b"new")
    assert (tmp_path / "outside").read_bytes() == b"precious"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


def test_what_cannot_be_replaced_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(IsADirectoryError):
        whole.replace(tmp_path / "state.json", b"new")
    assert os.listdir(tmp_path) == ["state.json"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    texts = [bytes([65 + number]) * 100_000 for number in range(8)]
    writers = [threading.Thread(target=whole.replace, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in texts
    assert os.listdir(tmp_path) == ["state.json"]
