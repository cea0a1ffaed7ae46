"""`artifact.*`: what is written, and that nothing leads out of the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.executors.test_sqlite import dag, error_of, step
from tests.runner.harness import Seen, run


async def act(base: Path, name: str, **inputs: Any) -> Seen:
    return await run(dag(step("q", f"artifact.{name}", **inputs)), base)


async def test_an_artifact_is_written_read_and_listed(tmp_path: Path) -> None:
    seen = await run(
        dag(
            step("w", "artifact.write", path="a/./b.txt", content="hi"),
            step("r", "artifact.read", path="a/b.txt"),
            step("j", "artifact.read", path="a/b.txt", format="json"),
            step("l", "artifact.list", recursive=True),
            step("s", "artifact.list", path="a"),
        ),
        tmp_path,
    )
    assert seen.out("w") == '{"operation":"write","path":"a/b.txt","bytes":2,"created":true}\n'
    assert seen.out("r") == "hi"
    assert json.loads(seen.out("j"))["path"] == "a/b.txt"
    assert [entry["path"] for entry in json.loads(seen.out("l"))["entries"]] == ["a/b.txt"]
    assert [entry["path"] for entry in json.loads(seen.out("s"))["entries"]] == ["b.txt"]
    assert (tmp_path / "artifacts/a/b.txt").read_text() == "hi"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:\\x", "C:x", "\\x", "."])
@pytest.mark.parametrize("action", ["write", "read"])
async def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path: str, action: str) -> None:
    seen = await act(tmp_path, action, path=path, **({"content": "x"} if action == "write" else {}))
    assert seen.status is RunStatus.FAILED
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("action", "path"), [("write", "out/f"), ("read", "out/f"), ("read", "leaf"), ("write", "leaf"), ("list", "out")]
)
@pytest.mark.parametrize("atomic", [True, False])
async def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, action: str, path: str, atomic: bool) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/f").write_text("SECRET")
    (tmp_path / "artifacts").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "artifacts/out")
    os.symlink(tmp_path / "secret/f", tmp_path / "artifacts/leaf")
    more: dict[str, Any] = {"content": "x", "overwrite": True, "atomic": atomic} if action == "write" else {}
    seen = await act(tmp_path, action, path=path, **more)
    assert "link" in error_of(seen)
    assert (tmp_path / "secret/f").read_text() == "SECRET"
    assert b"SECRET" not in b"".join(seen.logs.values())


async def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "does not exist" in error_of(await act(tmp_path, "read", path="none/f"))
