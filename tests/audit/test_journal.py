"""Files: private, one writer, whole batches, taken up again after a crash."""

from __future__ import annotations

import itertools
import stat
from pathlib import Path

import pytest

from secure_dagu.audit import journal
from secure_dagu.audit.chain import read
from secure_dagu.audit.checkpoints import KEY_FILE, load_or_make
from secure_dagu.errors import ConfigError, IntegrityViolation, Unavailable
from tests.audit.conftest import NOW, an_event, check, write


def actions(folder: Path) -> list[str]:
    return [read(line).action for path in journal.files_of(folder) for line in path.read_bytes().splitlines(True)]


def test_everything_is_private(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_log_begins_with_its_key_and_a_signature(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    assert actions(tmp_path / "a") == ["audit.key_made", "audit.checkpoint", "task.dispatched", "audit.checkpoint"]


def test_it_goes_on_where_it_ended(folder: Path) -> None:
    before = check(folder)
    write(folder, 1, 2, 3)
    after = check(folder)
    assert after.bad is None
    assert after.records == before.records + 4  # and one checkpoint
    assert after.unsigned == 0


def test_each_file_ends_signed_and_the_next_one_goes_on(folder: Path) -> None:
    files = journal.files_of(folder)
    for path, later in itertools.pairwise(files):
        last = read(path.read_bytes().splitlines(True)[-1])
        assert last.action == "audit.checkpoint"
        assert int(later.stem) == last.seq + 1


def test_a_log_has_one_writer(folder: Path) -> None:
    with (
        journal.opened(folder, host="ci", source="coordinator"),
        pytest.raises(Unavailable, match="another process"),
        journal.opened(folder, host="ci", source="command", wait_s=0.05),
    ):
        pass


def test_a_torn_line_that_nobody_was_told_of_is_removed_and_said(folder: Path) -> None:
    last = journal.files_of(folder)[-1]
    with last.open("ab") as file:
        file.write(b'{"seq":9999,"prev":"abc')
    write(folder, 1)
    assert check(folder).bad is None
    assert actions(folder)[-4:] == ["audit.recovered", "audit.checkpoint", "task.dispatched", "audit.checkpoint"]


def test_a_file_that_a_crash_left_empty_is_no_trouble(folder: Path) -> None:
    (folder / f"{check(folder).records + 1:012d}.jsonl").touch(0o600)
    write(folder, 1)
    assert check(folder).bad is None


@pytest.mark.parametrize("damage", ["cut", "flip", "swap-tail"])
def test_a_damaged_log_is_not_written_on(folder: Path, damage: str) -> None:
    last = journal.files_of(folder)[-1]
    lines = last.read_bytes().splitlines(True)
    if damage == "cut":
        lines = lines[:-1]
    elif damage == "flip":
        lines[0] = lines[0].replace(b"etl", b"elt")
    else:
        lines[-1], lines[-2] = lines[-2], lines[-1]
    last.write_bytes(b"".join(lines))
    with pytest.raises(IntegrityViolation, match="damaged at record"):
        write(folder, 1)
    assert last.read_bytes() == b"".join(lines)  # evidence is left as it is


def test_a_missing_copy_of_the_newest_checkpoint_is_said(folder: Path) -> None:
    (folder / journal.HEAD_FILE).unlink()
    bad = check(folder).bad
    assert bad is not None
    assert bad.kind == "no-checkpoint"
    write(folder, 1)
    assert "audit.recovered" in actions(folder)


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    (folder / KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        write(folder, 1)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    (folder / KEY_FILE).write_bytes(text)
    with pytest.raises(ConfigError, match="cannot be used"):
        load_or_make(folder)


def test_a_key_or_a_log_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    write(folder, 1)
    target = tmp_path / "elsewhere"
    (folder / KEY_FILE).rename(target)
    (folder / KEY_FILE).symlink_to(target)
    with pytest.raises(ConfigError):
        write(folder, 2)


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        write(tmp_path / "file" / "audit", 1)


@pytest.mark.parametrize("how", ["cut", "extended", "removed"])
def test_a_file_that_is_changed_while_it_is_written_stops_the_log(folder: Path, how: str) -> None:
    path = journal.files_of(folder)[-1]
    with journal.opened(folder, host="ci", source="coordinator") as log:
        log.append([(an_event(1), NOW)])
        if how == "removed":
            path.unlink()
        else:
            data = path.read_bytes()
            path.write_bytes(data[:-300] if how == "cut" else data + b"x")
        for _ in range(2):
            with pytest.raises(Unavailable, match="cannot be written") as refusal:
                log.append([(an_event(2), NOW)])
            assert "somebody else has changed" in refusal.value.why
        assert not log.is_whole
    assert check(folder).bad is not None
