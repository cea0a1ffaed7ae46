"""T26: a revocation list is withheld, left to age, rolled back, forged or cut off, at work and across a restart."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_dagu.errors import ConfigError
from tests.link.certs import Ca
from tests.link.test_reload import signed_list
from tests.link.test_watching import Place, changes

STOLEN = 7
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def our_ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """Return the CA that the coordinator trusts."""
    return Ca(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """Return a CA of somebody else."""
    return Ca(tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def place(tmp_path: Path, our_ca: Ca) -> Place:
    """Return a coordinator that knows the stolen certificate by list number 5."""
    made = Place(tmp_path, our_ca)
    made.put("ca.crl", signed_list(our_ca, STOLEN, number=5))
    return made


ATTACKS: dict[str, Callable[[Ca, Ca], bytes | None]] = {
    "rolled back": lambda ours, theirs: signed_list(ours, number=4),
    "emptied under the same number": lambda ours, theirs: signed_list(ours, number=5),
    "forged under our name": lambda ours, theirs: signed_list(
        theirs, number=9, issuer=ours.certificate.subject, authority_key=False
    ),
    "signed by another CA": lambda ours, theirs: signed_list(theirs, number=9),
    "cut off": lambda ours, theirs: signed_list(ours, STOLEN, number=6)[:-200],
    "emptied": lambda ours, theirs: b"",
    "removed": lambda ours, theirs: None,
    "without a number": lambda ours, theirs: signed_list(ours, number=None),
    "another CA's in front of nothing": lambda ours, theirs: signed_list(theirs, number=9) + b"\n",
}


UNKNOWABLE = {"removed", "rolled back", "emptied under the same number"}
"""What a coordinator that never saw another list cannot tell from the truth."""


def attack(place: Place, attacker: Ca, name: str) -> None:
    """Replace the list on disk."""
    data = ATTACKS[name](place.ca, attacker)
    if data is None:
        place.crl.file.unlink()
    else:
        place.put("ca.crl", data)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_last_good_list_stays_while_we_run(place: Place, attacker: Ca, name: str) -> None:
    reload = place.open()
    attack(place, attacker, name)
    reload.look()
    assert changes(reload) == ["crl!"]
    assert changes(reload) == [], "told once"
    assert reload.revocation is not None
    assert reload.revocation.is_revoked(STOLEN)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_last_good_list_is_known_after_a_restart(place: Place, attacker: Ca, name: str) -> None:
    place.open()
    attack(place, attacker, name)
    reload = place.open()
    assert reload.revocation is not None
    assert reload.revocation.is_revoked(STOLEN)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - UNKNOWABLE))
def test_a_first_start_with_a_bad_list_is_refused(place: Place, attacker: Ca, name: str) -> None:
    attack(place, attacker, name)
    with pytest.raises(ConfigError):
        place.open()


def test_a_withheld_list_closes_the_port_after_its_grace(place: Place) -> None:
    """Whoever keeps new lists away gains the time until the next update and the grace, no more."""
    reload = place.open()
    standing = reload.policy.standing
    assert reload.revocation is not None
    due = reload.revocation.next_update
    assert not standing.is_closed(due + DAY - timedelta(seconds=1))
    assert standing.is_closed(due + DAY)


def test_a_list_that_was_stale_for_too_long_admits_nobody_from_the_start(place: Place) -> None:
    place.put("ca.crl", signed_list(place.ca, number=6, next_update=-2 * DAY))
    assert place.open().policy.standing.is_closed(datetime.now(UTC))


def test_a_newer_list_is_believed_again_after_an_attack(place: Place, attacker: Ca) -> None:
    reload = place.open()
    attack(place, attacker, "rolled back")
    reload.look()
    reload.look()
    place.put("ca.crl", signed_list(place.ca, STOLEN, 8, number=6))
    assert changes(reload) == ["crl"]
    assert reload.revocation is not None
    assert reload.revocation.is_revoked(8)


def test_the_kept_copy_is_ours_alone(place: Place) -> None:
    place.open()
    assert place.crl.kept.stat().st_mode & 0o077 == 0
