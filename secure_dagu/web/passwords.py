"""Passwords: argon2id, off the event loop, few at a time, and as slow for a user who does not exist."""

from __future__ import annotations

import asyncio
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from secure_dagu.errors import InvalidRequest

SHORTEST: Final = 8
LONGEST: Final = 256
AT_ONCE: Final = 2
"""Each takes 19 MiB and tens of milliseconds: strangers must not make us compute many."""

_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's choice for argon2id
_NOBODY = _HASHER.hash("nobody has this password")


class Passwords:
    """Hash and verify."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)

    async def hashed(self, password: str) -> str:
        """Return what is kept of a password.

        Raises:
            InvalidRequest: it is too short, or too long to be hashed.
        """
        if not SHORTEST <= len(password) <= LONGEST:
            raise InvalidRequest(f"a password has {SHORTEST} to {LONGEST} characters")
        async with self._places:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def fits(self, kept: str | None, password: str) -> bool:
        """Tell whether a password is the one that was kept; None, for nobody, takes as long and is False."""
        if len(password) > LONGEST:
            password, kept = "", None
        async with self._places:
            return await asyncio.to_thread(_fits, kept or _NOBODY, password) and kept is not None


def _fits(kept: str, password: str) -> bool:
    try:
        return _HASHER.verify(kept, password)
    except (VerificationError, InvalidHashError):
        return False
