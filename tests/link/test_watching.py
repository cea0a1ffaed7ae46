"""Files of a running process: swapped whole, never half; symlinks; what is said when they cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from secure_dagu.assembly.reload import CrlFile, Reload
from secure_dagu.config.peers import PeerFiles
from secure_dagu.errors import ConfigError
from secure_dagu.link import context
from secure_dagu.link.context import ServerPolicy
from tests.link.certs import Ca, Pair
from tests.link.test_reload import serial_of, signed_list


class Place:
    """A folder with a coordinator's files, as an operator keeps them."""

    def __init__(self, root: Path, ca: Ca) -> None:
        self.root, self.ca = root, ca
        self.files = PeerFiles(cert=root / "tls.crt", key=root / "tls.key", ca=root / "ca.crt", source="a test")
        self.crl = CrlFile(
            file=root / "ca.crl", kept=root / "data" / "kept.crl", is_required=False, issuing=root / "issuing.crt"
        )
        self.put("ca.crt", ca.file.read_bytes())
        self.pair(ca.coordinator())

    def put(self, name: str, data: bytes) -> None:
        """Replace a file at once."""
        fresh = self.root / f".{name}"
        fresh.touch(mode=0o600)
        fresh.write_bytes(data)
        fresh.replace(self.root / name)

    def pair(self, pair: Pair) -> None:
        """Replace key and certificate."""
        self.put("tls.key", pair.key.read_bytes())
        self.put("tls.crt", pair.cert.read_bytes())

    def open(self, *advertised: str) -> Reload[ServerPolicy]:
        """Read everything as a start does."""
        return Reload(
            self.files,
            crl_file=self.crl,
            read=lambda of: context.server_material(
                cert=of.cert, key=of.key, client_ca=of.ca, advertised=advertised or ("localhost",)
            ),
            make=lambda found, lists: context.server_from(found, lists=lists, grace=timedelta(days=1)),
        )


def changes(reload: Reload[ServerPolicy]) -> list[str]:
    """Look once; return what was taken, and with `!` what was refused."""
    return [f"{change.what}!" if change.error else change.what for change in reload.look()]


@pytest.fixture
def place(tmp_path: Path, our_ca: Ca) -> Place:
    """Return a coordinator's files."""
    return Place(tmp_path, our_ca)


def test_nothing_changes_while_the_files_do_not(place: Place) -> None:
    reload = place.open()
    policy = reload.policy
    assert changes(reload) == []
    assert reload.policy is policy


def test_a_new_pair_is_taken_at_the_next_look(place: Place) -> None:
    reload, fresh = place.open(), place.ca.coordinator()
    place.pair(fresh)
    assert changes(reload) == ["certificate"]
    assert reload.policy.own.serial == serial_of(fresh)


def test_a_half_written_pair_keeps_the_last_good_one_and_is_told_once(place: Place) -> None:
    reload, fresh = place.open(), place.ca.coordinator()
    before = reload.policy
    place.put("tls.key", fresh.key.read_bytes())
    assert changes(reload) == [], "the certificate may be on its way"
    assert changes(reload) == ["certificate!"]
    assert changes(reload) == []
    assert reload.policy is before
    place.put("tls.crt", fresh.cert.read_bytes())
    assert changes(reload) == ["certificate"]
    assert reload.policy.own.serial == serial_of(fresh)


def test_a_pair_whose_halves_come_between_two_looks_is_no_error(place: Place) -> None:
    reload, fresh = place.open(), place.ca.coordinator()
    place.put("tls.key", fresh.key.read_bytes())
    found = changes(reload)
    place.put("tls.crt", fresh.cert.read_bytes())
    assert [*found, *changes(reload)] == ["certificate"]


@pytest.mark.parametrize(
    ("name", "make", "word"),
    [
        ("tls.crt", lambda ca: ca.coordinator().cert.read_bytes()[:300], "certificate"),
        ("tls.crt", lambda ca: b"", "certificate"),
        ("tls.crt", lambda ca: ca.coordinator().cert.read_bytes(), "not the key"),
        ("tls.crt", lambda ca: ca.worker().cert.read_bytes(), "servers"),
        ("ca.crt", lambda ca: ca.coordinator().cert.read_bytes(), "not a CA"),
    ],
    ids=["truncated", "empty", "another's", "a worker's", "no CA"],
)
def test_a_set_that_cannot_be_used_changes_nothing(
    place: Place, name: str, make: Callable[[Ca], bytes], word: str
) -> None:
    reload = place.open()
    before = reload.policy
    data = make(place.ca)
    good = (place.root / name).read_bytes()
    place.put(name, data)
    reload.look()
    (change,) = reload.look()
    assert change.error is not None
    assert word in change.error.why
    assert change.error.fix
    assert reload.policy is before
    place.put(name, good)
    reload.look()
    assert reload.look() == [], "back as it was, and at peace"


