"""`pki` and `config` as a person uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.cli.main import main
from secure_dagu.security.exceptions import Kind


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without any configuration."""
    for name in ("DAGU_CONFIG", "DAGU_DEBUG", "DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DAGU_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Run a command; return its standard output when it succeeds and its standard error when not."""
    assert main(words) == code
    out = capsys.readouterr()
    return out.out if code == 0 else out.err


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_weakening_can_be_granted(home: Path, capsys: pytest.CaptureFixture[str], kind: Kind) -> None:
    words = ["exception", "grant", kind.value, "--owner", "ada", "--reason", "a test", "--until", "2d"]
    assert document(capsys, *words)["exceptions"][0]["kind"] == kind.value


def test_two_commands_lead_from_nothing_to_a_worker_certificate(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "pki", "init", "--advertise", "ci.example.com,10.0.0.7")
    assert "ci.example.com, 10.0.0.7, localhost, 127.0.0.1, ::1" in text
    text = told(capsys, "pki", "issue", "worker", "gpu-1", "--out", str(home / "pki"))
    assert str(home / "pki" / "gpu-1.crt") in text
    check = document(capsys, "config", "check", "worker", "--worker.id=gpu-1@4711", "--worker.coordinators=ci:1")
    assert check["peers"]["worker"]["cert"] == str(home / "pki" / "gpu-1.crt")


def test_the_json_of_pki_is_stable(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = document(capsys, "pki", "init", "--advertise", "ci.example.com", "--trust-domain", "example.org")
    assert set(made) == {"directory", "trust_domain", "ca", "ca_not_after", "permitted", "coordinator", "operator"}
    assert made["operator"]["identity"] == "spiffe://example.org/admin/operator"
    issued = document(capsys, "pki", "issue", "dispatcher", "cron", "--days", "7")
    assert set(issued) == {"identity", "names", "labels", "serial", "not_after", "certificate", "key", "ca"}
    assert Path(issued["ca"]).read_bytes() == Path(made["ca"]).read_bytes()
    shown = document(capsys, "pki", "inspect", "cron")
    assert (shown["serial"], shown["identity"]) == (issued["serial"], "spiffe://example.org/dispatcher/cron")
    assert shown["usage"] == ["client"]
    listed = document(capsys, "pki", "list")
    assert [entry["name"] for entry in listed["certificates"]] == ["coordinator", "operator", "cron"]


def test_without_names_init_takes_the_host_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    assert document(capsys, "pki", "init")["coordinator"]["names"][0] == socket.gethostname().lower()


def test_pki_never_prints_a_private_key(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "pki", "init") + told(capsys, "pki", "issue", "worker", "w") + told(capsys, "pki", "list")
    assert "PRIVATE" not in text + told(capsys, "pki", "inspect", "w") + told(capsys, "pki", "inspect", "ca")


def test_a_second_init_exits_3_with_the_way_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "pki", "init")
    text = told(capsys, "pki", "init", code=3)
    assert "nothing was changed" in text
    assert "pki issue" in text
    assert document(capsys, "pki", "init", code=3)["error"]["code"] == "config"


def test_an_unwritable_place_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.write_text("a file where the home should be")
    assert "cannot be opened" in told(capsys, "pki", "init", code=3)


def test_check_names_what_a_process_lacks_and_how_to_get_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "config", "check", code=3)
    assert "coordinator.crt" in text
    assert "pki init" in text
    told(capsys, "pki", "init")
    assert "The configuration can be used." in told(capsys, "config", "check", "coordinator", "operator")
    assert "w9.crt" in told(capsys, "config", "check", "worker", "--worker.id=w9", "--worker.coordinators=a:1", code=3)
    assert "worker.coordinators is required" in told(capsys, "config", "check", "worker", code=3)
    (home / "pki" / "coordinator.key").unlink()
    assert "coordinator.key" in told(capsys, "config", "check", "coordinator", code=3)


def test_check_says_plaintext_loudly(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "PLAINTEXT (peer.insecure)" in told(capsys, "config", "check", "coordinator", "--peer.insecure")


def test_show_tells_every_value_and_its_source(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("coordinator: {port: 7}\ncache: low\n")
    monkeypatch.setenv("DAGU_WORKER_LABELS", "GPU=A100")
    assert main(["config", "show", "--worker.id=w", "--json"]) == 0
    out = capsys.readouterr()
    rows = {row["key"]: (row["value"], row["source"]) for row in json.loads(out.out)["settings"]}
    assert rows["coordinator.port"] == ("7", f"{home}/config.yaml:1")
    assert rows["worker.labels"] == ("GPU=A100", "variable DAGU_WORKER_LABELS")
    assert rows["worker.id"] == ("w", "flag --worker.id")
    assert rows["peer.insecure"] == ("false", "default")
    assert "not used by this version: cache (line 2)" in out.err
    assert "coordinator.port" in told(capsys, "config", "show")
