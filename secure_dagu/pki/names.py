"""Turn what an operator says about a coordinator's address into the names of its certificate. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from secure_dagu.errors import ConfigError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

OWN_HOST: tuple[str | IpAddress, ...] = (
    "localhost",
    ipaddress.IPv4Address("127.0.0.1"),
    ipaddress.IPv6Address("::1"),
)
"""What operators on the coordinator's host dial, and what a port forwarded with `ssh -L` looks like at its end."""


def parse_names(texts: Iterable[str]) -> tuple[str | IpAddress, ...]:
    """Return host names (lower case) and addresses, in order and without repetition. Each text may be a comma list.

    Raises:
        ConfigError: a port, a wildcard, a scheme, or anything else that is no exact host name.
    """
    words = (word.strip() for text in texts for word in text.split(","))
    return tuple(dict.fromkeys(_parse_name(word) for word in words if word))


def domains_of(names: Iterable[str | IpAddress]) -> tuple[str, ...]:
    """Return the domains to which a CA that names these hosts is constrained.

    A host's own domain, so that its neighbours can be named later: `example.com` for `ci.example.com`. A name of one or
    two labels stands for itself: above it are only domains that belong to nobody in particular.
    """
    hosts = (name for name in names if isinstance(name, str))
    return tuple(dict.fromkeys(name.partition(".")[2] if name.count(".") >= 2 else name for name in hosts))


def parse_domains(texts: Iterable[str]) -> tuple[str, ...]:
    """Return domains that an operator permits; ConfigError for an address or no domain at all."""
    found = parse_names(texts)
    domains = tuple(name for name in found if isinstance(name, str))
    if len(domains) != len(found):
        raise ConfigError(
            "an address is no domain", why="a CA is not limited to addresses", fix="leave it out of --permit"
        )
    return domains


def _parse_name(word: str) -> str | IpAddress:
    bare = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        name = word.removesuffix(".").lower()
    if len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split(".")):
        if name.rsplit(".", 1)[-1].isdigit():
            raise ConfigError(f"{word!r} is no host name", why="it looks like an address with a mistake in it")
        return name
    raise ConfigError(
        f"{word[:300]!r} is no host name or address",
        why=_reason(name),
        fix="give the exact name that workers dial, such as ci.example.com, 10.0.0.7 or 2001:db8::7",
    )


def _reason(name: str) -> str:
    if "*" in name:
        return "wildcards are not issued: a coordinator is checked by its exact name"
    if "/" in name:
        return "it looks like a URL"
    if ":" in name:
        return "a port is not part of a name"
    if not name.isascii():
        return "a name with other letters is written in its xn-- form"
    return "labels are 1 to 63 letters, digits and hyphens, 253 in all"
