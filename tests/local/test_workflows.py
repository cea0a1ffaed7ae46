"""The DAGs directory as a whole: what is read again, what is refused, what survives."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.operating import Workflow, WorkflowFilter
from secure_dagu.errors import Conflict, DefinitionError, InvalidRequest, NotFound
from secure_dagu.local.workflows import WorkflowFolder

HELLO = "labels: [team=ops, nightly]\nschedule: '0 3 * * *'\nsteps:\n  - id: a\n    run: echo hi\n"
PLAIN = "steps:\n  - id: a\n    run: echo hi\n"

Make = Callable[..., WorkflowFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    (tmp_path / "dags").mkdir()

    def made(*, recursive: bool = False) -> WorkflowFolder:
        return WorkflowFolder(
            tmp_path / "dags", tmp_path / "suspend", base_config=lambda: "", zone=lambda: UTC, recursive=recursive
        )

    return made


async def test_a_definition_is_created_changed_renamed_suspended_and_deleted(make: Make, tmp_path: Path) -> None:
    folder = make()
    made = await folder.create("one", HELLO)
    assert (made.name, made.errors, made.suspended) == ("one", (), False)
    assert made.next_run_at is not None
    with pytest.raises(Conflict):
        await folder.create("one", HELLO)
    seen = sha256(HELLO.encode()).hexdigest()
    await folder.write("one", PLAIN, seen=seen)
    with pytest.raises(Conflict, match="meanwhile"):
        await folder.write("one", HELLO, seen=seen)
    await folder.suspend("one", suspended=True)
    assert (tmp_path / "suspend" / "one.suspend").exists()
    await folder.rename("one", "two")
    assert [(item.file, item.suspended) for item in await folder.all()] == [("two", True)]
    await folder.delete("two")
    assert await folder.all() == []
    assert not list((tmp_path / "suspend").iterdir())


async def test_what_does_not_load_is_refused_and_changes_nothing(make: Make) -> None:
    folder = make()
    with pytest.raises(DefinitionError, match="runn"):
        await folder.create("bad", "steps:\n  - id: a\n    runn: echo\n")
    assert await folder.all() == []
    await folder.create("good", PLAIN)
    with pytest.raises(DefinitionError):
        await folder.write("good", "steps: [")
    assert (await folder.get("good")).text == PLAIN
    kept = await folder.write("good", "steps: [", strict=False)
    assert kept.definition is None
    assert "good.yaml:" in kept.errors[0]


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", ".hidden", "x" * 41, "a\0b", "/etc/passwd", "a b", "a\nb", "ü"]
)
async def test_no_name_leaves_the_directory(make: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.yaml").write_text(PLAIN)
    folder = make()
    with pytest.raises(NotFound):
        await folder.get(name)
    with pytest.raises(InvalidRequest):
        await folder.create(name, PLAIN)
    await folder.create("fine", PLAIN)
    with pytest.raises(InvalidRequest):
        await folder.rename("fine", name)
    with pytest.raises(NotFound):
        await folder.delete(name)


async def test_links_are_not_followed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text(PLAIN)
    os.symlink(tmp_path / "secret.yaml", tmp_path / "dags" / "link.yaml")
    folder = make()
    assert await folder.all() == []
    with pytest.raises(NotFound):
        await folder.get("link")
    with pytest.raises(NotFound):
        await folder.write("link", HELLO)
    assert (tmp_path / "secret.yaml").read_text() == PLAIN


async def test_only_changed_files_are_read_again(make: Make, tmp_path: Path) -> None:
    folder = make()
    await folder.create("a", PLAIN)
    await folder.create("b", PLAIN)
    before = {item.file: item.definition for item in await folder.all()}
    (tmp_path / "dags" / "b.yaml").write_text(HELLO)
    after = {item.file: item.definition for item in await folder.all()}
    assert after["a"] is before["a"]
    assert after["b"] is not before["b"]


async def test_filters_hold_together(make: Make) -> None:
    folder = make()
    await folder.create("etl-day", HELLO)
    await folder.create("etl-ad-hoc", PLAIN)
    await folder.create("report", HELLO)
    await folder.suspend("report", suspended=True)

    async def found(**wanted: object) -> list[str]:
        return [item.file for item in await folder.all(WorkflowFilter(**wanted))]  # type: ignore[arg-type]

    assert await found(name_part="ETL") == ["etl-ad-hoc", "etl-day"]
    assert await found(labels=("team=o*",)) == ["etl-day", "report"]
    assert await found(labels=("nightly", "!team")) == []
    assert await found(labels=("!nightly",)) == ["etl-ad-hoc"]
    assert await found(active_only=True) == ["etl-day"]
    assert await folder.labels() == ["nightly", "team=ops"]


async def test_two_files_of_one_name_are_both_left_out_and_told(make: Make, tmp_path: Path) -> None:
    for place in ("x", "y", ".hidden", "workspaces"):
        (tmp_path / "dags" / place).mkdir()
        (tmp_path / "dags" / place / "same.yaml").write_text(PLAIN)
    (tmp_path / "dags" / "x" / "own.yaml").write_text(PLAIN)
    folder = make(recursive=True)
    assert [item.file for item in await folder.all()] == ["own"]
    assert "2 files have this name" in (await folder.problems())[0]
    assert (await folder.get("own")).name == "own"


# ── the memory of what was read, against reading everything ──────────────────────────────────────────────────────────

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["write", "same size", "break", "move", "delete", "suspend", "link"]),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=30)
@given(edits=EDITS)
def test_what_is_remembered_is_what_a_fresh_look_finds(edits: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        dags, suspend = Path(name) / "dags", Path(name) / "suspend"
        outside = Path(name) / "outside"  # a later edit writes through the link: never a file of this machine
        outside.write_text("root:x:0:0::/:/bin/sh\n")
        dags.mkdir()
        suspend.mkdir()

        def fresh() -> WorkflowFolder:
            return WorkflowFolder(dags, suspend, base_config=lambda: "", zone=lambda: UTC)

        old = fresh()
        for number, (edit, one, other) in enumerate(edits):
            path, target = dags / f"d{one}.yaml", dags / f"d{other}.yaml"
            match edit:
                case "write":
                    path.write_text(PLAIN + f"description: '{number}'\n")
                case "same size" if path.exists():
                    path.write_text(path.read_text().replace("echo hi", "echo ho"))
                case "break":
                    path.write_text(f"steps: {number}")
                case "move" if path.exists():
                    path.replace(target)
                case "delete":
                    path.unlink(missing_ok=True)
                case "suspend":
                    (suspend / f"d{one}.suspend").touch()
                case "link" if not target.exists() and not target.is_symlink():
                    target.symlink_to(outside)
            assert _shown(asyncio.run(old.all())) == _shown(asyncio.run(fresh().all()))


def _shown(found: Sequence[Workflow]) -> list[tuple[str, str, bool, bool, tuple[str, ...]]]:
    return [(item.file, item.text, item.definition is None, item.suspended, item.errors) for item in found]
