"""What the CA issues, judged by an X.509 library, by OpenSSL and by the files it leaves."""

from __future__ import annotations

import ipaddress
import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory as pki
from secure_dagu.pki import facts, profiles
from secure_dagu.pki.names import parse_names
from secure_dagu.security.identity import Identity, parse_identity

NOW = datetime.now(UTC).replace(microsecond=0)


def initialise(where: Path, *advertised: str) -> pki.Initialised:
    return pki.initialise(where, advertised=advertised or ("ci.example.com",), trust_domain="secure-dagu", now=NOW)


def issue(where: Path, role: Role, name: str, **more: object) -> pki.Written:
    options: dict[str, object] = {"out": None, "advertised": (), "lifetime": None, "force": False, "now": NOW} | more
    return pki.issue(where, role, name, **options)  # type: ignore[arg-type]  # a dictionary of the defaults above


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_init_leaves_a_private_directory_with_a_ca_a_coordinator_and_an_operator(tmp_path: Path) -> None:
    done = initialise(tmp_path / "pki")
    assert {path.name: path.stat().st_mode & 0o777 for path in done.directory.iterdir()} == {
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "ledger.jsonl": 0o600,
        "coordinator.crt": 0o644,
        "coordinator.key": 0o600,
        "operator.crt": 0o644,
        "operator.key": 0o600,
    }
    assert done.directory.stat().st_mode & 0o777 == 0o700
    assert done.operator.uri == "spiffe://secure-dagu/admin/operator"


def test_the_ca_may_sign_end_certificates_and_nothing_else(tmp_path: Path) -> None:
    initialise(tmp_path)
    ca = certificate(tmp_path / "ca.crt")
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ANONYMOUS])
def test_a_certificate_has_one_identity_and_one_purpose(tmp_path: Path, role: Role) -> None:
    initialise(tmp_path)
    names = ("ci.example.com",) if role is Role.COORDINATOR else ()
    made = certificate(issue(tmp_path, role, "n-1", advertised=names).certificate)
    alternatives = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    assert parse_identity(uri) == Identity("secure-dagu", role, "n-1")
    (purpose,) = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert purpose == (ExtendedKeyUsageOID.SERVER_AUTH if role is Role.COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH)
    assert (len(alternatives) == 1) == (role is not Role.COORDINATOR)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.serial_number.bit_length() > 128 - 20
    ca = certificate(tmp_path / "ca.crt")
    made.verify_directly_issued_by(ca)
    assert (
        made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert timedelta(0) <= NOW - made.not_valid_before_utc <= timedelta(minutes=5)
    assert made.not_valid_after_utc - NOW == profiles.load_profiles().roles[role].lifetime


def test_a_coordinator_is_named_as_advertised_and_as_its_own_host(tmp_path: Path) -> None:
    done = initialise(tmp_path, "CI.example.com.,10.0.0.7", "[2001:db8::7]", "ci.example.com")
    made = certificate(done.coordinator.certificate)
    alternatives = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["ci.example.com", "localhost"]
    assert alternatives.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(text) for text in ("10.0.0.7", "2001:db8::7", "127.0.0.1", "::1")
    ]


def handshake(where: Path, *, server: tuple[str, str], client: tuple[str, str], dialled: str = "localhost") -> None:
    """Shake hands in memory with Python's OpenSSL, both sides checked; raises what the refusing side raises."""

    def context(protocol: int, pair: tuple[str, str]) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_verify_locations(where / "ca.crt")
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(where / pair[0], where / pair[1])
        return made

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context(ssl.PROTOCOL_TLS_CLIENT, client).wrap_bio(to_client, to_server, server_hostname=dialled),
        context(ssl.PROTOCOL_TLS_SERVER, server).wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


COORDINATOR = ("coordinator.crt", "coordinator.key")
WORKER = ("gpu-1.crt", "gpu-1.key")


