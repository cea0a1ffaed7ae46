"""Read a signing request of which nothing is believed but the public key, and that the sender holds its private half.

Names, usages, CA flags and whatever else a request asks for are never looked at (threat T24): the CA writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from secure_dagu.errors import InvalidRequest
from secure_dagu.pki.keys import KeyKind, PublicKey, kind_of

MAX_REQUEST_BYTES: Final = 16 << 10


def key_of(request: bytes, kinds: Sequence[KeyKind]) -> PublicKey:
    """Return the public key of a PKCS#10 request, PEM or DER.

    Raises:
        InvalidRequest: too large, malformed, not signed by the key that it names, or a key of another kind.
    """
    if len(request) > MAX_REQUEST_BYTES:
        raise _bad(f"it is larger than {MAX_REQUEST_BYTES} bytes")
    is_pem = b"-----BEGIN" in request[:64]
    try:
        found = (x509.load_pem_x509_csr if is_pem else x509.load_der_x509_csr)(request)
        is_signed, key = found.is_signature_valid, found.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise _bad("it is no PKCS#10 request that can be read") from problem
    if not is_signed:
        raise _bad("its signature is not by the key in it, so the sender may not hold that key")
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) or kind_of(key) not in kinds:
        raise _bad(f"its key is {kind_of(key)}", fix=f"make one of {', '.join(kinds)}")
    return key


def _bad(why: str, fix: str = "make a new request with `openssl req -new`") -> InvalidRequest:
    return InvalidRequest("the signing request is refused", why=why, fix=fix)
