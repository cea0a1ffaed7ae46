"""The store of builds: locks, and commits that a crash may cut off anywhere (workflow language, section 3.17)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_dagu.dag import recipes
from secure_dagu.dag.recipes import Manifest
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.build_store import Stopped, Store, digest

OLD, NEW = "the old content", "the new content"


def never() -> bool:
    return False


def manifest(content: str) -> Manifest:
    made = hashlib.sha256(content.encode()).hexdigest()
    return Manifest(recipe=f"recipe of {content}", inputs={"src": "0" * 64}, output=made, producer="demo/run-1")


class Place:
    """A store, an output with its old content, and a staged file with the new one."""

    def __init__(self, base: Path) -> None:
        self.store = Store(base / "materializations")
        self.store.make()
        self.output = base / "made.txt"
        self.commit(OLD)
        self.staged = self.stage(NEW)

    def stage(self, content: str) -> str:
        staged = recipes.staging_path(str(self.output), "token")
        Path(staged).write_text(content)
        return staged

    def commit(self, content: str) -> None:
        for act in self.store.acts(self.stage(content), str(self.output), manifest(content)):
            act()

    @property
    def journals(self) -> list[Path]:
        return list((self.output.parent / "materializations" / "journals").iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("done", range(6))
def test_a_crash_after_any_act_leaves_one_whole_file_and_a_manifest_that_fits(place: Place, done: int) -> None:
    acts = place.store.acts(place.staged, str(place.output), manifest(NEW))
    assert len(acts) == 5
    for act in acts[:done]:
        act()
    assert place.output.read_text() == (NEW if done >= 3 else OLD)

    place.store.recover(str(place.output), never)
    expected = NEW if done >= 2 else OLD  # from the journal on, the commit is finished
    assert place.output.read_text() == expected
    assert place.store.manifest(str(place.output)) == manifest(expected)
    assert not Path(place.staged).exists()
    assert place.journals == []


@pytest.mark.parametrize("done", range(2, 5))
def test_recovery_may_itself_be_cut_off(place: Place, done: int) -> None:
    for act in place.store.acts(place.staged, str(place.output), manifest(NEW))[:done]:
        act()
    place.store.recover(str(place.output), never)
    place.store.recover(str(place.output), never)
    assert place.store.manifest(str(place.output)) == manifest(NEW)


def test_a_file_that_somebody_changed_after_the_crash_is_not_called_ours(place: Place) -> None:
    for act in place.store.acts(place.staged, str(place.output), manifest(NEW))[:3]:
        act()
    place.output.write_text("an editor was here")
    place.store.recover(str(place.output), never)
    assert place.output.read_text() == "an editor was here"
    assert place.store.manifest(str(place.output)) == manifest(OLD)
    assert place.journals == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"staged": "/etc/passwd", "output": "x", "manifest": {}}', '{"staged": 7}']
)
def test_a_journal_that_cannot_be_read_is_named_and_kept(place: Place, text: str) -> None:
    journal = place.output.parent / "materializations" / "journals" / f"{recipes.key_of(str(place.output))}.json"
    journal.write_text(text)
    with pytest.raises(DefinitionError, match=str(journal)):
        place.store.recover(str(place.output), never)
    assert place.output.read_text() == OLD


def test_a_journal_leads_to_no_file_but_a_staging_file_of_this_output(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(NEW)
    journal = tmp_path / "materializations" / "journals" / f"{recipes.key_of(str(place.output))}.json"
    values = {"recipe": "", "inputs": {}, "output": manifest(NEW).output, "producer": ""}
    journal.write_text(json.dumps({"staged": str(other), "output": str(place.output), "manifest": values}))
    with pytest.raises(DefinitionError):
        place.store.recover(str(place.output), never)
    assert other.exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"recipe": 1}', '{"recipe":"","inputs":{"a":1},"output":""}'])
def test_a_damaged_manifest_is_none(place: Place, text: str) -> None:
    path = place.output.parent / "materializations" / "manifests" / f"{recipes.key_of(str(place.output))}.json"
    path.write_text(text)
    assert place.store.manifest(str(place.output)) is None


def test_recovery_removes_only_staging_files_of_its_output(place: Place, tmp_path: Path) -> None:
    kept = [tmp_path / ".secure-dagu-1.other.txt", tmp_path / "token.made.txt", tmp_path / ".secure-dagu-made.txt"]
    for path in kept:
        path.write_text("")
    gone = [tmp_path / ".secure-dagu-1.made.txt", tmp_path / ".secure-dagu-2.made.txt"]
    gone[0].write_text("")
    gone[1].mkdir()
    (gone[1] / "below").write_text("")
    place.store.recover(str(place.output), never)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


COMMITS = """
import hashlib, sys
from itertools import count
from pathlib import Path
from secure_dagu.dag import recipes
from secure_dagu.dag.recipes import Manifest
from secure_dagu.runner.build_store import Store
store, output = Store(Path(sys.argv[1])), sys.argv[2]
print("go", flush=True)
for number in count():
    content = f"{number}\\n" * 2000
    staged = recipes.staging_path(output, f"t{number}")
    Path(staged).write_text(content)
    made = hashlib.sha256(content.encode()).hexdigest()
    for act in store.acts(staged, output, Manifest(recipe=str(number), inputs={}, output=made, producer="")):
        act()
"""


def test_a_process_killed_while_it_commits_leaves_one_whole_file(place: Place) -> None:
    """Killed at whatever moment it happens to be, five times over."""
    output = str(place.output)
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMITS, place.output.parent / "materializations", output],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        process.stdout.readline()
        before = place.output.read_text()
        while place.output.read_text() == before:  # at least one commit; then some loops of ours, a few more each time
            pass
        for _ in range(attempt * 3000):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

        lines = place.output.read_text().splitlines()
        assert len(lines) == 2000
        assert len(set(lines)) == 1
        place.store.recover(output, never)
        found = place.store.manifest(output)
        assert found is not None
        assert found.output == digest(output, never)
        assert found.recipe == place.output.read_text().splitlines()[0]
        assert not list(place.output.parent.glob(".secure-dagu-*"))


@pytest.fixture
def held(place: Place) -> Iterator[list[int]]:
    handles: list[int] = []
    yield handles
    for handle in handles:
        os.close(handle)


async def test_readers_share_and_a_maker_waits_for_them(place: Place, held: list[int]) -> None:
    stop = asyncio.Event()
    first = await place.store.lock("/a", exclusive=False, stop=stop)
    held.append(await place.store.lock("/a", exclusive=False, stop=stop))
    async with asyncio.TaskGroup() as group:
        maker = group.create_task(place.store.lock("/a", exclusive=True, stop=stop))
        async with asyncio.timeout(60):
            held.append(await place.store.lock("/b", exclusive=True, stop=stop))  # another file: nobody's business
        assert not maker.done()
        os.close(first)
        os.close(held.pop(0))
        held.append(await maker)


async def test_a_stop_ends_the_wait_for_a_lock(place: Place, held: list[int]) -> None:
    stop = asyncio.Event()
    held.append(await place.store.lock("/a", exclusive=True, stop=stop))
    stop.set()
    with pytest.raises(Stopped):
        await place.store.lock("/a", exclusive=False, stop=stop)


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert digest(str(path), never) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert digest(str(tmp_path / "none"), never) is None
    with pytest.raises(Stopped):
        digest(str(path), lambda: True)