def test_an_expired_pair_and_one_without_an_advertised_name_are_not_taken(place: Place, our_ca: Ca) -> None:
    reload = place.open("localhost")
    before = reload.policy
    place.pair(our_ca.coordinator("elsewhere.example"))
    reload.look()
    (change,) = reload.look()
    assert change.error is not None
    assert "localhost" in change.error.why
    assert reload.policy is before


def test_a_key_that_others_may_read_is_not_taken_until_it_is_closed(place: Place) -> None:
    reload, fresh = place.open(), place.ca.coordinator()
    place.pair(fresh)
    os.chmod(place.root / "tls.key", 0o644)
    reload.look()
    assert changes(reload) == ["certificate!"]
    os.chmod(place.root / "tls.key", 0o600)
    assert changes(reload) == ["certificate"]


def test_a_symlink_swap_as_kubernetes_makes_it_is_one_change(tmp_path: Path, our_ca: Ca) -> None:
    mount = tmp_path / "mount"

    def version(name: str, pair: Pair) -> None:
        folder = mount / name
        folder.mkdir(parents=True)
        (folder / "tls.key").touch(mode=0o600)
        for file, data in (("tls.crt", pair.cert), ("tls.key", pair.key), ("ca.crt", our_ca.file)):
            (folder / file).write_bytes(data.read_bytes())
        (mount / ".next").symlink_to(name)
        (mount / ".next").replace(mount / "..data")

    version("..one", our_ca.coordinator())
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (mount / name).symlink_to(f"..data/{name}")
    reload = Reload(
        PeerFiles(cert=mount / "tls.crt", key=mount / "tls.key", ca=mount / "ca.crt", source="a mount"),
        crl_file=None,
        read=lambda of: context.server_material(cert=of.cert, key=of.key, client_ca=of.ca),
        make=lambda found, lists: context.server_from(found, lists=lists),
    )
    second = our_ca.coordinator()
    version("..two", second)
    assert changes(reload) == ["certificate"]
    assert reload.policy.own.serial == serial_of(second)


def test_a_bundle_in_rotation_is_taken_and_another_ca_is_trusted(place: Place, other_ca: Ca) -> None:
    reload = place.open()
    place.put("ca.crt", place.ca.file.read_bytes() + other_ca.file.read_bytes())
    assert changes(reload) == ["trust"]
    assert len(reload.policy.trust) == 2


def test_a_revocation_list_that_appears_is_taken_although_the_pair_is_broken(place: Place) -> None:
    reload = place.open()
    place.put("tls.crt", b"")
    reload.look()
    assert changes(reload) == ["certificate!"]
    place.put("ca.crl", signed_list(place.ca, 7))
    assert changes(reload) == ["crl"]
    assert reload.revocation is not None
    assert reload.revocation.is_revoked(7)


def test_the_lists_of_a_ca_that_leaves_the_bundle_are_dropped(place: Place, other_ca: Ca) -> None:
    place.put("ca.crt", place.ca.file.read_bytes() + other_ca.file.read_bytes())
    place.put("ca.crl", signed_list(place.ca, 7) + signed_list(other_ca, 8))
    reload = place.open()
    assert reload.revocation is not None
    assert len(reload.revocation.lists) == 2
    place.put("ca.crt", place.ca.file.read_bytes())
    assert "trust" in changes(reload)
    assert reload.revocation is not None
    assert [item.serials for item in reload.revocation.lists] == [frozenset({7})]


def test_a_named_list_that_is_missing_at_start_is_an_error(place: Place) -> None:
    place.crl = structs.replace(place.crl, file=place.root / "none.crl", is_required=True)
    with pytest.raises(ConfigError, match=r"none\.crl"):
        place.open()
