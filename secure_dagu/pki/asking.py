"""What is said when a machine joins or renews its certificate: the documents, not who writes and who answers them."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from secure_dagu.pki.requests import MAX_REQUEST_BYTES

MAX_POD_TOKEN: Final = 8 << 10


class JoinRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine without a certificate says: the secret of a token, or as a pod what its cluster says of it."""

    secret: Annotated[str, Meta(max_length=128)] = ""
    pod_token: Annotated[str, Meta(max_length=MAX_POD_TOKEN)] = ""
    csr: Annotated[str, Meta(max_length=MAX_REQUEST_BYTES)]


class RenewRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the holder of a certificate says. Without a signing request it only asks what to trust."""

    csr: Annotated[str, Meta(max_length=MAX_REQUEST_BYTES)] = ""


class Problem(Struct, frozen=True, kw_only=True):
    """Why there is no certificate."""

    code: str
    what: str
    why: str = ""
    fix: str = ""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the coordinator says: a certificate, or a problem."""

    certificate: str = ""
    """PEM: the certificate, then the issuing CA's where that is not itself trusted."""
    ca: str = ""
    """PEM: what every peer must trust."""
    role: str = ""
    name: str = ""
    labels: tuple[str, ...] = ()
    problem: Problem | None = None
