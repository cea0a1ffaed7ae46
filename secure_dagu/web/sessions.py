"""Logins: signed tokens with an end, which can be ended before; the second secret of forms; attempts counted."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections import OrderedDict, deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jwt
from msgspec import Struct

from secure_dagu.errors import ConfigError, Unauthenticated
from secure_dagu.store import whole

ALGORITHM: Final = "HS256"
MIN_SECRET: Final = 32
WINDOW_S: Final = 15 * 60
FAILURES: Final = 5
"""Wrong passwords from one address, or for one name, within the window; then it waits."""
MOST_WATCHED: Final = 4096
MOST_ENDED: Final = 10_000


class Login(Struct, frozen=True, kw_only=True):
    """What a good token says."""

    user_id: str
    session: str
    began_at: float
    ends_at: datetime


class Sessions:
    """Make and read login tokens. Ended ones are kept on disk until they would have ended anyway."""

    def __init__(self, secret: bytes, ttl: timedelta, ended: Path) -> None:
        """Take the key, how long a login lasts, and where ended ones are kept."""
        self._secret, self._ttl, self._file = secret, ttl, ended
        self._ended: dict[str, float] = _read(ended)

    def begin(self, *, user_id: str, username: str, role: str) -> tuple[str, Login]:
        """Return a token and what it says."""
        now = datetime.now(UTC)
        login = Login(
            user_id=user_id, session=secrets.token_urlsafe(16), began_at=now.timestamp(), ends_at=now + self._ttl
        )
        claims = {
            "sub": username, "uid": user_id, "username": username, "role": role, "jti": login.session,
            "iat": login.began_at, "exp": login.ends_at,
        }  # fmt: skip
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM), login

    def read(self, token: str) -> Login:
        """Return what a token says.

        Raises:
            Unauthenticated: it is not ours, over, or was ended.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._secret, algorithms=[ALGORITHM], options={"require": ["exp", "iat", "uid", "jti"]}
            )
            login = Login(
                user_id=str(claims["uid"]), session=str(claims["jti"]), began_at=float(claims["iat"]),
                ends_at=datetime.fromtimestamp(float(claims["exp"]), UTC),
            )  # fmt: skip
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
            raise Unauthenticated("the login is over, or was never one", fix="log in again") from None
        if login.session in self._ended:
            raise Unauthenticated("the login was ended", fix="log in again")
        return login

    def end(self, login: str, ends_at: datetime) -> None:
        """End a login before its time; over restarts too."""
        now = datetime.now(UTC).timestamp()
        self._ended = {key: until for key, until in self._ended.items() if until > now}
        while len(self._ended) >= MOST_ENDED:
            self._ended.pop(next(iter(self._ended)))
        self._ended[login] = ends_at.timestamp()
        whole.replace(self._file, json.dumps(self._ended).encode())

    def form_token(self, session: str) -> str:
        """Return the second secret of a login that a form must carry: another site cannot read it."""
        return hmac.new(self._secret, b"form:" + session.encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, session: str, said: str) -> bool:
        """Tell whether it is that of the login."""
        return hmac.compare_digest(self.form_token(session).encode(), said.encode(errors="replace"))


def secret_of(folder: Path, given: str) -> bytes:
    """Return the key that signs tokens: the configured one, else one that is made once and kept.

    Raises:
        ConfigError: it is too short to be a secret, or cannot be kept.
    """
    if given:
        if len(given.encode()) < MIN_SECRET:
            raise ConfigError(
                "auth.builtin.token.secret is too short", why=f"it has less than {MIN_SECRET} bytes",
                fix="leave it out: one is made and kept; or make one with `openssl rand -hex 32`",
            )  # fmt: skip
        return given.encode()
    path = folder / "token_secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            found = path.read_bytes()
            if len(found) < MIN_SECRET or path.stat().st_mode & 0o077:
                raise ConfigError(
                    f"{path} cannot be used", why="it is too short, or others may read it",
                    fix="remove it: another one is made, and everybody logs in again",
                ) from None  # fmt: skip
            return found
        made = secrets.token_hex(32).encode()
        with os.fdopen(handle, "wb") as file:
            file.write(made)
            os.fsync(file.fileno())
        return made
    except OSError as error:
        raise ConfigError(f"{path} cannot be kept", why=os.strerror(error.errno or 0)) from error


class Attempts:
    """Count failures of somebody who logs in, by address and by name; forget the oldest when there are too many."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, *keys: str, now: float) -> int:
        """Return for how many seconds one of them has to wait; 0: not at all."""
        waits = [0.0]
        for key in keys:
            times = self._failures.get(key)
            while times and times[0] <= now - WINDOW_S:
                times.popleft()
            if times and len(times) >= FAILURES:
                waits.append(times[0] + WINDOW_S - now)
        return int(max(waits) + 0.999)

    def failed(self, *keys: str, now: float) -> None:
        """Note a failure."""
        for key in keys:
            times = self._failures.setdefault(key, deque(maxlen=FAILURES))
            self._failures.move_to_end(key)
            times.append(now)
        while len(self._failures) > MOST_WATCHED:
            self._failures.popitem(last=False)

    def forget(self, *keys: str) -> None:
        """Forget the failures of somebody who got it right."""
        for key in keys:
            self._failures.pop(key, None)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_bytes())
        return {str(key): float(until) for key, until in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
