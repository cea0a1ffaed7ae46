"""The labels that a certificate grants: what its holder may claim when it polls (threat T03). Pure.

They stand in one private, non-critical extension: a DER UTF8String of `key=value` lines, one for each granted pair; one
key may have several values. The CA writes it, nobody else can; a certificate without it grants nothing.
A key that begins with `secure-dagu/` is a security label: it decides about access, comes from a certificate only, and
is issued only if it is one of `RESERVED_KEYS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from secure_dagu.dispatch.match import TENANT_LABEL
from secure_dagu.errors import InvalidRequest

OID: Final = "1.2.840.113556.1.8000.2554.63613.52672.52160.19103.45966.9614691.14315205"
"""The extension. Derived from a UUID in the arc that is open for that, in parts below 2**24: the 128-bit arc of a
`2.25.UUID` cannot be parsed by Go, whose peers would then refuse the whole certificate."""

RESERVED_PREFIX: Final = "secure-dagu/"
TENANT: Final = TENANT_LABEL
RESERVED_KEYS: Final = frozenset({TENANT})
"""Every security label that means something; another one with the prefix is not issued."""

MAX_PAIRS: Final = 64
MAX_BYTES: Final = 4096
"""Of the whole text."""

_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?/)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?")
_MAX_VALUE: Final = 128
_UTF8_STRING: Final = 0x0C


class Grants(Struct, frozen=True):
    """Granted labels as `(key, value)` pairs, the same shape as `dispatch.match.label_set` gives."""

    pairs: frozenset[tuple[str, str]] = frozenset()

    @property
    def labels(self) -> Mapping[str, frozenset[str]]:
        """Return the values that are granted for each key."""
        return {key: self.values(key) for key in sorted({key for key, _ in self.pairs})}

    def values(self, key: str) -> frozenset[str]:
        """Return the values granted for one key; empty: none."""
        return frozenset(value for known, value in self.pairs if known == key)

    def missing(self, claimed: Mapping[str, str]) -> tuple[str, ...]:
        """Return the claimed labels that are not granted, as `key=value`, sorted; empty: all are."""
        if self.pairs.issuperset(claimed.items()):
            return ()
        return tuple(sorted(f"{key}={value}" for key, value in claimed.items() if (key, value) not in self.pairs))

    @property
    def security_labels(self) -> frozenset[tuple[str, str]]:
        """Return the pairs with the reserved prefix."""
        return frozenset(pair for pair in self.pairs if is_reserved(pair[0]))

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in sorted(self.pairs))


NOTHING: Final = Grants()
"""What a certificate without the extension grants."""


def is_reserved(key: str) -> bool:
    """Tell whether a label is a security label. Case aside, so that no look-alike passes for an ordinary one."""
    return key.lower().startswith(RESERVED_PREFIX)


def parse_grants(texts: Iterable[str]) -> Grants:
    """Read what an operator wrote: each text is `key=value`, or several with commas. A key may come more than once.

    Raises:
        InvalidRequest: a malformed or unknown reserved label, or too many.
    """
    words = [word.strip() for text in texts for word in text.split(",")]
    grants = _checked([word for word in words if word])
    if unknown := sorted(key for key, _ in grants.security_labels if key not in RESERVED_KEYS):
        raise _bad(f"{unknown[0]!r} is reserved and means nothing", f"reserved are: {', '.join(sorted(RESERVED_KEYS))}")
    return grants


def encode(grants: Grants) -> bytes:
    """Return the value of the extension. Never called for `NOTHING`, which has none."""
    text = "\n".join(f"{key}={value}" for key, value in sorted(grants.pairs)).encode()
    return _head(len(text)) + text


def decode(value: bytes) -> Grants:
    """Read the value of the extension.

    Raises:
        InvalidRequest: not one DER UTF8String, or a line that no CA of ours writes. The certificate is then refused.
    """
    body = _der_utf8(value)
    try:
        text = body.decode()
    except UnicodeDecodeError as problem:
        raise _bad("the labels in the certificate are not UTF-8") from problem
    grants = _checked(text.split("\n"))
    if not grants:
        raise _bad("the labels in the certificate are empty")
    return grants


def _head(size: int) -> bytes:
    """Return tag and length of a DER UTF8String of up to 65535 bytes."""
    if size < 0x80:
        return bytes([_UTF8_STRING, size])
    return bytes([_UTF8_STRING, 0x81, size]) if size < 0x100 else bytes([_UTF8_STRING, 0x82, size >> 8, size & 0xFF])


def _der_utf8(value: bytes) -> bytes:
    if len(value) <= MAX_BYTES + 4 and value[:1] == bytes([_UTF8_STRING]):
        for head in (2, 3, 4):
            body = value[head:]
            if body and value == _head(len(body)) + body:
                return body
    raise _bad("the labels in the certificate are no UTF8String of a permitted length")


def _checked(words: list[str]) -> Grants:
    if len(words) > MAX_PAIRS or sum(len(word.encode(errors="replace")) + 1 for word in words) > MAX_BYTES:
        raise _bad("too many labels", f"{MAX_PAIRS} and {MAX_BYTES} bytes are the limits")
    pairs = set()
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not _KEY.fullmatch(key) or not _is_value(value):
            raise _bad(
                f"{word[:200]!r} is no label",
                "it is KEY=VALUE: a key of letters, digits, '_', '.', '-' and one '/', and a value of "
                f"1 to {_MAX_VALUE} printable characters without comma",
            )
        if (key, value) in pairs:
            raise _bad(f"{word[:200]!r} is given twice")
        pairs.add((key, value))
    return Grants(frozenset(pairs))


def _is_value(value: str) -> bool:
    return 0 < len(value) <= _MAX_VALUE and value.isprintable() and value == value.strip() and "," not in value


def _bad(what: str, why: str = "", fix: str = "") -> InvalidRequest:
    return InvalidRequest(
        what, why=why, fix=fix or "issue the certificate with `secure-dagu pki issue … --labels KEY=VALUE`"
    )
