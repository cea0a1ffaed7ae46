"""An offline root and an online issuing CA: chains that both ends take, and what neither may do."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.link import crl as lists
from secure_dagu.link import judgement, material
from secure_dagu.pki import crl, issuing
from secure_dagu.pki import directory as pki
from secure_dagu.pki.directory import KeyPlace
from secure_dagu.pki.facts import read_certificates, read_facts
from secure_dagu.security.mapping import Holder
from secure_dagu.security.secret import Secret
from secure_dagu.security.verdict import Side
from tests import needs
from tests.pki.forging import NOW
from tests.pki.test_issuing import handshake

WORDS = Secret("in a safe, on paper")


@dataclass(frozen=True)
class Place:
    """The three folders of the set-up."""

    offline: Path
    online: Path
    stick: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return the set-up, all four steps done."""
    where = tmp_path_factory.mktemp("production")
    place = Place(where / "offline", where / "online", where / "stick")
    issuing.new_root(
        place.offline, advertised=["ci.example.com"], permit=["corp.example"], trust_domain="secure-dagu",
        key=KeyPlace(passphrase=WORDS), now=NOW,
    )  # fmt: skip
    wanted = issuing.request(place.online, key=KeyPlace(), now=NOW)
    issuing.sign_request(
        place.offline, wanted, place.stick, now=NOW, passphrase=lambda: WORDS, actor="os:anna", force=False
    )
    issuing.adopt(place.online, place.stick, advertised=["ci.example.com"], now=NOW, passphrase=None, actor="")
    return place


def test_the_root_key_was_never_online_and_is_under_a_passphrase(done: Place) -> None:
    assert not (done.online / "ca.key").exists()
    assert {path.name for path in done.stick.iterdir()} == {"issuing.crt", "ca.crt"}
    assert b"ENCRYPTED" in (done.offline / "ca.key").read_bytes()


def test_the_issuing_ca_inherits_the_constraints_and_ends_the_path(done: Place) -> None:
    root, made = read_facts(done.offline / "ca.crt"), read_facts(done.online / "issuing.crt")
    assert (root.path_length, made.path_length) == (1, 0)
    assert root.permitted == made.permitted
    assert {"URI:secure-dagu", "DNS:example.com", "DNS:corp.example"} <= set(made.permitted)
    assert made.not_after < root.not_after
    (entry,) = pki.ledger(done.offline).entries()
    assert (entry.role, entry.serial, entry.actor) == ("issuing-ca", made.serial, "os:anna")


def test_both_ends_present_their_chain_and_trust_the_root_alone(done: Place) -> None:
    made = pki.issue(
        done.online, Role.WORKER, "gpu-1", out=done.online, advertised=(), lifetime=None, force=True, now=NOW
    )
    assert made.ca.read_bytes() == (done.offline / "ca.crt").read_bytes()
    assert len(read_certificates(made.certificate)) == 2
    handshake(done.online, server=("coordinator.crt", "coordinator.key"), client=("gpu-1.crt", "gpu-1.key"))
    trusted = material.read_trust(made.ca)
    assert isinstance(judgement.judge(read_certificates(made.certificate), trusted, side=Side.SERVER), Holder)
    openssl = needs.program("openssl", package="openssl")
    file = str(made.certificate)
    command = [openssl, "verify", "-x509_strict", "-CAfile", str(made.ca), "-untrusted", file, file]
    assert b"OK" in subprocess.run(command, capture_output=True, check=True).stdout


def test_a_list_of_an_issuing_ca_is_believed_and_that_of_a_leaf_or_of_a_strangers_is_not(
    done: Place, tmp_path: Path
) -> None:
    here = _copy(done, tmp_path / "online")
    crl.sign(here, [pki.open_ca(here)], now=NOW)
    roots, (own,) = read_certificates(here / "ca.crt"), read_certificates(here / "issuing.crt")
    assert lists.read(here / "ca.crl", lists.signers(roots, [own])).revocation.lists[0].issuer == lists.key_of(own)
    leaf = read_certificates(here / "coordinator.crt")[0]
    pki.initialise(tmp_path / "other", advertised=["a.b.c"], trust_domain="secure-dagu", now=NOW)
    (stranger,) = read_certificates(tmp_path / "other/ca.crt")
    assert lists.signers(roots, [leaf, stranger, *roots]) == tuple(roots)
    with pytest.raises(ConfigError, match="none of its lists"):
        lists.read(here / "ca.crl", roots)


