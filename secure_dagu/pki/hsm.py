"""A CA key inside a PKCS#11 token (HSM, smart card, SoftHSM): it signs there and cannot be read out.

The key is named by a URI (RFC 7512): `pkcs11:token=NAME;object=LABEL?module-path=/usr/lib/….so`. The PIN is never
part of it. Needs python-pkcs11, the extra `pkcs11`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Never
from urllib.parse import quote, unquote

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from msgspec import Struct

from secure_dagu.errors import ConfigError
from secure_dagu.pki.keys import CaKind
from secure_dagu.security.secret import Secret

_CURVES: Final[dict[CaKind, str]] = {"P-256": "secp256r1", "P-384": "secp384r1"}


class TokenUri(Struct, frozen=True, kw_only=True):
    """Which key in which token, through which library."""

    token: str
    object: str
    module: Path

    def __str__(self) -> str:
        return f"pkcs11:token={quote(self.token)};object={quote(self.object)}?module-path={quote(str(self.module))}"


def parse_uri(text: str) -> TokenUri:
    """Read a `pkcs11:` URI.

    Raises:
        ConfigError: malformed, a part is missing, or it carries a PIN.
    """
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    pairs = [part.partition("=") for part in [*path.split(";"), *query.split("&")] if part]
    found = {key: unquote(value) for key, _, value in pairs}
    if len(found) != len(pairs) or set(found) - {"token", "object", "type", "module-path"}:
        why = "a PIN does not belong into it" if {"pin-value", "pin-source"} & set(found) else "an attribute is unknown"
        raise _bad(text.partition("?")[0], why)
    if not text.startswith("pkcs11:") or not all(found.get(key) for key in ("token", "object", "module-path")):
        raise _bad(text.partition("?")[0], "it needs token, object and module-path")
    return TokenUri(token=found["token"], object=found["object"], module=Path(found["module-path"]))


def make_key(uri: TokenUri, kind: CaKind, pin: Secret | None) -> ec.EllipticCurvePrivateKey:
    """Make a key in the token that can sign and never leaves it, and return it for use.

    Raises:
        ConfigError: no module, token or PIN, or an object of that name exists.
    """
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with _session(uri, pin, is_writing=True) as session:
        if any(session.get_objects({pkcs11.Attribute.LABEL: uri.object})):
            raise ConfigError(
                f"the token {uri.token} already has an object {uri.object}",
                why="a key is never replaced",
                fix="choose another object name",
            )
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC,
            {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVES[kind])},
            local=True,
        )
        parameters.generate_keypair(
            store=True,
            label=uri.object,
            capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
            private_template={
                pkcs11.Attribute.SENSITIVE: True,
                pkcs11.Attribute.EXTRACTABLE: False,
                pkcs11.Attribute.TOKEN: True,
                pkcs11.Attribute.PRIVATE: True,
            },
        )
    return open_key(uri, pin)


def open_key(uri: TokenUri, pin: Secret | None) -> ec.EllipticCurvePrivateKey:
    """Return the key for use; each signature opens a session of its own, so a token may be pulled in between.

    Raises:
        ConfigError: no module, token, key or PIN, or the key can be read out.
    """
    import pkcs11
    from pkcs11.util.ec import encode_ec_public_key

    with _session(uri, pin) as session:
        private = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.KeyType.EC, uri.object)
        if private[pkcs11.Attribute.EXTRACTABLE]:
            raise ConfigError(
                f"the key {uri.object} in token {uri.token} is not used",
                why="it can be read out of the token",
                fix="make one there with `secure-dagu pki init --pkcs11 URI`",
            )
        public = session.get_key(pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.KeyType.EC, uri.object)
        loaded = serialization.load_der_public_key(encode_ec_public_key(public))
    if not isinstance(loaded, ec.EllipticCurvePublicKey):
        raise ConfigError(f"the key {uri.object} in token {uri.token} is not used", why="it is no ECDSA key")

    def sign(digest: bytes) -> bytes:
        with _session(uri, pin) as again:
            key = again.get_key(pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.KeyType.EC, uri.object)
            return bytes(key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))

    return _TokenKey(loaded, sign)


class _TokenKey(ec.EllipticCurvePrivateKey):
    """What the certificate builder needs of a key, answered by the token."""

    def __init__(self, public: ec.EllipticCurvePublicKey, sign: Callable[[bytes], bytes]) -> None:
        self._public = public
        self._sign = sign

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign; the hash is made here, as not every token knows one."""
        algorithm = signature_algorithm.algorithm
        assert isinstance(algorithm, hashes.HashAlgorithm), "certificates are signed whole"
        digest = hashes.Hash(algorithm)
        digest.update(data)
        raw = self._sign(digest.finalize())
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """Return the curve."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """Return its bits."""
        return self._public.key_size

    def exchange(self, algorithm: object, peer_public_key: object) -> Never:
        """Refuse: it only signs."""
        raise TypeError("a CA key only signs")

    def private_numbers(self) -> Never:
        """Refuse: it stays in the token."""
        raise TypeError("the key stays in the token")

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> Never:  # noqa: A002
        """Refuse: it stays in the token."""
        raise TypeError("the key stays in the token")

    def __copy__(self) -> _TokenKey:
        return self

    def __deepcopy__(self, memo: object) -> _TokenKey:
        return self


@contextmanager
def _session(uri: TokenUri, pin: Secret | None, *, is_writing: bool = False) -> Iterator[Any]:
    try:
        import pkcs11
    except ImportError as missing:
        raise ConfigError(
            "keys in a PKCS#11 token cannot be used",
            why="the library python-pkcs11 is not installed",
            fix="pip install 'secure-dagu[pkcs11]'",
        ) from missing
    if pin is None:
        raise ConfigError(f"the token {uri.token} wants a PIN", fix="give it with --passphrase-file, or at the prompt")
    try:
        token = pkcs11.lib(str(uri.module)).get_token(token_label=uri.token)
        with token.open(rw=is_writing, user_pin=pin.reveal()) as session:
            yield session
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as problem:
        raise ConfigError(
            f"the token {uri.token} cannot be used",
            why=f"{type(problem).__name__}{f': {problem}' if str(problem) else ''}",
            fix=f"look with `pkcs11-tool --module {uri.module} -L`; after several wrong PINs a token locks itself",
        ) from problem


def _bad(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"{text[:200]!r} names no key in a token",
        why=why,
        fix="write pkcs11:token=NAME;object=LABEL?module-path=/path/to/module.so",
    )
