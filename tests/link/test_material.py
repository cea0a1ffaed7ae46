"""Certificate files are checked before use: each refusal names the file, the fact and the fix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from secure_dagu.errors import ConfigError
from secure_dagu.link import private
from secure_dagu.link.context import client_policy, server_policy
from secure_dagu.link.material import Names
from tests import needs
from tests.link.certs import CLIENT, DAY, SERVER, Ca, Pair, uri


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    """Return a CA of this test's own: its files will be damaged."""
    return Ca(tmp_path / "ca")


def refusal(cert: Path, key: Path, ca: Path, *advertised: str) -> str:
    """Return the words that refuse a coordinator's files."""
    with pytest.raises(ConfigError) as refused:
        server_policy(cert=cert, key=key, client_ca=ca, advertised=advertised)
    assert refused.value.fix
    return str(refused.value)


def test_good_files_become_policies_with_facts(ca: Ca) -> None:
    pair, worker = ca.coordinator(), ca.worker()
    policy = server_policy(
        cert=pair.cert, key=pair.key, client_ca=ca.file, advertised=["LOCALHOST", "127.0.0.1", "::1"]
    )
    assert str(policy.identity) == "coordinator/main"
    assert policy.own.file == pair.cert
    assert policy.own.key_type == "ec-secp256r1"
    assert policy.own.not_before < policy.own.not_after
    assert [facts.subject for facts in policy.trust] == ["test CA"]
    assert str(client_policy(cert=worker.cert, key=worker.key, ca=ca.file).identity) == "worker/w1"


SPOILERS: list[tuple[str, Callable[[Ca, Pair], tuple[Path, Path, Path]], str]] = []


def spoiler(words: str) -> Callable[[Callable[[Ca, Pair], tuple[Path, Path, Path]]], None]:
    """Register a way to spoil good files, and the words that must come."""

    def add(spoil: Callable[[Ca, Pair], tuple[Path, Path, Path]]) -> None:
        SPOILERS.append((spoil.__name__, spoil, words))

    return add


@spoiler("does not exist")
def missing(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    return pair.cert.with_name("nowhere.pem"), pair.key, ca.file


@spoiler("regular file")
def a_directory(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    (pair.cert.parent / "pipe").mkdir()
    os.mkfifo(pair.cert.parent / "fifo", 0o600)
    return Path(os.devnull), pair.key, ca.file


@spoiler("no readable PEM certificate")
def not_pem(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    pair.cert.write_text("hello")
    return pair.cert, pair.key, ca.file


@spoiler("it is a private key")
def swapped(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    return pair.key, pair.cert, ca.file


@spoiler("larger than")
def oversized(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    pair.cert.write_bytes(b"-" * ((1 << 20) + 1))
    return pair.cert, pair.key, ca.file


@spoiler("not the key of the certificate")
def another_key(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    return pair.cert, ca.worker().key, ca.file


@spoiler("encrypted")
def encrypted_key(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return pair.cert, pair.key, ca.file


@spoiler("no readable PEM private key")
def key_that_is_none(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    pair.key.write_text("hello")
    return pair.cert, pair.key, ca.file


@spoiler("others may use this private key (mode 0644)")
def readable_key(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    pair.key.chmod(0o644)
    return pair.cert, pair.key, ca.file


@spoiler("chain is out of order")
def wrong_chain(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    pair.cert.write_bytes(pair.cert.read_bytes() + ca.worker().cert.read_bytes())
    return pair.cert, pair.key, ca.file


@spoiler("expired on")
def expired(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    old = ca.issue([uri("coordinator", "c")], usages=[SERVER], names=["localhost"], begins=-2 * DAY, ends=-DAY)
    return old.cert, old.key, ca.file


@spoiler("not valid before")
def not_yet_valid(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    early = ca.issue([uri("coordinator", "c")], usages=[SERVER], names=["localhost"], begins=DAY, ends=2 * DAY)
    return early.cert, early.key, ca.file


@spoiler("no DNS or IP subject alternative name")
def nameless(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    bare = ca.issue([uri("coordinator", "c")], usages=[SERVER], common_name="localhost")
    return bare.cert, bare.key, ca.file


@spoiler("not for servers")
def wrong_purpose(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    client = ca.issue([uri("coordinator", "c")], usages=[CLIENT], names=["localhost"])
    return client.cert, client.key, ca.file


@spoiler("not for servers")
def no_purpose(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    any_use = ca.issue([uri("coordinator", "c")], usages=[], names=["localhost"])
    return any_use.cert, any_use.key, ca.file


@spoiler("2 URI names")
def two_identities(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    two = ca.issue([uri("coordinator", "c"), uri("coordinator", "d")], usages=[SERVER], names=["localhost"])
    return two.cert, two.key, ca.file


@spoiler("clients accept only a coordinator")
def wrong_role(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    worker = ca.issue([uri("worker", "w")], usages=[SERVER], names=["localhost"])
    return worker.cert, worker.key, ca.file


@spoiler("is not a CA certificate")
def leaf_as_ca(ca: Ca, pair: Pair) -> tuple[Path, Path, Path]:
    return pair.cert, pair.key, ca.worker().cert


@pytest.mark.parametrize(("spoil", "words"), [row[1:] for row in SPOILERS], ids=[row[0] for row in SPOILERS])
def test_spoiled_files_are_refused_by_name(
    spoil: Callable[[Ca, Pair], tuple[Path, Path, Path]], words: str, ca: Ca
) -> None:
    files = spoil(ca, ca.coordinator())
    said = refusal(*files)
    assert words in said
    assert any(str(file) in said for file in files)


def test_each_advertised_name_must_be_covered(ca: Ca) -> None:
    pair = ca.coordinator("ci.example.com", "10.0.0.7")
    said = refusal(pair.cert, pair.key, ca.file, "ci.example.com", "10.0.0.8", "other.example.com")
    assert "does not cover 10.0.0.8, other.example.com; it has ci.example.com, 10.0.0.7" in said


def test_a_client_certificate_must_be_for_clients(ca: Ca) -> None:
    pair = ca.coordinator()
    with pytest.raises(ConfigError, match="not for clients"):
        client_policy(cert=pair.cert, key=pair.key, ca=ca.file)


def test_a_mounted_secret_of_roots_may_be_group_readable(ca: Ca) -> None:
    """Kubernetes mounts secrets as root's, readable by the pod's group."""
    needs.root(why="only root can make root's files")
    pair = ca.coordinator()
    pair.key.chmod(0o640)
    server_policy(cert=pair.cert, key=pair.key, client_ca=ca.file)
    os.chown(pair.key, 1234, 1234)
    assert "mode 0640" in refusal(pair.cert, pair.key, ca.file)


def test_names_are_compared_exactly_and_by_type() -> None:
    import ipaddress

    names = Names(dns=("CI.example.com", "*.wild.example.com", "10.0.0.9"), ips=(ipaddress.ip_address("10.0.0.7"),))
    assert names.cover("ci.EXAMPLE.com")
    assert names.cover("ci.example.com.")
    assert names.cover("10.0.0.7")
    assert not names.cover("10.0.0.9")  # an IP in a DNS name is none
    assert not names.cover("a.wild.example.com")
    assert not names.cover("example.com")


def test_a_folder_that_others_may_enter_is_no_place_for_private_sockets(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="not ours alone"):
        private.check(tmp_path)
    deep = tmp_path / ("d" * 90)
    deep.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="107 bytes"):
        private.check(deep)


def test_a_private_folder_is_ours_alone_and_goes_away() -> None:
    with private.folder() as made:
        assert made.stat().st_mode & 0o777 == 0o700
    assert not made.exists()
