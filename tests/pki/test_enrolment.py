"""Join tokens and renewals: who gets a certificate, and with which rights. Values and real files, no network."""

from __future__ import annotations

import json
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec.structs import replace

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, IntegrityViolation, InvalidRequest, NotFound, Refused
from secure_dagu.link import material
from secure_dagu.pki import directory, holder, pair
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.enrolment import (
    FAILURE_S,
    JOIN_REFUSED,
    MAX_FAILURES,
    Decision,
    Desk,
    Failures,
    make_token,
    pin_of,
)
from secure_dagu.pki.holder import Wish
from secure_dagu.pki.profiles import Profile, load_profiles
from secure_dagu.pki.term import EARLIEST, LATEST, read_term
from secure_dagu.pki.tokens import MAX_TTL, Tokens, parse_token
from secure_dagu.security.grants import Grants, parse_grants
from secure_dagu.security.identity import parse_identity
from secure_dagu.security.peer import Peer

HOUR = timedelta(hours=1)
HERE = "192.0.2.7:40000"


@dataclass
class Ca:
    """The host of a CA, with its desk."""

    place: Path
    desk: Desk
    now: datetime

    def token(self, name: str = "gpu-1", *, role: Role = Role.WORKER, labels: str | None = None, **more: object) -> str:
        """Make a token; return its secret."""
        granted = None if labels is None else parse_grants([labels])
        options: dict[str, object] = {"ttl": HOUR, "now": self.now, **more}
        token, _ = make_token(self.place, role, name, labels=granted, **options)  # type: ignore[arg-type]
        return token.secret.reveal()

    def join(
        self, secret: str, wish: Wish | None = None, *, address: str = HERE, now: datetime | None = None
    ) -> Decision:
        """Redeem a secret."""
        wish = wish or Wish()
        request = json.dumps({"secret": secret, "csr": json.loads(wish.to_renew())["csr"]}).encode()
        return self.desk.join(request, address=address, now=now or self.now)

    def renew(self, certificate: str, wish: Wish | None = None, *, now: datetime | None = None) -> Decision:
        """Renew as the holder of a certificate."""
        return self.desk.renew(peer_of(certificate), (wish or Wish()).to_renew(), now=now or self.now)


def leaf_of(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem.encode())[0]


