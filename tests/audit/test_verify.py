"""Verification offline: it names the first record that is bad, and why."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from secure_dagu.audit import chain, journal
from secure_dagu.audit.chain import Origin, Place
from secure_dagu.audit.checkpoints import Signer, load_or_make, public_of, read_public
from secure_dagu.audit.events import Action, Event
from secure_dagu.audit.verify import MAX_UNSIGNED, SLICE, verify
from secure_dagu.errors import ConfigError
from tests.audit.conftest import NOW, an_event, check, write

ORIGIN = Origin(host="ci", source="coordinator")


def all_lines(folder: Path) -> list[bytes]:
    return [line for path in journal.files_of(folder) for line in path.read_bytes().splitlines(True)]


def test_a_flipped_bit_anywhere_names_its_record(folder: Path) -> None:
    dice = random.Random(11)
    for _ in range(40):
        path = dice.choice(journal.files_of(folder))
        good = path.read_bytes()
        at = dice.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << dice.randrange(8)]) + good[at + 1 :])
        bad = check(folder).bad
        assert bad is not None
        assert bad.seq == int(path.stem) + good[:at].count(b"\n")
        path.write_bytes(good)
    assert check(folder).bad is None


def test_a_deleted_record_is_named(folder: Path) -> None:
    path = journal.files_of(folder)[1]
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    bad = check(folder).bad
    assert bad is not None
    assert (bad.seq, bad.kind, bad.file, bad.line) == (int(path.stem) + 2, "missing", path.name, 3)


def test_a_missing_file_is_named(folder: Path) -> None:
    first, second, third, *_ = journal.files_of(folder)
    second.unlink()
    bad = check(folder).bad
    assert bad is not None
    assert (bad.seq, bad.kind) == (int(second.stem), "missing-file")
    first.unlink()
    bad = check(folder).bad
    assert bad is not None
    assert (bad.seq, bad.kind, bad.file) == (1, "missing-file", third.name)


@pytest.mark.parametrize("cut", ["last file", "last line", "half a line", "everything"])
def test_a_truncated_tail_is_found(folder: Path, cut: str) -> None:
    total = check(folder).records
    *_, last = journal.files_of(folder)
    lines = last.read_bytes().splitlines(True)
    if cut == "last file":
        last.unlink()
        expected = int(last.stem)
    elif cut == "last line":
        last.write_bytes(b"".join(lines[:-1]))
        expected = total
    elif cut == "half a line":
        last.write_bytes(b"".join(lines)[:-40])
        expected = total
    else:
        for path in journal.files_of(folder):
            path.unlink()
        expected = 1
    bad = check(folder).bad
    assert bad is not None
    assert bad.seq == expected
    assert bad.kind == ("torn" if cut == "half a line" else "truncated")


def rewritten(folder: Path, *, signer: Signer | None, without: int) -> None:
    """Write the whole log again without one record, every hash right, as somebody without the key would."""
    place, made = Place(), []
    for number, line in enumerate(all_lines(folder), start=1):
        record = chain.read(line)
        if number == without:
            continue
        if record.action == Action.AUDIT_CHECKPOINT:
            event = signer.checkpoint(place, NOW) if signer else Event(action=Action.AUDIT_CHECKPOINT)
        else:
            event = Event(action=Action(record.action), target=record.target)
        again, place = chain.line_of(event, after=place, at=NOW, origin=ORIGIN)
        made.append(again)
    first, *rest = journal.files_of(folder)
    for path in rest:
        path.unlink()
    first.write_bytes(b"".join(made))
    (folder / journal.HEAD_FILE).write_bytes(made[-1])


def test_a_chain_that_was_computed_anew_lacks_the_signatures(folder: Path) -> None:
    key = read_public(public_of(folder))
    rewritten(folder, signer=None, without=20)
    bad = verify(folder, key=key).bad
    assert bad is not None
    assert bad.kind == "bad-signature"


def test_a_chain_that_was_signed_with_another_key_is_found_by_who_kept_the_public_one(
    folder: Path, tmp_path: Path
) -> None:
    kept = public_of(folder)
    stranger, _ = load_or_make(tmp_path)
    rewritten(folder, signer=stranger, without=20)
    assert verify(folder, key=read_public(stranger.public)).bad is None
    bad = verify(folder, key=read_public(kept)).bad
    assert bad is not None
    assert bad.kind == "bad-signature"


def test_a_log_that_was_rolled_back_as_a_whole_is_found_by_who_kept_an_anchor(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    write(folder, *range(5))
    anchor = check(folder)
    key = read_public(public_of(folder))
    assert verify(folder, key=key, anchor=Place(anchor.records, anchor.head)).bad is None
    bad = verify(tmp_path / "old", key=key, anchor=Place(anchor.records, anchor.head)).bad
    assert bad is not None
    assert bad.kind == "truncated"
    other = verify(folder, key=key, anchor=Place(3, "0" * 64)).bad
    assert other is not None
    assert (other.seq, other.kind) == (3, "not-the-anchor")


def test_many_records_without_a_signature_were_not_written_so(folder: Path) -> None:
    place = chain.place_of(all_lines(folder)[-1])
    assert place is not None
    with journal.files_of(folder)[-1].open("ab") as file:
        for number in range(MAX_UNSIGNED + 1):
            line, place = chain.line_of(an_event(number), after=place, at=NOW, origin=ORIGIN)
            file.write(line)
    bad = check(folder).bad
    assert bad is not None
    assert bad.kind == "unsigned"


@pytest.mark.parametrize("text", [b"", b"garbage\n", b"{}\n"])
def test_a_damaged_copy_of_the_newest_checkpoint_is_told(folder: Path, text: bytes) -> None:
    (folder / journal.HEAD_FILE).write_bytes(text)
    bad = check(folder).bad
    assert bad is not None
    assert bad.kind in ("no-checkpoint", "bad-signature")


def test_a_line_without_an_end_is_bounded(folder: Path) -> None:
    with journal.files_of(folder)[-1].open("ab") as file:
        file.write(b"x" * 1_000_000)
    bad = check(folder).bad
    assert bad is not None
    assert bad.kind == "torn"


def test_a_log_that_is_written_meanwhile_is_good(folder: Path) -> None:
    with journal.opened(folder, host="ci", source="coordinator") as log:
        log.append([(an_event(1), NOW)])
        report = check(folder)
        assert report.bad is None
        assert report.unsigned == 1


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:" + "A" * 43])
def test_a_public_key_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        read_public(text)


def test_a_verification_breathes_and_can_be_ended(folder: Path) -> None:
    write(folder, *range(2 * SLICE))
    breaths: list[None] = []
    report = verify(folder, key=read_public(public_of(folder)), breathe=lambda: breaths.append(None))
    assert len(breaths) == report.records // SLICE >= 2

    def end() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        verify(folder, key=read_public(public_of(folder)), breathe=end)
