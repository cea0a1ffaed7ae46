"""Packing of workspace bundles."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from secure_dagu.errors import DefinitionError
from secure_dagu.runner import bundle


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1,2\n")
    first, packed = bundle.pack(base=tmp_path, dag_path="etl.yaml", dag_text="steps: []\n", patterns=["data/*.csv"])
    os.utime(tmp_path / "data" / "a.csv", (1, 1))
    second, again = bundle.pack(base=tmp_path, dag_path="etl.yaml", dag_text="steps: []\n", patterns=["data"])
    assert (first, packed) == (second, again)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames() == ["data/a.csv", "etl.yaml"]


@pytest.mark.parametrize("pattern", ["../secret", "/etc/passwd", "a/../../b", ".git/config"])
def test_a_dependency_that_climbs_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DefinitionError, match="is refused"):
        bundle.pack(base=tmp_path, dag_path="d.yaml", dag_text="", patterns=[pattern])


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(DefinitionError, match="is refused"):
        bundle.pack(base=tmp_path, dag_path="d.yaml", dag_text="", patterns=["link"])


def test_a_dependency_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="matches nothing"):
        bundle.pack(base=tmp_path, dag_path="d.yaml", dag_text="", patterns=["*.csv"])