@pytest.mark.parametrize("dialled", ["ci.example.com", "localhost", "127.0.0.1", "::1"])
def test_openssl_accepts_coordinator_and_worker_under_every_name(tmp_path: Path, dialled: str) -> None:
    initialise(tmp_path)
    issue(tmp_path, Role.WORKER, "gpu-1", out=tmp_path)
    handshake(tmp_path, server=COORDINATOR, client=WORKER, dialled=dialled)


def test_a_worker_certificate_cannot_serve_and_a_coordinator_certificate_cannot_call(tmp_path: Path) -> None:
    initialise(tmp_path)
    issue(tmp_path, Role.WORKER, "gpu-1", out=tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(tmp_path, server=WORKER, client=WORKER)
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(tmp_path, server=COORDINATOR, client=COORDINATOR)


def contents(where: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in where.rglob("*") if path.is_file()}


def test_a_second_init_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    initialise(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        initialise(tmp_path)
    assert "ca.key" in refusal.value.what
    assert "pki issue" in refusal.value.fix
    assert contents(tmp_path) == before


def test_a_refused_name_leaves_no_half_made_ca(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        initialise(tmp_path / "pki", "*.example.com")
    assert not (tmp_path / "pki").exists()


def test_issue_writes_a_folder_to_carry_away_and_leaves_the_ca_alone(tmp_path: Path) -> None:
    initialise(tmp_path)
    ca = (tmp_path / "ca.crt").read_bytes()
    made = issue(tmp_path, Role.WORKER, "gpu-1")
    assert sorted(path.name for path in (tmp_path / "issued/gpu-1").iterdir()) == ["ca.crt", "gpu-1.crt", "gpu-1.key"]
    assert made.ca.read_bytes() == ca
    assert made.key.stat().st_mode & 0o777 == 0o600


def test_an_issued_key_is_not_overwritten_without_force(tmp_path: Path) -> None:
    initialise(tmp_path)
    key = issue(tmp_path, Role.WORKER, "gpu-1", out=tmp_path).key.read_bytes()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"gpu-1\.crt, gpu-1\.key"):
        issue(tmp_path, Role.WORKER, "gpu-1", out=tmp_path)
    assert contents(tmp_path) == before
    assert issue(tmp_path, Role.WORKER, "gpu-1", out=tmp_path, force=True).key.read_bytes() != key
    assert certificate(tmp_path / "ca.crt").public_key() == certificate(tmp_path / "ca.crt").public_key()


def test_the_trust_of_another_ca_is_not_replaced_silently(tmp_path: Path) -> None:
    initialise(tmp_path / "one")
    initialise(tmp_path / "two")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="another CA"):
        issue(tmp_path / "one", Role.WORKER, "gpu-1", out=tmp_path / "two")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a b", "a\n", "-a", "a.", "ca", "x" * 65, "ä", "a\0b"])
def test_a_name_that_could_climb_or_inject_is_refused(tmp_path: Path, name: str) -> None:
    initialise(tmp_path / "pki")
    before = contents(tmp_path)
    with pytest.raises(ConfigError):
        issue(tmp_path / "pki", Role.WORKER, name)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("role", "more"),
    [
        (Role.WORKER, {"advertised": ("ci.example.com",)}),
        (Role.COORDINATOR, {}),
        (Role.WORKER, {"lifetime": timedelta(0)}),
        (Role.WORKER, {"lifetime": timedelta(days=91)}),
    ],
)
def test_a_request_outside_the_profile_is_refused(tmp_path: Path, role: Role, more: dict[str, object]) -> None:
    initialise(tmp_path)
    with pytest.raises(ConfigError):
        issue(tmp_path, role, "n", **more)


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    initialise(tmp_path)
    end = certificate(tmp_path / "ca.crt").not_valid_after_utc
    late = issue(tmp_path, Role.WORKER, "late", now=end - timedelta(days=1))
    assert certificate(late.certificate).not_valid_after_utc == end
    with pytest.raises(ConfigError, match="CA itself has ended"):
        issue(tmp_path, Role.WORKER, "later", now=end)