def test_a_renewed_issuing_ca_keeps_its_name_its_lists_and_what_it_knows(done: Place, tmp_path: Path) -> None:
    here, later = _copy(done, tmp_path / "online"), NOW + timedelta(days=20)
    made = pki.issue(here, Role.WORKER, "w", out=None, advertised=(), lifetime=None, force=False, now=NOW)
    crl.revoke(here, [pki.open_ca(here)], [made.entry], reason="unspecified", now=NOW)
    (before,) = read_certificates(here / "issuing.crt")
    issuing.sign_request(
        done.offline, here / "issuing.csr", here, now=later, passphrase=lambda: WORDS, actor="", force=True
    )
    (after,) = read_certificates(here / "issuing.crt")
    assert after.serial_number != before.serial_number
    assert (after.subject, after.public_key()) == (before.subject, before.public_key())
    signers, serial = lists.signers(read_certificates(here / "ca.crt"), [after]), int(made.entry.serial, 16)
    assert lists.read(here / "ca.crl", signers).revocation.is_revoked(serial), "the list of before is still good"
    crl.sign(here, [pki.open_ca(here)], now=later)
    assert lists.read(here / "ca.crl", signers).revocation.is_revoked(serial), "and the next one says the same"
    assert lists.key_of(after) in pki.signer_keys(here, pki.ledger(here)), "nothing was issued since"


def _copy(done: Place, where: Path) -> Path:
    shutil.copytree(done.online, where)
    where.chmod(0o700)
    return where


def test_a_leaf_without_its_chain_is_not_taken(done: Place, tmp_path: Path) -> None:
    leaf = read_certificates(done.online / "coordinator.crt")[0]
    judged = judgement.judge([leaf], material.read_trust(done.offline / "ca.crt"), side=Side.CLIENT, host="localhost")
    assert isinstance(judged, judgement.Objection)
    assert judged.reason == "untrusted_server"


def test_an_issuing_ca_signs_no_ca_and_the_root_no_worker(done: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot sign another CA"):
        issuing.sign_request(
            done.online, done.online / "issuing.csr", tmp_path, now=NOW, passphrase=None, actor="", force=False
        )
    with pytest.raises(ConfigError, match="offline root"):
        pki.issue(
            done.offline, Role.WORKER, "w", out=tmp_path, advertised=(), lifetime=None, force=False, now=NOW,
            passphrase=lambda: WORDS,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_offline_root_without_passphrase_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wants a passphrase"):
        issuing.new_root(
            tmp_path / "x", advertised=["a.b.c"], permit=(), trust_domain="secure-dagu", key=KeyPlace(), now=NOW
        )
    assert not (tmp_path / "x").exists()


def test_what_was_signed_for_another_key_or_by_another_root_is_not_adopted(done: Place, tmp_path: Path) -> None:
    issuing.request(tmp_path / "other", key=KeyPlace(), now=NOW)
    before = sorted(path.name for path in (tmp_path / "other").iterdir())
    with pytest.raises(ConfigError, match="cannot be used"):
        issuing.adopt(tmp_path / "other", done.stick, advertised=["a.example.com"], now=NOW, passphrase=None, actor="")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/issuing.crt").write_bytes((done.stick / "issuing.crt").read_bytes())
    pki.initialise(tmp_path / "third", advertised=["a.b.c"], trust_domain="secure-dagu", now=NOW)
    (tmp_path / "mixed/ca.crt").write_bytes((tmp_path / "third/ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="is refused"):
        issuing.adopt(
            tmp_path / "other", tmp_path / "mixed", advertised=["a.example.com"], now=NOW, passphrase=None, actor=""
        )
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == before


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_an_issuing_ca_has_a_key_that_every_peer_believes(done: Place, tmp_path: Path, kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "x.csr").write_bytes(request_of(key))
    with pytest.raises(InvalidRequest, match="its key is"):
        issuing.sign_request(
            done.offline, tmp_path / "x.csr", tmp_path / "out", now=NOW, passphrase=lambda: WORDS, actor="", force=False
        )
    assert not (tmp_path / "out").exists()


def test_handshakes_still_check_the_purpose_along_the_chain(done: Place) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(done.online, server=("operator.crt", "operator.key"), client=("operator.crt", "operator.key"))
