"""`pki verify` and `pki lint`: the verdict that a peer gives, in agreement with OpenSSL, and what the policy wants."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory as pki
from secure_dagu.pki.lint import Level, lint_directory, lint_file
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.pki.verifying import verify
from secure_dagu.security.mapping import parse_rules
from tests import needs
from tests.pki.forging import CLIENT, NOW, SERVER, forge, initialise

PROFILES = load_profiles()
WORKER = "spiffe://secure-dagu/worker/gpu-1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("home")
    initialise(where)
    pki.issue(where, Role.WORKER, "gpu-1", out=where, advertised=(), lifetime=None, force=False, now=NOW)
    return where


def openssl_agrees(home: Path, file: Path, purpose: str, *words: str) -> bool:
    openssl = needs.program("openssl", package="openssl")
    done = subprocess.run(
        [openssl, "verify", "-auth_level", "2", "-purpose", purpose, "-CAfile", home / "ca.crt", *words, file],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a good client": ({"uris": [WORKER]}, "client"),
    "a server as a client": ({"uris": [WORKER], "usages": (SERVER,)}, "client"),
    "a client as a server": ({"uris": [WORKER], "dns": ["localhost"]}, "server"),
    "RSA-1024": ({"uris": [WORKER], "key": rsa.generate_private_key(65537, 1024)}, "client"),
    "RSA-2048": ({"uris": [WORKER], "key": rsa.generate_private_key(65537, 2048)}, "client"),
    "P-192": ({"uris": [WORKER], "key": ec.generate_private_key(ec.SECP192R1())}, "client"),
    "a domain outside": ({"uris": ["spiffe://secure-dagu/coordinator/c"], "dns": ["evil.org"], "usages": (SERVER,)},
                         "server"),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_our_verdict_on_the_chain_is_that_of_openssl(home: Path, tmp_path: Path, what: str) -> None:
    fields, purpose = CASES[what]
    forged = forge(home, tmp_path, **fields)
    said = verify(forged.cert, home / "ca.crt", at=NOW, purpose=purpose)  # type: ignore[arg-type]
    assert said.accepted == openssl_agrees(home, forged.cert, f"ssl{purpose}")
    assert bool(said.code and said.why and said.fix) == (not said.accepted)


@pytest.mark.parametrize(("days", "code"), [(-1, "cert_not_yet_valid"), (1, ""), (31, "cert_expired")])
def test_our_verdict_on_dates_is_that_of_openssl(home: Path, days: int, code: str) -> None:
    at = NOW + timedelta(days=days)
    said = verify(home / "gpu-1.crt", home / "ca.crt", at=at)
    assert said.code == code
    when = ("-attime", str(int(at.timestamp())))
    assert openssl_agrees(home, home / "gpu-1.crt", "sslclient", *when) == said.accepted


def test_another_ca_a_wrong_name_and_a_revoked_one_are_named(home: Path, tmp_path: Path) -> None:
    initialise(tmp_path)
    assert verify(home / "gpu-1.crt", tmp_path / "ca.crt", at=NOW).code == "untrusted_ca"
    assert verify(home / "coordinator.crt", home / "ca.crt", at=NOW, host="other.example.com").code == "name_mismatch"
    assert verify(home / "coordinator.crt", home / "ca.crt", at=NOW, host="127.0.0.1").accepted
    made = pki.issue(home, Role.WORKER, "gone", out=None, advertised=(), lifetime=None, force=False, now=NOW)
    ledger = pki.ledger(home)
    ledger.mark_revoked(made.entry.serial, at=NOW.isoformat(), reason="stolen")
    said = verify(made.certificate, home / "ca.crt", at=NOW, ledger=ledger)
    assert (said.code, "stolen" in said.detail) == ("cert_revoked", True)


def test_a_rule_names_who_a_foreign_certificate_is(home: Path, tmp_path: Path) -> None:
    forged = forge(home, tmp_path, dns=["gpu-1.workers.internal"])
    assert verify(forged.cert, home / "ca.crt", at=NOW, purpose="client").code == "no_identity"
    rules = parse_rules([{"dns": "{name}.workers.internal", "role": "worker", "labels": {"gpu": "true"}}])
    said = verify(forged.cert, home / "ca.crt", at=NOW, purpose="client", rules=rules)
    assert (said.accepted, said.identity, said.labels) == (True, "spiffe://mapped/worker/gpu-1", ("gpu=true",))


def test_a_ca_certificate_is_no_answer(home: Path) -> None:
    with pytest.raises(ConfigError, match="begins with a CA certificate"):
        verify(home / "ca.crt", home / "ca.crt", at=NOW)


# ── lint ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_tool_makes_has_no_finding_but_the_open_ca_key(home: Path) -> None:
    found = lint_directory(home, PROFILES, NOW)
    assert [(Path(one.file).name, one.rule, one.level) for one in found] == [("ca.key", "at-rest", Level.WARNING)]


LINTS: dict[str, tuple[dict[str, Any], str, Level]] = {
    "weak": ({"key": rsa.generate_private_key(65537, 1024)}, "key", Level.ERROR),
    "rsa": ({"key": rsa.generate_private_key(65537, 3072)}, "key", Level.WARNING),
    "two identities": ({"uris": [WORKER, WORKER + "2"]}, "identity", Level.ERROR),
    "none": ({"uris": []}, "identity", Level.ERROR),
    "an unknown role": ({"uris": ["spiffe://secure-dagu/root/x"]}, "identity", Level.ERROR),
    "two purposes": ({"usages": (CLIENT, SERVER)}, "usage", Level.WARNING),
    "another purpose": ({"usages": (SERVER,)}, "usage", Level.ERROR),
    "no purpose": ({"usages": ()}, "usage", Level.ERROR),
    "a year": ({"days": 365}, "lifetime", Level.WARNING),
    "a dialled worker": ({"dns": ["gpu-1.local"]}, "names", Level.WARNING),
    "an undialled coordinator": ({"uris": ["spiffe://secure-dagu/coordinator/c"]}, "names", Level.ERROR),
    "an address as a name": ({"dns": ["10.0.0.7"]}, "names", Level.ERROR),
    "a wildcard": ({"dns": ["*.local"]}, "names", Level.ERROR),
    "a CA without constraints": ({"is_ca": True, "uris": []}, "constraints", Level.WARNING),
    "labels of an admin": (
        {"uris": ["spiffe://secure-dagu/admin/a"],
         "extensions": [x509.UnrecognizedExtension(x509.ObjectIdentifier(
             "1.2.840.113556.1.8000.2554.63613.52672.52160.19103.45966.9614691.14315205"), b"\x0c\x05gpu=1")]},
        "labels", Level.WARNING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LINTS)
def test_lint_finds(home: Path, tmp_path: Path, what: str) -> None:
    fields, rule, level = LINTS[what]
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    more = [usage, *fields.get("extensions", ())]
    forged = forge(home, tmp_path, **({"uris": [WORKER]} | fields | {"extensions": more}))
    found = lint_file(forged.cert, PROFILES, NOW)
    assert (rule, level) in [(one.rule, one.level) for one in found]


def test_lint_finds_what_ends_and_what_others_can_read(home: Path, tmp_path: Path) -> None:
    initialise(tmp_path / "pki")
    place = tmp_path / "pki"
    (place / "coordinator.key").chmod(0o644)
    (place / "operator.key").write_bytes((home / "operator.key").read_bytes())
    (place / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (place / "issued").mkdir(mode=0o777)
    (place / "issued").chmod(0o777)
    (place / "ledger.jsonl").chmod(0o644)
    found = {(Path(one.file).name, one.rule) for one in lint_directory(place, PROFILES, NOW + timedelta(days=89))}
    assert found >= {
        ("coordinator.key", "mode"), ("operator.key", "pair"), ("broken.crt", "readable"), ("issued", "mode"),
        ("ledger.jsonl", "mode"), ("coordinator.crt", "lifetime"),
    }  # fmt: skip
    with pytest.raises(ConfigError):
        lint_directory(tmp_path / "absent", PROFILES, NOW)
