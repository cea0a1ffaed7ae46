"""T21: whoever edits, cuts or re-orders the audit log is found, offline, by the command that an auditor runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from secure_dagu.audit import chain, journal
from secure_dagu.audit.chain import Origin, Place
from secure_dagu.audit.checkpoints import public_of
from secure_dagu.audit.events import Action, Event
from secure_dagu.cli.main import main
from tests.system.hosts import Host


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a copy of a real log of a CA's commands, without its key, and the public half that was kept."""
    home = tmp_path_factory.mktemp("host")
    assert main(["--dagu-home", str(home), "pki", "init", "--advertise", "localhost"]) == 0
    for number in range(3):
        assert main(["--dagu-home", str(home), "pki", "issue", "worker", f"gpu-{number}"]) == 0
    key = public_of(home / "audit")  # as `audit key` prints it
    (home / "audit" / "checkpoint.key").unlink()
    return home / "audit", key


@pytest.fixture
def copy(evidence: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(evidence[0], tmp_path / "copy"))


Edit = Callable[[list[bytes]], list[bytes]]


def flip(lines: list[bytes]) -> list[bytes]:
    line = bytearray(lines[4])
    line[200] ^= 1
    return [*lines[:4], bytes(line), *lines[5:]]


def insert(lines: list[bytes]) -> list[bytes]:
    after = chain.place_of(lines[3])
    forged, _ = chain.line_of(
        Event(action=Action.CERTIFICATE_ISSUED, target="certificate:666"),
        after=after or Place(),
        at=chain_time(lines[3]),
        origin=Origin(host="ci", source="command"),
    )
    return [*lines[:4], forged, *lines[4:]]


def chain_time(line: bytes) -> datetime:
    return datetime.fromisoformat(chain.read(line).time)


EDITS: dict[str, tuple[Edit, int]] = {
    "a flipped bit": (flip, 5),
    "a deleted record": (lambda lines: lines[:4] + lines[5:], 5),
    "two swapped records": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], 5),
    "an inserted record": (insert, 5),
    "a repeated record": (lambda lines: [*lines[:5], lines[4], *lines[5:]], 5),
    "a missing beginning": (lambda lines: lines[2:], 1),
    "a truncated tail": (lambda lines: lines[:-1], 0),
    "nothing left": (lambda lines: [], 1),
}


@pytest.mark.parametrize("what", EDITS)
def test_the_first_bad_record_is_named(
    evidence: tuple[Path, str], copy: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    edit, expected = EDITS[what]
    (path,) = journal.files_of(copy)
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(edit(lines)))
    assert main(["audit", "verify", "--dir", str(copy), "--key", evidence[1], "--json"]) == 6
    (report,) = json.loads(capsys.readouterr().out)["logs"]
    assert report["bad"]["seq"] == (expected or len(lines))


def test_an_untouched_copy_is_good(evidence: tuple[Path, str], copy: Path, tmp_path: Path) -> None:
    assert "good" in Host(tmp_path).ok("audit", "verify", "--dir", str(copy), "--key", evidence[1])


def test_the_owner_of_the_files_cannot_make_their_signatures(
    evidence: tuple[Path, str], copy: Path, tmp_path: Path
) -> None:
    """Every hash is computed anew after the edit, as root on the host can; the key that was kept elsewhere tells."""
    (path,) = journal.files_of(copy)
    place, made = Place(), []
    for line in path.read_bytes().splitlines(True):
        record = chain.read(line)
        event = Event(action=Action(record.action), target=record.target.replace("gpu-1", "gpu-9"))
        again, place = chain.line_of(
            event, after=place, at=chain_time(line), origin=Origin(host=record.host, source=record.source)
        )
        made.append(again)
    path.write_bytes(b"".join(made))
    (copy / journal.HEAD_FILE).write_bytes(made[-1])
    done = Host(tmp_path).run("audit", "verify", "--dir", str(copy), "--key", evidence[1])
    assert done.returncode == 6
    assert "bad-signature" in done.stdout


def test_a_coordinator_does_not_write_on_over_damage(tmp_path: Path) -> None:
    home = tmp_path / "host"
    home.mkdir()
    host = Host(home)
    host.ok("pki", "init", "--advertise", "localhost")
    with journal.opened(home / "data" / "audit", host="ci", source="coordinator"):
        pass
    (path,) = journal.files_of(home / "data" / "audit")
    os.truncate(path, path.stat().st_size - 20)
    done = host.run("coordinator", "--coordinator.advertise=localhost", "--coordinator.health-port=0")
    assert done.returncode == 6
    assert "is damaged at record 2" in done.stderr
    assert "move it away, and a new log begins" in done.stderr
