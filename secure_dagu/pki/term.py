"""When a certificate is to be renewed: a point of its lifetime that comes from the certificate itself."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from secure_dagu.errors import ConfigError

BACKDATE: Final = timedelta(minutes=5)
"""How long before now a certificate begins: a peer whose clock is that much behind still accepts it (threat T19)."""
EARLIEST: Final = 1 / 2
LATEST: Final = 2 / 3
"""Between which parts of its lifetime a certificate is renewed."""


class Term(Struct, frozen=True, kw_only=True):
    """The lifetime of a certificate, and when within it to renew."""

    identity: str
    """The spiffe URI, or the subject where there is none."""
    serial: int
    begins_at: datetime
    not_after: datetime
    due_at: datetime
    """A point between `EARLIEST` and `LATEST` of the lifetime, the same each time: it comes from the certificate."""


def read_term(certificate: Path) -> Term:
    """Read when a certificate is to be renewed.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{certificate} cannot be read as a certificate", why=str(problem)) from problem
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if end - begin > BACKDATE:
        begin += BACKDATE  # when it was issued: else one that lives for minutes would be due at once
    # Whatever made a thousand machines start at the same moment, they do not renew at the same moment.
    draw = int.from_bytes(hashlib.sha256(found.public_bytes(Encoding.DER)).digest()[:8]) / 2**64
    part = EARLIEST + (LATEST - EARLIEST) * draw
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    return Term(
        identity=uris[0] if uris else found.subject.rfc4514_string(),
        serial=found.serial_number,
        begins_at=begin,
        not_after=end,
        due_at=begin + timedelta(seconds=(end - begin).total_seconds() * part),
    )
