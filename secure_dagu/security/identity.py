"""Identity and its written form: `spiffe://<trust domain>/<role>/<name>`. Pure."""

from __future__ import annotations

import re

from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import InvalidRequest

_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""Names that a certificate may carry: DNS-safe letters, so that a name can never inject into logs, paths or labels."""


class Identity(Struct, frozen=True):
    """What one certificate proves: a role and a name inside a trust domain."""

    trust_domain: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """Return the spiffe URI, the only identity that a certificate carries."""
        return f"spiffe://{self.trust_domain}/{self.role.value}/{self.name}"

    def __str__(self) -> str:
        return f"{self.role.value}/{self.name}"


def parse_identity(uri: str) -> Identity:
    """Read a spiffe URI.

    Raises:
        InvalidRequest: another scheme, an unknown role, a name outside `NAME`, or anything after the name.
    """
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or len(parts) != 3:
        raise InvalidRequest("the certificate names no identity", why=f"{uri[:200]!r} is not spiffe://DOMAIN/ROLE/NAME")
    domain, role, name = parts
    known = {item.value for item in Role} - {Role.ANONYMOUS.value}
    if not _TRUST_DOMAIN.fullmatch(domain) or role not in known or not NAME.fullmatch(name):
        raise InvalidRequest(
            "the certificate names no identity",
            why=f"{uri[:200]!r} has an unknown role or a malformed name",
            fix=f"issue one with `secure-dagu pki issue ROLE NAME`; roles: {', '.join(sorted(known))}",
        )
    return Identity(domain, Role(role), name)


def acts_as(name: str, worker_id: str) -> bool:
    """Tell whether a worker certificate of this name covers a worker id: the name itself, or `name@` and anything.

    A worker's default id is `hostname@PID`, which no certificate could name in advance (threats reference, "TLS
    facts").
    `@` cannot occur in a name (`NAME`), so `gpu-1` covers neither `gpu-10` nor `gpu`.
    """
    return worker_id == name or (worker_id.startswith(name) and worker_id[len(name) : len(name) + 1] == "@")
