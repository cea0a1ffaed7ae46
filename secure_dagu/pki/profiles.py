"""Read pki/profiles.toml: what each role's certificate may be."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError

Curve = Literal["P-256", "P-384"]
Usage = Literal["server", "client"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaProfile:
    """What the CA's own certificate is."""

    key: Curve
    days: int
    path_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What certificates of one role are. `names`: whether they carry DNS names and addresses."""

    role: Role
    key: Curve
    days: int
    usage: Usage
    names: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """The whole file."""

    ca: CaProfile
    roles: Mapping[Role, Profile]


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
        document = tomllib.loads(source.read_text(encoding="utf-8"))
        ca = CaProfile(**document.pop("ca"))
        roles = {
            role: Profile(role=role, **table)
            for name, table in document.pop("roles").items()
            for role in [Role(name)]  # an unknown role raises
        }
        _check(ca, roles, leftover=list(document))
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise ConfigError(
            "the certificate profiles cannot be used",
            why=f"{source}: {problem}",
            fix="restore pki/profiles.toml as it was released",
        ) from problem
    return Profiles(ca=ca, roles=roles)


def _check(ca: CaProfile, roles: Mapping[Role, Profile], *, leftover: list[str]) -> None:
    missing = {role for role in Role if role is not Role.ANONYMOUS} ^ set(roles)
    if missing or leftover:
        raise ValueError(f"roles or tables do not match: {sorted(missing) + sorted(leftover)}")
    for key, days in [(ca.key, ca.days), *((profile.key, profile.days) for profile in roles.values())]:
        if key not in ("P-256", "P-384"):
            raise ValueError(f"unknown key type {key!r}")
        if not 0 < days <= 7300:
            raise ValueError(f"unusable lifetime of {days!r} days")
    for role, profile in roles.items():
        if profile.usage not in ("server", "client"):
            raise ValueError(f"{role}: unknown usage {profile.usage!r}")
