"""The ledger: what was issued, what became of it, and what survives crashes and two writers."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory as pki
from secure_dagu.pki.ledger import Ledger, Status
from secure_dagu.pki.opening import load_authority
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.security.grants import parse_grants
from tests.pki.forging import NOW, initialise

WORKER = load_profiles().roles[Role.WORKER]


def test_every_fact_of_a_certificate_is_in_its_line(tmp_path: Path) -> None:
    initialise(tmp_path)
    ca = pki.open_ca(tmp_path)
    made = ca.issue(WORKER, "gpu-1", now=NOW, labels=parse_grants(["gpu=true", "zone=eu"]), actor="os:anna")
    entry = Ledger(tmp_path / "ledger.jsonl").find(made.entry.serial)
    assert entry == made.entry
    assert (entry.identity, entry.labels, entry.actor) == (
        "spiffe://secure-dagu/worker/gpu-1", ("gpu=true", "zone=eu"), "os:anna"
    )  # fmt: skip
    assert (entry.status, entry.key, len(entry.key_fingerprint)) == (Status.VALID, "P-256", 64)
    assert entry.grants == parse_grants(["gpu=true,zone=eu"])
    assert entry.not_after == (NOW + WORKER.lifetime).isoformat()


def test_a_newer_certificate_supersedes_and_the_rights_of_a_renewal_come_from_the_newest(tmp_path: Path) -> None:
    initialise(tmp_path)
    ca = pki.open_ca(tmp_path)
    first = ca.issue(WORKER, "gpu-1", now=NOW, labels=parse_grants(["gpu=true"]))
    other = ca.issue(WORKER, "gpu-10", now=NOW)
    second = ca.issue(WORKER, "gpu-1", now=NOW + timedelta(days=1))
    statuses = {entry.serial: entry.status for entry in ca.ledger.entries()}
    assert statuses[first.entry.serial] is Status.SUPERSEDED
    assert statuses[second.entry.serial] is statuses[other.entry.serial] is Status.VALID
    current = ca.ledger.current("worker", "gpu-1")
    assert current == second.entry
    assert not current.grants  # taken away with the renewal (threat T25)
    assert ca.ledger.current("worker", "gpu-2") is None


def test_a_revoked_certificate_stays_revoked_and_is_not_superseded(tmp_path: Path) -> None:
    initialise(tmp_path)
    ca = pki.open_ca(tmp_path)
    made = ca.issue(WORKER, "gpu-1", now=NOW)
    marked = ca.ledger.mark_revoked(made.entry.serial, at="2027-01-01T00:00:00+00:00", reason="stolen", actor="os:a")
    assert (marked.status, marked.status_at, marked.reason) == (Status.REVOKED, "2027-01-01T00:00:00+00:00", "stolen")
    again = ca.ledger.mark_revoked(made.entry.serial, at="2028-01-01T00:00:00+00:00", reason="again")
    assert again == marked
    ca.issue(WORKER, "gpu-1", now=NOW)
    assert Ledger(ca.ledger.path).find(made.entry.serial) == marked
    with pytest.raises(ConfigError, match="has no certificate abc"):
        ca.ledger.mark_revoked("abc", at="2027-01-01T00:00:00+00:00")


def test_what_another_process_appends_is_known_at_the_next_question(tmp_path: Path) -> None:
    initialise(tmp_path)
    watching = pki.ledger(tmp_path)
    assert len(watching.entries()) == 2
    made = pki.open_ca(tmp_path).issue(WORKER, "gpu-1", now=NOW)
    assert watching.knows(made.entry.serial)
    assert watching.knows(int(made.entry.serial, 16))
    assert watching.knows("00" + made.entry.serial.upper())
    assert not watching.knows(12345)


def test_a_replaced_or_missing_ledger_is_read_again(tmp_path: Path) -> None:
    initialise(tmp_path / "one")
    initialise(tmp_path / "two")
    watching = pki.ledger(tmp_path / "one")
    (before, _) = watching.entries()
    (tmp_path / "two/ledger.jsonl").replace(tmp_path / "one/ledger.jsonl")
    assert not watching.knows(before.serial)
    (tmp_path / "one/ledger.jsonl").unlink()
    assert watching.entries() == ()


def test_a_line_that_a_crash_tore_was_never_promised_and_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    initialise(tmp_path)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "issued", "serial": "12')
    assert len(pki.ledger(tmp_path).entries()) == 2
    pki.open_ca(tmp_path).issue(WORKER, "gpu-1", now=NOW)
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["event"] for line in path.read_bytes().splitlines()] == ["issued"] * 3


@pytest.mark.parametrize(
    "line",
    [b"x", b"[]", b"{}", b'{"event": "forgotten"}', b'{"event": "issued", "serial": 5}',
     b'{"event": "revoked", "serial": "abc", "at": "", "reason": ""}'],
)  # fmt: skip
def test_a_damaged_line_is_named_every_time(tmp_path: Path, line: bytes) -> None:
    initialise(tmp_path)
    with (tmp_path / "ledger.jsonl").open("ab") as sink:
        sink.write(line + b"\n")
    watching = pki.ledger(tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"line 3 of .* is damaged"):
            watching.knows(1)


WRITER = """
import sys
from pathlib import Path
from secure_dagu.pki import files
for number in range(200):
    files.append_line(Path(sys.argv[1]), (sys.argv[2] * 500 + "\\n").encode())
"""


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "ab"]
    assert [one.wait(60) for one in both] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 500] * 200 + ["b" * 500] * 200
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_hands_nothing_out(tmp_path: Path) -> None:
    initialise(tmp_path)
    ca = load_authority(certificate=tmp_path / "ca.crt", key=tmp_path / "ca.key", ledger=Path("/dev/full"))
    with pytest.raises(ConfigError, match="cannot be written"):
        ca.issue(WORKER, "gpu-1", now=NOW)