def peer_of(pem: str) -> Peer:
    """Return what a handshake proves of a certificate."""
    leaf = leaf_of(pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return Peer(
        connection="c", address=HERE, identity=parse_identity(uri), serial=leaf.serial_number,
        not_after=leaf.not_valid_after_utc,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a CA, made once: P-384 keys take their time."""
    place = tmp_path_factory.mktemp("ca") / "pki"
    directory.initialise(place, advertised=["ci.example.com"], trust_domain="test.example", now=utc_now())
    return place


@pytest.fixture
def ca(made: Path, tmp_path: Path) -> Ca:
    """Return a CA of this test's own."""
    place = tmp_path / "pki"
    shutil.copytree(made, place)
    return Ca(place=place, desk=Desk(place, None), now=utc_now())


def test_a_token_gives_the_certificate_that_it_says_and_the_key_stays_with_its_maker(ca: Ca) -> None:
    wish = Wish()
    decision = ca.join(ca.token(labels="gpu=true,zone=eu"), wish)
    granted = wish.granted(decision.document)
    leaf = leaf_of(granted.certificate.decode())
    assert str(granted.identity) == "worker/gpu-1"
    assert granted.labels == ("gpu=true", "zone=eu")
    assert str(material.grants_of(leaf)) == "gpu=true,zone=eu"
    assert leaf.not_valid_after_utc - ca.now == timedelta(days=30)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    entry = directory.ledger(ca.place).current("worker", "gpu-1")
    assert entry is not None
    assert entry.serial == f"{leaf.serial_number:x}"
    assert not list(ca.place.rglob("gpu-1.key"))


def test_the_secret_of_a_token_is_kept_nowhere_and_its_file_is_private(ca: Ca) -> None:
    secret = ca.token()
    (file,) = (ca.place / "tokens").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    for found in ca.place.rglob("*"):
        if found.is_file():
            assert secret.encode() not in found.read_bytes()
        assert secret not in found.name


def test_a_token_works_once(ca: Ca) -> None:
    secret = ca.token()
    assert ca.join(secret).entry is not None
    again = ca.join(secret)
    assert (again.entry, again.answer, again.reason) == (None, JOIN_REFUSED, "token")
    assert list((ca.place / "tokens").iterdir()) == []


def test_of_a_hundred_redemptions_at_once_by_several_coordinators_exactly_one_gets_a_certificate(ca: Ca) -> None:
    secret = ca.token()
    desks = [ca.desk, *(Desk(ca.place, None) for _ in range(3))]  # as separate processes: nothing shared but the files
    wishes = [Wish() for _ in range(100)]

    def redeem(number: int) -> bool:
        request = wishes[number].to_join(parse_token(f"sdj1.{'A' * 43}.{secret}").secret)
        return desks[number % 4].join(request, address=f"192.0.2.{number}:1", now=ca.now).entry is not None

    with ThreadPoolExecutor(100) as pool:
        winners = sum(pool.map(redeem, range(100)))
    assert winners == 1
    issued = [entry for entry in directory.ledger(ca.place).entries() if entry.name == "gpu-1"]
    assert len(issued) == 1


def test_a_token_ends(ca: Ca) -> None:
    secret = ca.token()
    assert ca.join(secret, now=ca.now + HOUR).reason == "token"
    assert ca.join(secret, now=ca.now + HOUR - timedelta(seconds=1)).entry is not None


def test_a_token_for_another_role_gives_that_role(ca: Ca) -> None:
    made = ca.join(ca.token("alice", role=Role.ADMIN)).entry
    assert made is not None
    assert made.identity == "spiffe://test.example/admin/alice"
    second = ca.join(ca.token("second", role=Role.COORDINATOR, advertised=["ci.example.com"])).entry
    assert second is not None
    assert second.names == ("ci.example.com", "localhost", "127.0.0.1", "::1")


def test_a_token_that_no_certificate_could_follow_is_not_made(ca: Ca) -> None:
    wrong: list[tuple[Role, str, str | None, dict[str, object]]] = [
        (Role.WORKER, "../etc", None, {}),
        (Role.COORDINATOR, "c2", None, {}),
        (Role.ADMIN, "alice", "gpu=true", {}),
        (Role.WORKER, "w", None, {"advertised": ["ci.example.com"]}),
        (Role.WORKER, "w", None, {"ttl": MAX_TTL + HOUR}),
        (Role.WORKER, "w", None, {"ttl": timedelta()}),
        (Role.WORKER, "w", None, {"lifetime": timedelta(days=9999)}),
    ]
    for role, name, labels, more in wrong:
        with pytest.raises(ConfigError):
            ca.token(name, role=role, labels=labels, **more)
    assert not (ca.place / "tokens").exists()


def test_a_host_without_the_ca_key_makes_no_tokens_and_says_why(ca: Ca) -> None:
    (ca.place / "ca.key").unlink()
    with pytest.raises(ConfigError, match="no CA key"):
        ca.token()


def test_a_token_is_withdrawn_by_name(ca: Ca) -> None:
    secret = ca.token()
    other = ca.token("gpu-2")
    tokens = Tokens(ca.place)
    assert [offer.name for offer in tokens.waiting(ca.now)] == ["gpu-1", "gpu-2"]
    tokens.withdraw("gpu-1")
    assert ca.join(secret).entry is None
    assert ca.join(other).entry is not None
    with pytest.raises(NotFound):
        tokens.withdraw("gpu-1")


def test_ended_tokens_are_removed_when_another_is_made(ca: Ca) -> None:
    ca.token()
    ca.now += 2 * HOUR
    ca.token("gpu-2")
    assert len(list((ca.place / "tokens").iterdir())) == 1


def test_a_new_token_for_a_known_name_keeps_its_labels_unless_others_are_said(ca: Ca) -> None:
    ca.join(ca.token(labels="gpu=true"))
    same = ca.join(ca.token()).entry
    fewer = ca.join(ca.token(labels="")).entry
    assert same is not None
    assert same.labels == ("gpu=true",)
    assert fewer is not None
    assert fewer.labels == ()


@pytest.mark.parametrize("text", ["", "sdj1", "sdj1.a.b", f"sdj1.{'A' * 43}.{'B' * 26}", f"sdj2.{'A' * 43}.{'B' * 27}"])
def test_part_of_a_token_is_told_from_a_whole_one(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no join token"):
        parse_token(text)


def test_a_token_carries_the_fingerprint_of_the_root_that_the_coordinator_presents(ca: Ca) -> None:
    root = leaf_of((ca.place / "ca.crt").read_text())
    token, _ = make_token(ca.place, Role.WORKER, "w", labels=None, ttl=HOUR, now=ca.now)
    assert parse_token(token.reveal()).pin == root.fingerprint(hashes.SHA256()).hex()
    assert str(token.secret) == "********"
    (ca.place / "coordinator.crt").unlink()
    with pytest.raises(ConfigError, match="no join token"):
        pin_of(ca.place)


# ── renewal ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def joined(ca: Ca, labels: str = "gpu=true") -> str:
    return ca.join(ca.token(labels=labels)).answer.certificate


def test_renewal_gives_a_new_certificate_for_a_new_key_with_the_same_rights(ca: Ca) -> None:
    old = joined(ca)
    wish = Wish()
    granted = wish.granted(ca.renew(old, wish, now=ca.now + timedelta(days=16)).document)
    new = leaf_of(granted.certificate.decode())
    assert str(granted.identity) == "worker/gpu-1"
    assert granted.labels == ("gpu=true",)
    assert new.public_key() != leaf_of(old).public_key()
    assert new.not_valid_after_utc == ca.now + timedelta(days=46)


def test_a_label_that_was_taken_away_is_gone_after_renewal(ca: Ca) -> None:
    """Threat T25: rights come from the ledger, not from the certificate that is shown."""
    old = joined(ca, "gpu=true,zone=eu")
    directory.open_ca(ca.place).issue(profile(), "gpu-1", now=ca.now, labels=Grants(frozenset({("zone", "eu")})))
    assert ca.renew(old).answer.labels == ("zone=eu",)


def profile() -> Profile:
    return load_profiles().roles[Role.WORKER]


def test_a_lifetime_that_was_chosen_stays(ca: Ca) -> None:
    old = ca.join(ca.token(lifetime=timedelta(days=2))).answer.certificate
    entry = ca.renew(old).entry
    assert entry is not None
    assert datetime.fromisoformat(entry.not_after) == ca.now + timedelta(days=2)


def refusal(decision: Decision) -> str:
    problem = decision.answer.problem
    assert problem is not None
    assert decision.entry is None
    assert decision.answer.certificate == ""
    return problem.why


def test_a_revoked_or_unknown_or_ended_certificate_is_not_renewed(ca: Ca, tmp_path: Path) -> None:
    old = joined(ca)
    assert "has ended" in refusal(ca.renew(old, now=ca.now + timedelta(days=30)))
    stranger = peer_of(old)
    assert "no record" in refusal(ca.desk.renew(replace(stranger, serial=1234), Wish().to_renew(), now=ca.now))
    assert stranger.identity is not None
    other = replace(stranger, identity=replace(stranger.identity, name="gpu-2"))
    assert "no record" in refusal(ca.desk.renew(other, Wish().to_renew(), now=ca.now))
    directory.ledger(ca.place).mark_revoked(leaf_of(old).serial_number, at=ca.now.isoformat())
    assert "revoked" in refusal(ca.renew(old))


def test_an_older_certificate_does_not_come_back_once_the_newest_is_revoked(ca: Ca) -> None:
    old = joined(ca)
    new = ca.renew(old)
    assert new.entry is not None
    directory.ledger(ca.place).mark_revoked(new.entry.serial, at=ca.now.isoformat())
    assert "newer certificate" in refusal(ca.renew(old))


def test_a_key_is_renewed_too(ca: Ca) -> None:
    wish = Wish()
    old = ca.join(ca.token(), wish).answer.certificate
    assert "used before" in refusal(ca.renew(old, wish))


def test_the_holder_can_ask_what_to_trust_without_a_new_certificate(ca: Ca) -> None:
    old = joined(ca)
    before = len(directory.ledger(ca.place).entries())
    answer = ca.desk.renew(peer_of(old), holder.TRUST_REQUEST, now=ca.now).answer
    assert answer.ca == (ca.place / "ca.crt").read_text()
    assert answer.certificate == ""
    assert len(directory.ledger(ca.place).entries()) == before


def test_what_lies_on_the_host_of_the_ca_is_renewed_there_also_after_its_end(ca: Ca) -> None:
    wish = Wish()
    late = ca.now + timedelta(days=100)
    granted = wish.granted(
        ca.desk.renew_here(read_term(ca.place / "coordinator.crt"), wish.to_renew(), now=late).document
    )
    assert str(granted.identity) == "coordinator/coordinator"
    names = material.names_of(leaf_of(granted.certificate.decode()))
    assert names.cover("ci.example.com")
    assert granted.not_after == late + timedelta(days=90)


def test_renewals_are_spread_over_the_middle_of_the_lifetime(ca: Ca, tmp_path: Path) -> None:
    authority, parts = directory.open_ca(ca.place), []
    for number in range(40):
        file = tmp_path / f"{number}.crt"
        file.write_bytes(authority.issue(profile(), f"w{number}", now=ca.now).certificate)
        term = read_term(file)
        assert read_term(file) == term, "the same each time"
        parts.append((term.due_at - term.begins_at) / (term.not_after - term.begins_at))
    assert EARLIEST <= min(parts) < 0.55
    assert 0.62 < max(parts) <= LATEST


# ── the holder's side ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_for_another_key_or_from_a_liar_is_not_kept(ca: Ca) -> None:
    mine, theirs = Wish(), Wish()
    document = ca.join(ca.token(), theirs).document
    with pytest.raises(IntegrityViolation, match="another key"):
        mine.granted(document)
    said = json.loads(document)
    for change in ({"name": "other"}, {"certificate": "x"}, {"ca": (ca.place / "operator.crt").read_text()}):
        with pytest.raises(IntegrityViolation):
            theirs.granted(json.dumps(said | change).encode())
    with pytest.raises(IntegrityViolation):
        theirs.granted(b"[]")
    with pytest.raises(Refused, match="did not accept the token"):
        theirs.granted(Decision(answer=JOIN_REFUSED).document)


def test_a_pair_is_replaced_whole_whenever_the_machine_stops(ca: Ca, tmp_path: Path) -> None:
    """A crash between any two writes leaves the old pair, or one that `finish` completes."""
    first, second = Wish(), Wish()
    old, new = first.granted(ca.join(ca.token(), first).document), second.granted(ca.join(ca.token(), second).document)
    for step in range(4):
        place = tmp_path / str(step)
        place.mkdir()
        pair.write(place, "w", certificate=old.certificate, key=old.key)
        if step >= 1:
            (place / "w.crt.new").write_bytes(new.certificate)
        if step >= 2:
            (place / "w.key.new").write_bytes(new.key)
        if step >= 3:
            (place / "w.key.new").rename(place / "w.key")
        pair.finish(place, "w")
        wanted = old if step < 2 else new
        assert (place / "w.crt").read_bytes() == wanted.certificate
        assert (place / "w.key").read_bytes() == wanted.key
        assert sorted(file.name for file in place.iterdir()) == ["w.crt", "w.key"]


def test_strangers_have_a_bucket_of_failures_each(ca: Ca) -> None:
    failures = Failures()
    for _ in range(MAX_FAILURES):
        assert not failures.are_too_many(HERE, ca.now)
        failures.count(HERE, ca.now)
    assert failures.are_too_many(HERE, ca.now)
    assert failures.are_too_many("192.0.2.7:9", ca.now)
    assert not failures.are_too_many("192.0.2.8:9", ca.now)
    assert not failures.are_too_many(HERE, ca.now + timedelta(seconds=FAILURE_S))
    for port in range(MAX_FAILURES):
        failures.count(f"[2001:db8::{port:x}]:1", ca.now)
    assert failures.are_too_many("[2001:db8::ffff]:1", ca.now)
    assert not failures.are_too_many("[2001:db8:0:1::1]:1", ca.now)


def test_a_good_token_is_not_looked_at_while_an_address_has_failed_too_often(ca: Ca) -> None:
    secret = ca.token()
    for _ in range(MAX_FAILURES):
        ca.join("x" * 27)
    refused = ca.join(secret)
    assert (refused.answer, refused.reason) == (JOIN_REFUSED, "too_many")
    assert ca.join(secret, address="192.0.2.9:1").entry is not None
