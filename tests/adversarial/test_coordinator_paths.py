"""Threat T12: names from the wire never reach a path outside, whatever they look like and whatever lies on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.model import LogStream
from secure_dagu.errors import InvalidRequest, NotFound, SecureDaguError
from secure_dagu.run.model import AttemptId, DagRunRef
from secure_dagu.store.blobs import Blobs, LogPlace, log_name, safe
from secure_dagu.store.folder import Folder

NASTY = st.sampled_from(
    ["..", ".", "", "/", "\\", "\0", "a", "a/../..", "../../x", "/etc/passwd", "C:\\x", "x" * 300, "é" * 200, "\u202e",
     ".dagu-artifact-1", "a\nb", "link", "link/x", "file", "file/x", "pipe", "NUL", "con."]
)  # fmt: skip
names = st.one_of(NASTY, st.text(max_size=40), st.lists(NASTY, max_size=4).map("/".join))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file outside the three roots."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with traps inside the roots and a treasure outside."""
    ground = tmp_path_factory.mktemp("ground")
    (ground / "outside").mkdir()
    (ground / "outside" / "treasure").write_bytes(b"untouched")
    archive = ground / "artifacts" / "sales" / "run"
    archive.mkdir(parents=True)
    (archive / "link").symlink_to(ground / "outside")
    (archive / "treasure").symlink_to(ground / "outside" / "treasure")
    (archive / "file").write_bytes(b"file")
    os.mkfifo(archive / "pipe")
    logs = ground / "logs" / "sales" / "r1" / "a1"
    logs.mkdir(parents=True)
    (logs / "one.stdout.log").symlink_to(ground / "outside" / "treasure")
    os.link(ground / "outside" / "treasure", logs / "two.stdout.log")
    os.mkfifo(logs / "three.stdout.log")
    return ground


def blobs_of(ground: Path) -> Blobs:
    """Return the files of the ground."""
    return Blobs(logs=ground / "logs", artifacts=ground / "artifacts", bundles=ground / "bundles")


@given(path=names)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_an_artifact_never_lands_outside(ground: Path, path: str) -> None:
    blobs = blobs_of(ground)
    outside = snapshot(ground / "outside")
    try:
        file = blobs.new_artifact("sales/run", path)
    except InvalidRequest:
        pass
    else:
        try:
            file.write(b"evil")
            file.keep()
        except InvalidRequest:
            pass
        finally:
            file.close()
    assert snapshot(ground / "outside") == outside
    top = {entry.name for entry in ground.iterdir()}
    assert top <= {"outside", "artifacts", "logs", "bundles"}
    for found in blobs.artifacts("sales/run"):
        os.close(blobs.read_artifact("sales/run", found.path))


@given(step=names, dag=names, run_id=names, attempt=names, stream=st.sampled_from(LogStream))
@settings(max_examples=400)
def test_a_log_name_is_one_plain_component(step: str, dag: str, run_id: str, attempt: str, stream: LogStream) -> None:
    place = LogPlace(DagRunRef(dag, run_id), AttemptId(attempt))
    for part in (*place.parts, log_name(step, stream)):
        assert "/" not in part
        assert part not in (".", "..")
        assert len(part.encode()) <= 255
        assert part.isascii()


@given(one=names, two=names)
@settings(max_examples=400)
def test_two_steps_never_share_a_log(one: str, two: str) -> None:
    if one != two:
        for stream in (LogStream.STDOUT, LogStream.STDERR):
            assert log_name(one, stream) != log_name(two, stream)


def test_the_plain_formula_holds_for_plain_names() -> None:
    assert log_name("greet_1-a", LogStream.STDOUT) == "greet_1-a.stdout.log"
    assert safe("../../evil step") == "______evil_step"


@pytest.mark.parametrize("step", ["one", "two", "three"])
def test_a_link_or_pipe_in_the_place_of_a_log_is_not_written(ground: Path, step: str) -> None:
    place = LogPlace(DagRunRef("sales", "r1"), AttemptId("a1"))
    with pytest.raises(InvalidRequest):
        blobs_of(ground).open_log(place, step, LogStream.STDOUT)
    if step != "two":  # a hard link is a file like any other to a reader
        with pytest.raises(NotFound):
            blobs_of(ground).read_log(place, step, LogStream.STDOUT)
    assert (ground / "outside" / "treasure").read_bytes() == b"untouched"


@pytest.mark.parametrize("name", ["link", "treasure", "pipe"])
def test_links_and_special_files_are_no_artifacts(ground: Path, name: str) -> None:
    blobs = blobs_of(ground)
    with pytest.raises(SecureDaguError):
        blobs.read_artifact("sales/run", name)
    with pytest.raises(SecureDaguError):
        blobs.read_artifact("sales/run", f"{name}/treasure")
    file = blobs.new_artifact("sales/run", name)
    with pytest.raises(InvalidRequest):
        file.keep()
    file.close()
    assert [info.path for info in blobs.artifacts("sales/run") if info.path == name] == []


def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidRequest):
        Folder(tmp_path / "root").open_write(("a",), "x")
    assert list((tmp_path / "outside").iterdir()) == []
