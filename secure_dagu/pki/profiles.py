"""Read pki/profiles.toml: what each role's certificate may be."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki.keys import CaKind, KeyKind

Usage = Literal["server", "client"]

MIN_LIFETIME = timedelta(minutes=1)
"""Shorter ones end before they are used."""

_LeafDays = Annotated[int, Meta(ge=1, le=90)]


class CaProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a CA's own certificate is. `permit`: domains that it may always name coordinators in."""

    key: CaKind
    days: Annotated[int, Meta(ge=1, le=7300)]
    path_length: Literal[0, 1]
    permit: tuple[str, ...] = ()


class CrlProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What revocation lists are. `days`: until the next one is due."""

    days: Annotated[int, Meta(ge=1, le=90)]


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What certificates of one role are: the fields of profiles.toml."""

    role: Role
    keys: Annotated[tuple[KeyKind, ...], Meta(min_length=1)]
    days: _LeafDays
    max_days: _LeafDays
    usage: Usage
    names: bool
    labels: bool

    @property
    def lifetime(self) -> timedelta:
        """Return the lifetime if nothing else is asked for."""
        return timedelta(days=self.days)

    @property
    def longest(self) -> timedelta:
        """Return the longest lifetime that is issued."""
        return timedelta(days=self.max_days)


class Profiles(Struct, frozen=True, kw_only=True):
    """The whole file."""

    ca: CaProfile
    root: CaProfile
    issuing: CaProfile
    crl: CrlProfile
    roles: Mapping[Role, Profile]


class _Document(Struct, forbid_unknown_fields=True):
    ca: CaProfile
    root: CaProfile
    issuing: CaProfile
    crl: CrlProfile
    roles: dict[str, dict[str, Any]]


def profiles_path() -> Path:
    """Return the file: beside this module in an installed wheel, at the root of a source tree."""
    beside = Path(__file__).with_name("profiles.toml")
    return beside if beside.exists() else Path(__file__).parents[2] / "pki" / "profiles.toml"


def load_profiles(path: Path | None = None) -> Profiles:
    """Read and check the profiles.

    Raises:
        ConfigError: the file is missing, an unknown key or value, or a role without a profile.
    """
    source = path or profiles_path()
    try:
        found = msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), _Document)
        roles = {
            Role(name): msgspec.convert(table | {"role": name}, Profile)  # an unknown role raises
            for name, table in found.roles.items()
        }
        if missing := {role for role in Role if role is not Role.ANONYMOUS} ^ set(roles):
            raise ValueError(f"roles do not match: {sorted(missing)}")  # noqa: TRY301 - one message for every reason
        if longer := sorted(role for role, profile in roles.items() if profile.days > profile.max_days):
            raise ValueError(f"days is more than max_days: {longer}")  # noqa: TRY301 - as above
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigError(
            "the certificate profiles cannot be used",
            why=f"{source}: {problem}",
            fix="restore pki/profiles.toml as it was released",
        ) from problem
    return Profiles(ca=found.ca, root=found.root, issuing=found.issuing, crl=found.crl, roles=roles)
