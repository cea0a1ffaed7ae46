"""Revocation lists: what they say, how they are numbered, and that nothing is lost when the command dies."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.link import crl as verifier
from secure_dagu.link import material
from secure_dagu.pki import crl, directory
from secure_dagu.pki.ledger import Status
from tests.needs import program

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a CA that has issued two certificates to w1."""
    made = tmp_path / "pki"
    directory.initialise(made, advertised=["localhost"], trust_domain="example", now=NOW)
    for _ in range(2):
        directory.issue(made, Role.WORKER, "w1", out=None, advertised=[], lifetime=None, force=True, now=NOW)
    return made


def revoke(place: Path, word: str, *, reason: str = "unspecified", now: datetime = NOW) -> crl.Signed:
    """Revoke as the command does."""
    ca = directory.open_ca(place)
    return crl.revoke(place, [ca], crl.find(ca.ledger, word, now=now), reason=reason, now=now)


def test_every_live_certificate_of_a_name_is_revoked(place: Path) -> None:
    signed = revoke(place, "w1", reason="keyCompromise")
    assert [why for _, _, why in signed.entries] == ["keyCompromise"] * 2
    assert {entry.status for entry in directory.ledger(place).entries() if entry.name == "w1"} == {Status.REVOKED}
    found = verifier.read(place / "ca.crl", material.read_trust(place / "ca.crt")).revocation
    assert found.entries == 2


def test_one_serial_is_revoked_alone(place: Path) -> None:
    first = next(entry for entry in directory.ledger(place).entries() if entry.name == "w1")
    assert [serial for serial, _, _ in revoke(place, first.serial).entries] == [first.serial]


def test_a_name_in_two_roles_wants_the_role(place: Path) -> None:
    directory.issue(place, Role.ADMIN, "w1", out=place / "x", advertised=[], lifetime=None, force=True, now=NOW)
    with pytest.raises(ConfigError, match="several") as caught:
        revoke(place, "w1")
    assert "admin/w1" in caught.value.fix
    assert len(revoke(place, "admin/w1").entries) == 1


def test_what_is_unknown_or_over_is_said(place: Path) -> None:
    with pytest.raises(ConfigError, match="has no certificate"):
        revoke(place, "nobody")
    with pytest.raises(ConfigError, match="has ended"):
        revoke(place, "w1", now=NOW + timedelta(days=200))


def test_numbers_grow_within_a_second_and_when_the_clock_goes_back(place: Path) -> None:
    ca = directory.open_ca(place)
    numbers = [crl.sign(place, [ca], now=moment).number for moment in (NOW, NOW, NOW - timedelta(days=3))]
    assert numbers == sorted(set(numbers))


def test_a_number_is_not_given_twice_although_the_file_was_lost(place: Path) -> None:
    first = revoke(place, "w1").number
    (place / "ca.crl").unlink()
    assert crl.sign(place, [directory.open_ca(place)], now=NOW + timedelta(seconds=1)).number > first


def test_a_command_that_died_between_ledger_and_list_is_completed_by_the_next(place: Path) -> None:
    ca = directory.open_ca(place)
    for entry in crl.find(ca.ledger, "w1", now=NOW):
        ca.ledger.mark_revoked(entry.serial, at=NOW.isoformat(), reason="keyCompromise")
    assert not (place / "ca.crl").exists()
    assert len(revoke(place, "w1").entries) == 2


def test_an_expired_certificate_leaves_the_list(place: Path) -> None:
    revoke(place, "w1")
    later = NOW + timedelta(days=100)
    assert not crl.sign(place, [directory.open_ca(place)], now=later).entries


def test_without_a_list_the_way_to_one_is_said(place: Path) -> None:
    with pytest.raises(ConfigError, match="no revocation list") as caught:
        crl.read(place)
    assert "--renew" in caught.value.fix


def test_openssl_verifies_the_list_and_refuses_whom_it_names(place: Path) -> None:
    revoke(place, "w1")
    words = [
        program("openssl", package="openssl"),
        "verify",
        "-CAfile",
        str(place / "ca.crt"),
        "-CRLfile",
        str(place / "ca.crl"),
        "-crl_check",
    ]
    good = subprocess.run([*words, str(place / "operator.crt")], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    bad = subprocess.run([*words, str(place / "issued/w1/w1.crt")], capture_output=True, text=True, check=False)
    assert "certificate revoked" in bad.stdout + bad.stderr
