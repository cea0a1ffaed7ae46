"""Profiles: named sets of variables and secrets that a run starts with (command line reference, section 7).

Each is a file in `<config>/profiles`, with its secrets as they are (`store.private_files`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dag import formats
from secure_dagu.errors import Conflict, InvalidRequest, NotFound
from secure_dagu.store.private_files import PrivateFiles

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
MAX_VALUE_BYTES = 64 * 1024
MAX_KEYS = 1000
MAX_FILE_BYTES = 16 * 2**20


class Profile(Struct, frozen=True, kw_only=True):
    """One profile. No two entries of `variables` and `secrets` have the same name."""

    name: str
    is_enabled: bool = True
    description: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return formats.shown_without(self, "secrets")


class Profiles:
    """All profiles of this host."""

    def __init__(self, folder: Path) -> None:
        """Take `<config>/profiles`, which is made with the first one."""
        self._files = PrivateFiles(folder, kind="profile", most_bytes=MAX_FILE_BYTES)

    def values(self, name: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the variables and the secrets that a run with this profile gets.

        Raises:
            NotFound: there is no such profile.
            Conflict: it is disabled.
        """
        profile = self.get(name)
        if not profile.is_enabled:
            raise Conflict(
                f"profile {name} is disabled", fix=f"`secure-dagu profile enable {name}`, or use another one"
            )
        return profile.variables, profile.secrets

    def names(self) -> list[str]:
        """Return the names of all profiles, sorted."""
        return self._files.names()

    def get(self, name: str) -> Profile:
        """Return a profile.

        Raises:
            NotFound: there is none.
            Refused: others may read its file.
            Unavailable: its file cannot be read, or is not ours.
        """
        data = self._files.read(name)
        if data is None:
            raise NotFound(f"profile {name} does not exist", fix="see `secure-dagu profile list`")
        try:
            found = json.loads(data)
            return Profile(
                name=name,
                is_enabled=bool(found["enabled"]),
                description=str(found["description"]),
                variables={str(key): str(value) for key, value in found["variables"].items()},
                secrets={str(key): str(value) for key, value in found["secrets"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._files.damaged(name) from None

    def create(self, name: str, *, description: str = "") -> None:
        """Make an empty profile.

        Raises:
            Conflict: there is one of that name.
        """
        with self._files.changing():
            if self._files.path(name).exists():
                raise Conflict(f"profile {name} already exists")
            self._write(Profile(name=name, description=description))

    def delete(self, name: str) -> None:
        """Remove a profile with its secrets.

        Raises:
            NotFound: there is none.
        """
        with self._files.changing():
            if not self._files.remove(name):
                raise NotFound(f"profile {name} does not exist")

    def enable(self, name: str, *, is_enabled: bool) -> None:
        """Let runs use a profile, or not."""
        with self._files.changing():
            self._write(replace(self.get(name), is_enabled=is_enabled))

    def set(self, name: str, key: str, value: str, *, is_secret: bool) -> None:
        """Set a variable or a secret; an entry of the other kind with that name is replaced.

        Raises:
            InvalidRequest: the name is no name of a variable, or the value is too long for one.
        """
        if not _KEY.match(key) or key.startswith("DAGU_"):
            raise InvalidRequest(
                f"{key[:64]!r} is no name of a variable",
                fix="use letters, digits and `_`, not a digit first and not DAGU_",
            )
        if len(value.encode(errors="surrogateescape")) > MAX_VALUE_BYTES or "\0" in value:
            raise InvalidRequest(
                f"the value of {key} cannot be kept", why=f"it has a NUL or over {MAX_VALUE_BYTES} bytes"
            )
        with self._files.changing():
            profile = self._without(self.get(name), key)
            if len(profile.variables) + len(profile.secrets) >= MAX_KEYS:
                raise InvalidRequest(f"profile {name} is full", why=f"it has {MAX_KEYS} keys")
            if is_secret:
                self._write(replace(profile, secrets={**profile.secrets, key: value}))
            else:
                self._write(replace(profile, variables={**profile.variables, key: value}))

    def delete_key(self, name: str, key: str) -> None:
        """Remove a variable or a secret.

        Raises:
            NotFound: the profile has none of that name.
        """
        with self._files.changing():
            profile = self.get(name)
            if key not in profile.variables and key not in profile.secrets:
                raise NotFound(f"profile {name} has no key {key}")
            self._write(self._without(profile, key))

    def _without(self, profile: Profile, key: str) -> Profile:
        return replace(
            profile,
            variables={name: value for name, value in profile.variables.items() if name != key},
            secrets={name: value for name, value in profile.secrets.items() if name != key},
        )

    def _write(self, profile: Profile) -> None:
        values = {
            "enabled": profile.is_enabled,
            "description": profile.description,
            "variables": dict(profile.variables),
            "secrets": dict(profile.secrets),
        }
        self._files.write(self._files.path(profile.name), json.dumps(values, indent=2).encode() + b"\n")
