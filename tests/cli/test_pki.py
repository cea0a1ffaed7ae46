"""The pki commands as an operator sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.cli.main import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGU_HOME", str(tmp_path))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main([*words]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def ready(home: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    told(capsys, "pki", "init", "--advertise", "ci.example.com,host.tailnet.ts.net,127.0.0.1")
    told(capsys, "pki", "issue", "worker", "gpu-1", "--labels", "gpu=true,zone=eu", "--labels", "zone=us")
    return home


def test_labels_are_issued_shown_listed_and_verified(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["gpu=true", "zone=eu", "zone=us"]
    shown = document(capsys, "pki", "inspect", "gpu-1")
    assert (shown["labels"], shown["ledger"], shown["chain"]) == (labels, "valid", [])
    assert 29 < shown["days_left"] < 31
    (listed,) = document(capsys, "pki", "list", "--label", "gpu=true")["certificates"]
    assert (listed["labels"], listed["status"], listed["actor"][:3]) == (labels, "valid", "os:")
    verified = document(capsys, "pki", "verify", "gpu-1")
    assert (verified["accepted"], verified["labels"], verified["warnings"]) == (True, labels, [])


def test_inspect_says_the_constraints_of_a_ca(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "pki", "inspect", "ca")
    assert "URI:secure-dagu" in text
    assert "DNS:example.com" in text
    assert "0 CAs below it" in text


def test_the_ledger_is_filtered(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "pki", "issue", "worker", "gpu-1", "--force", "--lifetime", "24h")

    def names(*words: str) -> list[str]:
        return [item["name"] for item in document(capsys, "pki", "list", *words)["certificates"]]

    assert names("--role", "worker") == ["gpu-1", "gpu-1"]
    assert names("--status", "superseded") == ["gpu-1"]
    assert names("--status", "valid") == ["coordinator", "operator", "gpu-1"]
    assert names("--expires-within", "2d") == ["gpu-1"]
    assert names("--name", "operator", "--role", "admin") == ["operator"]
    serial = document(capsys, "pki", "list", "--name", "operator")["certificates"][0]["serial"]
    assert names("--serial", serial.upper()) == ["operator"]
    assert "no such certificate" in told(capsys, "pki", "list", "--name", "nobody")
    assert "refused" in told(capsys, "pki", "list", "--expires-within", "soon", code=3)


def test_verify_says_what_a_peer_would_say_and_exits_4(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "accepted as a server" in told(capsys, "pki", "verify", "coordinator", "--host", "ci.example.com")
    text = told(capsys, "pki", "verify", "gpu-1", "--purpose", "server", code=4)
    assert "server_wrong_purpose" in text
    assert "why:" in text
    assert "fix:" in text
    assert "cert_expired" in told(capsys, "pki", "verify", "gpu-1", "--at", "2099-01-01", code=4)
    assert "is no time" in told(capsys, "pki", "verify", "gpu-1", "--at", "tomorrow", code=3)


def test_lint_exits_1_on_errors_only(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not under a passphrase" in told(capsys, "pki", "lint")
    (ready / "pki/operator.key").chmod(0o644)
    found = document(capsys, "pki", "lint", code=1)
    assert found["has_errors"]
    assert "nothing found" in told(capsys, "pki", "lint", "gpu-1")


def test_a_name_that_the_ca_may_not_give_says_how_to_get_one_that_may(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "pki", "issue", "coordinator", "two", "--advertise", "ci.other.org", code=3)
    assert "example.com" in text
    assert "--permit" in text
    told(capsys, "pki", "issue", "coordinator", "two", "--advertise", "two.example.com,two.lan,10.0.0.8")


def test_a_lifetime_outside_the_profile_is_refused(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--days", "91"), ("--lifetime", "0"), ("--lifetime", "long"), ("--lifetime", "2161h")):
        told(capsys, "pki", "issue", "worker", "w", *words, code=3)
    told(capsys, "pki", "issue", "worker", "w", "--days", "90")
    told(capsys, "pki", "issue", "worker", "w2", "--lifetime", "2160h")


def test_an_offline_root_and_its_issuing_ca_from_the_command_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tmp_path / "words"
    words.touch(mode=0o600)
    words.write_text("in a safe, on paper\n")
    offline = ("--dagu-home", str(tmp_path / "offline"))
    secret = ("--passphrase-file", str(words))
    told(capsys, "pki", "init", "--offline-root", "--advertise", "ci.example.com", *secret, *offline)
    assert "issue-ca" in told(capsys, "pki", "init", "--issuing-ca")
    stick = str(tmp_path / "stick")
    text = told(capsys, "pki", "issue-ca", str(home / "pki/issuing.csr"), "--out", stick, *secret, *offline)
    assert "--issuing-ca --certificate" in text
    told(capsys, "pki", "init", "--issuing-ca", "--certificate", stick, "--advertise", "ci.example.com")
    told(capsys, "pki", "issue", "worker", "gpu-1")
    assert document(capsys, "pki", "verify", "gpu-1")["accepted"]
    assert len(document(capsys, "pki", "inspect", "gpu-1")["chain"]) == 1
    assert "wants a passphrase" in told(
        capsys, "pki", "init", "--offline-root", "--dagu-home", str(tmp_path / "x"), code=3
    )


def test_a_passphrase_is_set_and_asked_for_from_then_on(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tmp_path / "ca-passphrase"
    words.touch(mode=0o600)
    words.write_text("a long enough sentence")
    told(capsys, "pki", "passphrase", "--new-passphrase-file", str(words))
    assert "is protected" in told(capsys, "pki", "issue", "worker", "w", code=3)
    told(capsys, "pki", "issue", "worker", "w", "--passphrase-file", str(words))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    told(capsys, "pki", "issue", "worker", "w2")
    told(capsys, "pki", "passphrase", "--remove")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    told(capsys, "pki", "issue", "worker", "w3")
