"""Signing requests that ask for more than they get (threat T24): the CA writes every field itself, or refuses.

The set follows Swarm's: a CA, other names, a weak or foreign key, a request that its key did not sign, and rubbish.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure_dagu.dispatch.model import Role
from secure_dagu.pki import directory
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.enrolment import JOIN_REFUSED, Decision, Desk, make_token
from secure_dagu.pki.tokens import Tokens

NOW = utc_now()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a CA."""
    place = tmp_path_factory.mktemp("ca") / "pki"
    directory.initialise(place, advertised=["ci.example.com"], trust_domain="test.example", now=NOW)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Return a CA of this test's own."""
    return Path(shutil.copytree(made, tmp_path / "pki"))


def join(place: Path, csr: str, *, role: Role = Role.WORKER, name: str = "w1") -> Decision:
    """Send a request with a good token."""
    token, _ = make_token(place, role, name, labels=None, ttl=timedelta(hours=1), now=NOW)
    request = json.dumps({"secret": token.secret.reveal(), "csr": csr}).encode()
    return Desk(place, None).join(request, address="192.0.2.1:1", now=NOW)


def greedy() -> x509.CertificateSigningRequestBuilder:
    """Ask for everything."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "operator"),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
                ]
            )
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("spiffe://test.example/admin/operator"),
                    x509.UniformResourceIdentifier("spiffe://test.example/coordinator/coordinator"),
                    x509.DNSName("ci.example.com"),
                    x509.DNSName("*"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                ]
            ),
            critical=False,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
            critical=True,
        )
        .add_extension(
            x509.UnrecognizedExtension(
                x509.ObjectIdentifier("1.2.840.113556.1.8000.2554.63613.52672.52160.19103.45966.9614691.14315205"),
                b"\x0c\x08gpu=true",
            ),
            critical=False,
        )
    )


def pem(request: x509.CertificateSigningRequest) -> str:
    return request.public_bytes(Encoding.PEM).decode()


def test_a_request_for_everything_gets_what_the_token_says_and_nothing_else(place: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    made = join(place, pem(greedy().sign(key, hashes.SHA256()))).answer
    leaf = x509.load_pem_x509_certificate(made.certificate.encode())
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://test.example/worker/w1"]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert "operator" not in leaf.subject.rfc4514_string()
    assert "masters" not in leaf.subject.rfc4514_string()
    assert leaf.public_key() == key.public_key()
    assert made.labels == ()
    assert b"gpu=true" not in leaf.public_bytes(Encoding.DER)


def _rsa(bits: int) -> Callable[[Path], str]:
    def made(place: Path) -> str:
        return pem(greedy().sign(rsa.generate_private_key(65537, bits), hashes.SHA256()))

    return made


def _curve(place: Path) -> str:
    return pem(greedy().sign(ec.generate_private_key(ec.SECP224R1()), hashes.SHA256()))


def _unsigned(place: Path) -> str:
    """Somebody else's public key: the request is signed by another one."""
    request = greedy().sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return pem(x509.load_der_x509_csr(bytes(der)))


def _rubbish(place: Path) -> str:
    return "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize("make", [_rsa(1024), _rsa(2048), _curve, _unsigned, _rubbish, lambda place: ""])
def test_a_weak_or_unproven_key_is_refused_as_everything_else_is_and_the_token_is_not_spent(
    place: Path, make: Callable[[Path], str]
) -> None:
    refused = join(place, make(place))
    assert (refused.answer, refused.entry, refused.reason) == (JOIN_REFUSED, None, "request")
    assert len(Tokens(place).waiting(NOW)) == 1


def test_a_key_of_another_machine_is_refused(place: Path) -> None:
    """Threat T17: a token is for one name, and a key is one machine's."""
    key = ed25519.Ed25519PrivateKey.generate()
    csr = pem(x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None))
    assert join(place, csr, name="w1").entry is not None
    assert join(place, csr, name="w2").answer == JOIN_REFUSED


@pytest.mark.parametrize(
    "request_of",
    [
        lambda secret: b"",
        lambda secret: b"[]",
        lambda secret: b'{"secret": 1, "csr": ""}',
        lambda secret: json.dumps({"secret": secret}).encode(),
        lambda secret: json.dumps({"secret": secret, "csr": "x", "name": "admin"}).encode(),
        lambda secret: json.dumps({"secret": secret * 100, "csr": "x"}).encode(),
        lambda secret: json.dumps({"secret": "../../ca", "csr": "x"}).encode(),
        lambda secret: json.dumps({"secret": "A" * 27, "csr": "x"}).encode(),
        lambda secret: b"[" * 16000,
        lambda secret: b"\xff\xfe",
    ],
)
def test_whatever_is_wrong_the_answer_is_the_same_to_the_byte(place: Path, request_of: Callable[[str], bytes]) -> None:
    token, _ = make_token(place, Role.WORKER, "w1", labels=None, ttl=timedelta(hours=1), now=NOW)
    decision = Desk(place, None).join(request_of(token.secret.reveal()), address="192.0.2.1:1", now=NOW)
    used = Decision(answer=JOIN_REFUSED)
    assert decision.document == used.document
    assert token.secret.reveal() not in decision.detail
