"""`secure-dagu audit` and what `secure-dagu pki` records, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.audit import journal
from secure_dagu.audit.chain import read
from secure_dagu.cli.main import main
from tests.audit.conftest import write


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home with a coordinator's log of a few events and a CA."""
    monkeypatch.setenv("DAGU_HOME", str(tmp_path))
    write(tmp_path / "data" / "audit", *range(5))
    return tmp_path


def run(*words: str, code: int = 0) -> None:
    assert main(["audit", *words]) == code


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def of_commands(home: Path) -> list[tuple[str, str, str]]:
    records = [read(line) for path in journal.files_of(home / "audit") for line in path.read_bytes().splitlines(True)]
    return [(r.action, r.outcome, r.target) for r in records if r.action not in ("audit.key_made", "audit.checkpoint")]


def test_a_good_log_verifies_and_names_its_anchor(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("verify")
    text = capsys.readouterr().out
    assert "coordinator: good. 8 records in 1 files" in text
    anchor = text.split("anchor ")[1].split()[0]
    run("verify", "--log", "coordinator", "--anchor", anchor)
    run("verify", "--log", "coordinator", "--anchor", f"8:{'0' * 64}", code=6)
    assert "not-the-anchor" in capsys.readouterr().out
    assert of_commands(home)[0] == ("audit.verified", "succeeded", "log:coordinator")


def test_a_damaged_log_ends_with_6_and_the_first_bad_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journal.files_of(home / "data" / "audit")[0]
    path.write_bytes(path.read_bytes().replace(b"run:etl/3", b"run:etl/4"))
    run("verify", code=6)
    assert "coordinator: BAD at record 6: altered (000000000001.jsonl, line 6)" in capsys.readouterr().out
    run("verify", "--json", "--log", "coordinator", code=6)
    report = document(capsys)
    assert report["ok"] is False
    assert report["logs"][0]["bad"]["seq"] == 6
    assert ("audit.verified", "failed", "log:coordinator") in of_commands(home)


def test_the_log_of_commands_is_verified_even_when_it_is_the_damaged_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("verify")
    path = journal.files_of(home / "audit")[0]
    path.write_bytes(path.read_bytes().replace(b"audit.verified", b"audit.exported"))
    capsys.readouterr()
    run("verify", code=6)
    told = capsys.readouterr()
    assert "commands: BAD at record 3: altered" in told.out
    assert "not recorded" in told.err
    run("show", code=6)  # it cannot be read unrecorded


def test_reading_is_recorded_before_anything_is_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", "--log", "coordinator", "--action", "task", "-n", "2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[5] for line in lines] == ["run:etl/3", "run:etl/4"]
    run("export", "--log", "coordinator")
    assert of_commands(home) == [
        ("audit.read", "succeeded", "log:coordinator"),
        ("audit.exported", "succeeded", "log:coordinator"),
    ]
    with journal.opened(home / "audit", host="x", source="command"):  # somebody else holds it
        pass
    (home / "audit" / journal.HEAD_FILE).write_bytes(b"")


def test_an_export_is_the_lines_as_they_are(home: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    run("export", "--log", "coordinator")
    files = journal.files_of(home / "data" / "audit")
    assert capsysbinary.readouterr().out == b"".join(path.read_bytes() for path in files)
    run("export", "--log", "coordinator", "--format", "rfc5424", "--target", "etl/3")
    assert capsysbinary.readouterr().out.count(b"\n") == 1


def test_filters_choose(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def count(*words: str) -> int:
        run("show", "--json", "--log", "coordinator", *words)
        return len(document(capsys)["records"])

    assert count() == 8
    assert count("--action", "task.dispatched,audit.key_made") == 6
    assert count("--outcome", "denied") == 0
    assert count("--serial", "1F") == 5
    assert count("--actor", "cron", "--address", "192.0.2.7", "--target", "run:etl/1") == 1
    assert count("--since", "2026-11-25T11:59", "--until", "2026-11-25T12:01", "--actor", "cron") == 5
    assert count("--until", "2026-11-25T12:00:00", "--actor", "cron") == 0
    run("show", "--action", "task.invented", code=1)
    run("show", "--since", "yesterday", code=1)


def test_a_copy_is_verified_with_the_key_that_was_kept(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("key", "--json", "--log", "coordinator")
    key = document(capsys)["keys"]["coordinator"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (home / "data" / "audit").iterdir():
        if path.name != "checkpoint.key":
            (copy / path.name).write_bytes(path.read_bytes())
    run("verify", "--dir", str(copy), code=3)
    run("verify", "--dir", str(copy), "--key", key)
    assert not (home / "audit").exists()  # looking at a copy leaves nothing here


def test_without_a_log_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGU_HOME", str(tmp_path))
    run("verify", code=3)
    assert list(tmp_path.iterdir()) == []


def test_what_the_ca_does_is_recorded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pki", "init", "--advertise", "ci.example.com"]) == 0
    assert main(["pki", "issue", "worker", "gpu-1"]) == 0
    capsys.readouterr()
    run("show", "--json", "--log", "commands")
    records = [r for r in document(capsys)["records"] if r["action"].startswith(("ca", "certificate"))]
    assert [r["action"] for r in records] == ["ca.created", *["certificate.issued"] * 3]
    assert records[3]["details"]["owner"] == "spiffe://secure-dagu/worker/gpu-1"
    assert all(r["actor"].startswith("os:") for r in records)


def test_a_certificate_that_cannot_be_recorded_is_not_issued(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pki", "init"]) == 0
    before = (home / "pki" / "ledger.jsonl").read_bytes()
    path = journal.files_of(home / "audit")[0]
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["pki", "issue", "worker", "gpu-1"]) == 6
    assert (home / "pki" / "ledger.jsonl").read_bytes() == before
    assert not (home / "pki" / "issued").exists()
