"""`sftp.upload` and `sftp.download`, against a real OpenSSH server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secure_dagu.errors import IntegrityViolation
from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors import sftp
from tests.runner.executors.sshd import Sshd
from tests.runner.harness import Seen, run


def step(sshd: Sshd, action: str, source: object, destination: object) -> str:
    inputs = f"{{{sshd.settings()}, source: {source}, destination: {destination}}}"
    return f"steps:\n  - name: a\n    action: sftp.{action}\n    with: {inputs}\n"


def succeeded(seen: Seen) -> bool:
    return seen.status is RunStatus.SUCCEEDED


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "one").write_text("1")
    (folder / "deep" / "two").write_text("2" * 100_000)
    (folder / "deep" / "er" / "three").write_text("")
    return folder


@pytest.mark.parametrize("action", ["upload", "download"])
async def test_a_file_arrives_whole_and_replaces_what_was_there(
    sshd: Sshd, tmp_path: Path, source: Path, action: str
) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    seen = await run(step(sshd, action, source / "deep" / "two", target), tmp_path / "run")
    assert succeeded(seen), seen.final
    assert target.read_text() == "2" * 100_000
    assert str(target) in seen.out("a")
    assert sorted(os.listdir(tmp_path)) == ["run", "source", "target"]


@pytest.mark.parametrize("action", ["upload", "download"])
async def test_a_file_goes_into_a_directory(sshd: Sshd, tmp_path: Path, source: Path, action: str) -> None:
    seen = await run(step(sshd, action, source / "one", f"{tmp_path}/new/"), tmp_path / "run")
    assert succeeded(seen), seen.final
    assert tree(tmp_path / "new") == {"one": "1"}


@pytest.mark.parametrize("action", ["upload", "download"])
async def test_a_directory_is_copied_with_all_that_is_in_it(
    sshd: Sshd, tmp_path: Path, source: Path, action: str
) -> None:
    (source / "round").symlink_to(source)
    seen = await run(step(sshd, action, source, tmp_path / "target"), tmp_path / "run")
    assert succeeded(seen), seen.final
    assert tree(tmp_path / "target") == tree(source)
    assert not (tmp_path / "target" / "round").exists()


async def test_an_uploaded_program_can_still_be_run(sshd: Sshd, tmp_path: Path, source: Path) -> None:
    (source / "one").chmod(0o755)
    await run(step(sshd, "upload", source / "one", tmp_path / "target"), tmp_path / "run")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("action", ["upload", "download"])
async def test_a_source_that_is_not_there_fails_and_leaves_nothing(sshd: Sshd, tmp_path: Path, action: str) -> None:
    seen = await run(step(sshd, action, tmp_path / "none", tmp_path / "target"), tmp_path / "run")
    assert seen.status is RunStatus.FAILED
    assert "o such file" in seen.details()["a"]["error"]
    assert os.listdir(tmp_path) == ["run"]


async def test_a_relative_path_is_below_the_working_directory(sshd: Sshd, tmp_path: Path, source: Path) -> None:
    text = f"working_dir: {source}\nssh: {{{sshd.settings()}}}\nsteps:\n  - name: a\n    action: sftp.upload\n"
    text += f"    with: {{source: one, destination: {tmp_path}/target}}\n"
    assert succeeded(await run(text, tmp_path / "run"))
    assert (tmp_path / "target").read_text() == "1"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/passwd", "a\0b"])
def test_a_server_cannot_name_a_file_elsewhere(name: str) -> None:
    with pytest.raises(IntegrityViolation):
        sftp._safe_name(name)
