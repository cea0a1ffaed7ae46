"""T24, T17: what a signing request asks for is never granted; only its key is taken, and only from who holds it."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.pki import directory as pki
from secure_dagu.pki.authority import Authority
from secure_dagu.pki.facts import facts_of
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.pki.requests import MAX_REQUEST_BYTES
from secure_dagu.security import grants
from tests.pki.forging import NOW, initialise

PROFILES = load_profiles()
WORKER = PROFILES.roles[Role.WORKER]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    where = tmp_path_factory.mktemp("home")
    initialise(where)
    return pki.open_ca(where)


def greedy(key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    """Return a request that asks for everything."""
    wanted = [
        x509.BasicConstraints(ca=True, path_length=5),
        x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier("spiffe://secure-dagu/admin/root"),
                x509.DNSName("ci.example.com"),
                x509.DNSName("*.example.com"),
            ]
        ),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        x509.KeyUsage(
            digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
            key_agreement=True, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        ),
        x509.NameConstraints([x509.DNSName("")], None),
        x509.UnrecognizedExtension(
            x509.ObjectIdentifier(grants.OID), grants.encode(grants.parse_grants(["secure-dagu/tenant=payments"]))
        ),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"),
    ]  # fmt: skip
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'root\n{"level":"audit"}')])
    )
    for extension in wanted:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
def test_a_request_that_asks_for_everything_gets_a_plain_worker(
    ca: Authority, encoding: serialization.Encoding
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"w-{encoding is serialization.Encoding.PEM}"
    made = ca.sign(greedy(key).public_bytes(encoding), WORKER, name, now=NOW)
    facts = facts_of(x509.load_pem_x509_certificate(made.certificate))
    assert facts.uris == (f"spiffe://secure-dagu/worker/{name}",)
    assert (facts.is_ca, facts.usage, facts.key_usage) == (False, ("client",), ("digital_signature",))
    assert (facts.names, facts.labels, facts.unknown_extensions, facts.permitted) == ((), (), (), ())
    assert "level" not in facts.subject
    assert facts.not_after - NOW == WORKER.lifetime
    assert made.key == b""
    assert x509.load_pem_x509_certificate(made.certificate).public_key() == key.public_key()


def request(key: object) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("RSA-1024", rsa.generate_private_key(65537, 1024)),
        ("RSA-2048", rsa.generate_private_key(65537, 2048)),
        ("RSA-1024, exponent 3", rsa.generate_private_key(3, 1024)),
        ("DSA", dsa.generate_private_key(1024)),
        ("P-192", ec.generate_private_key(ec.SECP192R1())),
        ("P-521", ec.generate_private_key(ec.SECP521R1())),
        ("secp256k1", ec.generate_private_key(ec.SECP256K1())),
        ("Ed448", ed448.Ed448PrivateKey.generate()),
    ],
)
def test_a_key_of_another_kind_is_refused(ca: Authority, kind: str, key: object) -> None:
    before = ca.ledger.entries()
    with pytest.raises(InvalidRequest, match="its key is") as refusal:
        ca.sign(request(key), WORKER, "w", now=NOW)
    assert "P-256" in refusal.value.fix
    assert ca.ledger.entries() == before


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()], ids=["P-384", "Ed25519"]
)
def test_the_other_permitted_kinds_are_signed(ca: Authority, key: object) -> None:
    assert ca.sign(request(key), WORKER, f"k-{id(key)}", now=NOW).certificate


def test_a_request_for_somebody_elses_key_is_refused(ca: Authority) -> None:
    mine, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    der = greedy(mine).public_bytes(serialization.Encoding.DER)
    points = [
        key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        for key in (mine, theirs)
    ]
    stolen = der.replace(points[0], points[1])
    assert stolen != der
    with pytest.raises(InvalidRequest, match="may not hold that key"):
        ca.sign(stolen, WORKER, "w", now=NOW)


def test_a_key_has_one_holder_and_a_revoked_key_never_comes_back(ca: Authority) -> None:
    wanted = request(ec.generate_private_key(ec.SECP256R1()))
    first = ca.sign(wanted, WORKER, "one", now=NOW)
    ca.sign(wanted, WORKER, "one", now=NOW)
    with pytest.raises(InvalidRequest, match="belongs to worker/one"):
        ca.sign(wanted, WORKER, "two", now=NOW)
    with pytest.raises(InvalidRequest, match="belongs to worker/one"):
        ca.sign(wanted, PROFILES.roles[Role.DISPATCHER], "one", now=NOW)
    ca.ledger.mark_revoked(first.entry.serial, at=NOW.isoformat())
    with pytest.raises(InvalidRequest, match="was revoked"):
        ca.sign(wanted, WORKER, "one", now=NOW)


@pytest.mark.parametrize(
    "data",
    [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", b"\x30\x80" * 50,
     b"x" * (MAX_REQUEST_BYTES + 1)],
)  # fmt: skip
def test_what_is_no_request_is_refused(ca: Authority, data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="signing request is refused"):
        ca.sign(data, WORKER, "w", now=NOW)


DER = greedy(ec.generate_private_key(ec.SECP256R1())).public_bytes(serialization.Encoding.DER)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(position=st.integers(0, len(DER) - 1), bit=st.integers(0, 7))
def test_a_request_with_one_flipped_bit_is_refused(ca: Authority, position: int, bit: int) -> None:
    data = bytearray(DER)
    data[position] ^= 1 << bit
    try:
        issued = ca.sign(bytes(data), WORKER, "w", now=NOW)
    except InvalidRequest:
        return
    # A bit that no signature covers may turn: the key is still the one that was proven, and nothing else is taken over.
    leaf = x509.load_pem_x509_certificate(issued.certificate)
    assert leaf.public_key() == x509.load_der_x509_csr(DER).public_key()


@pytest.mark.parametrize("name", ["../x", "a\nb", "", "x" * 65, "a/b"])
def test_the_name_is_the_cas_business_and_checked_there_too(ca: Authority, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        ca.sign(request(ec.generate_private_key(ec.SECP256R1())), WORKER, name, now=NOW)
