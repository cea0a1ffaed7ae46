"""What may stand in a label: closed sets, and text of peers made short, harmless and few."""

from __future__ import annotations

import re
from typing import Final

from secure_dagu.dispatch.match import Demand
from secure_dagu.dispatch.model import Role
from secure_dagu.security.roles import RPC_RULES

MAX_LABEL: Final = 64
OTHER: Final = "_other"
"""Stands for everything beyond a cap, and for what is in no closed set."""
GROUPS: Final = ("X25519", "X25519MLKEM768", "P-256", "P-384")
"""Key exchange groups with a series of their own; `key_exchange_group` puts the rest under `other`."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._@:-]")
_PEER_CLASS = {Role.WORKER: "worker", Role.DISPATCHER: "server", Role.COORDINATOR: "server", Role.ADMIN: "cli"}
_METHODS: Final = {path: path.rpartition("/")[2] for path in (*RPC_RULES, "/metrics")}


def bounded_label(text: str) -> str:
    """Return peer-supplied text as a label value: 64 characters of `[A-Za-z0-9._@:-]`, others as `_`."""
    return _UNSAFE.sub("_", text[:MAX_LABEL])


def demand_label(demand: Demand) -> str:
    """Return the `selector` label of what tasks ask: `key:value` pairs in order, `_` between them; `any` for none."""
    pairs = [f"{key}:{value}" for key, value in sorted(demand.selector)]
    return bounded_label("_".join(pairs + ([f"worker:{demand.target}"] if demand.target else []))) or "any"


def method_label(path: str) -> str:
    """Return the `grpc_method` label of `/package.Service/Method`; `_other` for whatever is not in our own table."""
    return _METHODS.get(path, OTHER)


def peer_class(role: Role | None) -> str:
    """Return the `peer_class` label of a role; `unknown` for an unproven peer and for a scraper."""
    return "unknown" if role is None else _PEER_CLASS.get(role, "unknown")


def connection_labels(role: Role | None, tls_version: str) -> tuple[str, str, str]:
    """Return the labels of a connection: tls, tls_version, peer_class."""
    tls = "plaintext" if tls_version == "none" else "tls" if role in (None, Role.ANONYMOUS) else "mtls"
    return tls, tls_version, peer_class(role)


def key_exchange_group(name: str) -> str:
    """Return the `group` label of a negotiated group, whatever the TLS library calls it."""
    known = {"prime256v1": "P-256", "secp256r1": "P-256", "secp384r1": "P-384"}.get(name, name)
    return known if known in GROUPS else next((item for item in GROUPS if item.lower() == known.lower()), "other")
