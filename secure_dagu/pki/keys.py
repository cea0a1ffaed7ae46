"""Kinds of keys, and how a private key is kept in a file: PKCS#8, encrypted under a passphrase where there is one."""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Final, Literal

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from secure_dagu.security.secret import Secret

CaKind = Literal["P-256", "P-384"]
KeyKind = Literal["P-256", "P-384", "Ed25519"]

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def new_key(kind: KeyKind) -> PrivateKey:
    """Make a key."""
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return new_ca_key(kind)


def new_ca_key(kind: CaKind) -> ec.EllipticCurvePrivateKey:
    """Make a key for a CA: no other kind, because BoringSSL believes no Ed25519 issuer."""
    return ec.generate_private_key(ec.SECP384R1() if kind == "P-384" else ec.SECP256R1())


def kind_of(key: object) -> str:
    """Return `P-256`, `P-384`, `Ed25519`, `RSA-2048` or what else a public key is, for people and for comparison."""
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return "P-256"
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return "P-384"
        case ec.EllipticCurvePublicKey(curve=curve):
            return curve.name
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case rsa.RSAPublicKey(key_size=size):
            return f"RSA-{size}"
        case _:
            return type(key).__name__.lstrip("_").removesuffix("PublicKey")


def fingerprint(key: object) -> str:
    """Return the SHA-256 of a public key (its SubjectPublicKeyInfo) in hex: the same for every certificate of a key."""
    assert hasattr(key, "public_bytes")
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def hash_for(key: ec.EllipticCurvePublicKey) -> hashes.SHA256 | hashes.SHA384:
    """Return the hash that a CA key of this size signs with."""
    return hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()


def private_pem(key: PrivateKey, passphrase: Secret | None = None) -> bytes:
    """Return a private key as PEM: PKCS#8, under a passphrase as PBES2 with scrypt and AES-256-CBC (RFC 8018, 7914)."""
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return _armoured(_encrypted(plain, passphrase.reveal().encode()))


def is_encrypted(pem: bytes) -> bool:
    """Tell whether a PEM private key wants a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem


def load_private(pem: bytes, passphrase: Secret | None = None) -> object:
    """Read a PEM private key.

    Raises:
        ValueError: damaged, or the passphrase is wrong.
        TypeError: a passphrase is missing, or given for a key without one.
    """
    return serialization.load_pem_private_key(pem, None if passphrase is None else passphrase.reveal().encode())


# ── PKCS#8 under a passphrase ────────────────────────────────────────────────────────────────────────────────────────
# The library writes PBKDF2 with 2048 rounds, which a graphics card guesses a million times faster than this.

_N: Final = 1 << 14
_R: Final = 8
_P: Final = 5
"""16 MiB and about 0.2 s for each guess: what OWASP counts as equal to N=2**17 with p=1, for which OpenSSL's own tools
have not the memory."""

_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")
_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")


def _encrypted(plain: bytes, password: bytes) -> bytes:
    # Only who keeps a key under a passphrase needs ciphers: a worker does not.
    from cryptography.hazmat.primitives import padding
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    salt, start = secrets.token_bytes(16), secrets.token_bytes(16)
    key = hashlib.scrypt(password, salt=salt, n=_N, r=_R, p=_P, dklen=32, maxmem=64 << 20)
    filler = padding.PKCS7(128).padder()
    cipher = Cipher(algorithms.AES(key), modes.CBC(start)).encryptor()
    sealed = cipher.update(filler.update(plain) + filler.finalize()) + cipher.finalize()
    costs = b"".join(_integer(number) for number in (_N, _R, _P))
    kdf = _sequence(_SCRYPT, _sequence(_octets(salt), costs))
    scheme = _sequence(_AES_256_CBC, _octets(start))
    return _sequence(_sequence(_PBES2, _sequence(kdf, scheme)), _octets(sealed))


def _tagged(tag: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2) if size > 0xFF else bytes([0x81, size])
    return bytes([tag]) + length + body


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _octets(body: bytes) -> bytes:
    return _tagged(0x04, body)


def _integer(number: int) -> bytes:
    return _tagged(0x02, number.to_bytes(number.bit_length() // 8 + 1))


def _armoured(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    words = b"ENCRYPTED PRIVATE KEY"
    return b"\n".join([b"-----BEGIN " + words + b"-----", *lines, b"-----END " + words + b"-----", b""])
