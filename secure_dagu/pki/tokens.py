"""Join tokens: one line that lets one machine get one certificate, once, for a short time.

A token is `sdj1.PIN.SECRET`: the SHA-256 of the root certificate, by which the machine knows the coordinator before it
says the secret, and 160 random bits. The host of the CA keeps only the hash of the secret, as the name of a file in
`<home>/pki/tokens` that says what the token is for. To take it is to rename that file, which succeeds for one caller.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest, NotFound
from secure_dagu.pki import files
from secure_dagu.security.secret import Secret

MAX_TTL: Final = timedelta(days=7)
MAX_PENDING: Final = 1000
"""Tokens that wait for their use."""

_FORM: Final = "sdj1"
_SPENT: Final = ".spent"
_SECRET_BYTES: Final = 20
_MAX_FILE: Final = 16 << 10
_TEXT: Final = re.compile(rf"{_FORM}\.([A-Za-z0-9_-]{{43}})\.([A-Za-z0-9_-]{{27}})")


class Token(Struct, frozen=True, kw_only=True):
    """What the line holds."""

    pin: str
    """SHA-256 of the root certificate, hex."""
    secret: Secret

    def reveal(self) -> str:
        """Return the line."""
        return f"{_FORM}.{_base64(bytes.fromhex(self.pin))}.{self.secret.reveal()}"


def parse_token(text: str) -> Token:
    """Read the line.

    Raises:
        InvalidRequest: it is no token, or a part of one.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            "that is no join token",
            why=f"one begins with {_FORM}. and has {len(_FORM) + 72} characters, and this has {len(text)}",
            fix="copy the whole line that `secure-dagu pki token` printed",
        )
    return Token(pin=base64.urlsafe_b64decode(f"{found[1]}=").hex(), secret=Secret(found[2]))


class Offer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token is for: the certificate that its holder gets. Times as ISO 8601 UTC."""

    role: Role
    name: str
    labels: tuple[str, ...] = ()
    """That the certificate grants, as `key=value`."""
    names: tuple[str, ...] = ()
    """DNS names and addresses, for a coordinator."""
    lifetime_s: int = 0
    """Of the certificate; 0: the profile's."""
    made_at: str
    until: str
    actor: str = ""
    """Who made it."""

    def is_over(self, now: datetime) -> bool:
        """Tell whether it has ended."""
        return now >= datetime.fromisoformat(self.until)


class Tokens:
    """The tokens that wait on the host of the CA. Several processes may use them at the same time."""

    def __init__(self, pki_dir: Path) -> None:
        self._directory = pki_dir / "tokens"

    def make(self, offer: Offer, now: datetime) -> Secret:
        """Remember an offer and return its secret, which is nowhere kept.

        Raises:
            ConfigError: too many tokens wait, or the disk refuses.
        """
        files.make_private_directory(self._directory)
        self.sweep(now)
        if sum(1 for _ in self._files()) >= MAX_PENDING:
            raise ConfigError(
                f"{MAX_PENDING} join tokens wait for their use already",
                fix="withdraw some with `secure-dagu pki token --withdraw NAME`, or wait until they end",
            )
        secret = _base64(secrets.token_bytes(_SECRET_BYTES))
        files.write(self._directory, files.Pem(_name(secret), msgspec.json.encode(offer), is_private=True))
        return Secret(secret)

    def find(self, secret: str, now: datetime) -> Offer | None:
        """Return what a secret is for; None when it is unknown, was used, or has ended."""
        offer = self._read(self._directory / _name(secret))
        return offer if offer is not None and not offer.is_over(now) else None

    def take(self, secret: str, now: datetime) -> Offer | None:
        """As `find`, and use it up, durably: of any number of callers at the same time one gets the offer.

        Raises:
            ConfigError: the disk refuses; then it is as good as used.
        """
        path = self._directory / _name(secret)
        offer = self.find(secret, now)
        taken = self._directory / f".taken-{secrets.token_hex(8)}"
        if offer is None:
            return None
        try:
            path.rename(taken)  # of several callers one finds the file
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise ConfigError(f"{path} cannot be removed", why=problem.strerror or str(problem)) from problem
        taken.unlink()
        files.sync_directory(self._directory)  # before anything is signed: a power cut must not bring it back
        return offer

    def spend(self, token: str, offer: Offer, now: datetime) -> bool:
        """Use up, durably, a token that others made (`pki.pods`): true for one caller, once, until the offer is over.

        Raises:
            ConfigError: the disk refuses; then it is as good as used.
        """
        files.make_private_directory(self._directory)
        self.sweep(now)
        spent = f"{hashlib.sha256(token.encode()).hexdigest()}{_SPENT}"
        if (self._directory / spent).exists():
            return False
        files.write(self._directory, files.Pem(spent, msgspec.json.encode(offer), is_private=True))
        return True

    def waiting(self, now: datetime) -> tuple[Offer, ...]:
        """Return what waits for its use, the first to end first."""
        found = (self._read(path) for path in self._files())
        return tuple(
            sorted(
                (offer for offer in found if offer and not offer.is_over(now)), key=lambda one: (one.until, one.name)
            )
        )

    def withdraw(self, name: str) -> tuple[Offer, ...]:
        """Remove every token for a name, and return what they were for.

        Raises:
            NotFound: there is none.
        """
        gone = []
        for path in self._files():
            offer = self._read(path)
            if offer is not None and offer.name == name:
                with suppress(FileNotFoundError):
                    path.unlink()
                    gone.append(offer)
        if not gone:
            raise NotFound(
                f"no join token waits for {name[:200]!r}", fix="`secure-dagu pki token --list` shows what waits"
            )
        files.sync_directory(self._directory)
        return tuple(gone)

    def sweep(self, now: datetime) -> None:
        """Remove what has ended, and what nobody can read."""
        for path in (*self._files(), *self._directory.glob(f"*{_SPENT}")):
            offer = self._read(path)
            if offer is None or offer.is_over(now):
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        return self._directory.glob("*.json") if self._directory.is_dir() else iter(())

    def _read(self, path: Path) -> Offer | None:
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source:
                return msgspec.json.decode(source.read(_MAX_FILE), type=Offer)
        except (OSError, ValueError, msgspec.MsgspecError):
            return None


def _name(secret: str) -> str:
    """Return the file of a secret: found by its hash, so that nothing of it can be learnt from the time it takes."""
    return f"{hashlib.sha256(secret.encode()).hexdigest()}.json"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