def test_the_ledger_holds_every_certificate_in_order(tmp_path: Path) -> None:
    initialise(tmp_path)
    made = issue(tmp_path, Role.WORKER, "gpu-1", lifetime=timedelta(days=7))
    entries = pki.ledger(tmp_path).entries()
    assert [(entry.role, entry.name) for entry in entries] == [
        ("coordinator", "coordinator"),
        ("admin", "operator"),
        ("worker", "gpu-1"),
    ]
    assert entries[-1] == made.entry
    assert int(entries[-1].serial, 16) == certificate(made.certificate).serial_number
    assert entries[-1].not_after == (NOW + timedelta(days=7)).isoformat(timespec="seconds")
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[0])["names"][0] == "ci.example.com"


def test_a_damaged_ledger_line_is_named(tmp_path: Path) -> None:
    initialise(tmp_path)
    with (tmp_path / "ledger.jsonl").open("a") as sink:
        sink.write('{"serial": 1\n')
    with pytest.raises(ConfigError, match="line 3 of"):
        pki.ledger(tmp_path).entries()


def test_a_ca_key_of_another_ca_is_refused(tmp_path: Path) -> None:
    initialise(tmp_path / "one")
    initialise(tmp_path / "two")
    (tmp_path / "one/ca.key").write_bytes((tmp_path / "two/ca.key").read_bytes())
    with pytest.raises(ConfigError) as refusal:
        issue(tmp_path / "one", Role.WORKER, "gpu-1")
    assert "is not the key of" in refusal.value.why


def test_issuing_without_a_ca_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        issue(tmp_path, Role.WORKER, "gpu-1")
    assert "pki init" in refusal.value.fix


def test_a_certificate_is_found_by_name_or_path_and_told_in_words(tmp_path: Path) -> None:
    initialise(tmp_path)
    issue(tmp_path, Role.WORKER, "gpu-1")
    for word in ("gpu-1", str(tmp_path / "issued/gpu-1/gpu-1.crt")):
        told = facts.read_facts(pki.find_certificate(tmp_path, word))
        assert (told.identity, told.usage, told.is_ca) == ("spiffe://secure-dagu/worker/gpu-1", ("client",), False)
    assert facts.read_facts(pki.find_certificate(tmp_path, "ca")).is_ca
    with pytest.raises(ConfigError):
        pki.find_certificate(tmp_path, "gpu-2")
    with pytest.raises(ConfigError, match="cannot be read as a certificate"):
        facts.read_facts(tmp_path / "ca.key")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("*.example.com", "wildcards"),
        ("ci.example.com:50055", "port"),
        ("https://ci.example.com", "URL"),
        ("bücher.example", "xn--"),
        ("a..b", "labels"),
        ("x" * 64, "labels"),
        ("10.0.0.256", "mistake"),
    ],
)
def test_a_name_that_is_no_exact_host_name_is_refused_with_the_reason(word: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_names([word])
    assert reason in refusal.value.why


@given(st.text(max_size=60))
def test_whatever_is_accepted_as_a_name_can_stand_in_a_certificate(text: str) -> None:
    try:
        names = parse_names([text])
    except ConfigError:
        return
    for name in names:
        if isinstance(name, str):
            assert x509.DNSName(name).value == name
            assert name.isascii()
            assert name == name.lower()


def test_the_released_profiles_are_complete_and_odd_ones_are_refused(tmp_path: Path) -> None:
    released = profiles.profiles_path().read_text()
    assert profiles.load_profiles().roles[Role.WORKER].usage == "client"
    for change in (
        released.replace("[roles.metrics]", "[roles.visitor]"),
        released.replace('usage = "server"', 'usage = "both"'),
        released.replace("days = 90", "days = 0", 1),
        released + "\n[extra]\n",
        released.replace("path_length", "path_len"),
    ):
        (tmp_path / "profiles.toml").write_text(change)
        with pytest.raises(ConfigError, match="profiles cannot be used"):
            profiles.load_profiles(tmp_path / "profiles.toml")
