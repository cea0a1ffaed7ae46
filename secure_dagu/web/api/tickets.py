"""Tickets that open one stream once: an EventSource cannot send a header, and a token in a URL ends in logs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from secure_dagu.errors import LimitExceeded, Unauthenticated

LIFETIME_S = 30.0
_MAX_OPEN = 10_000


class Tickets:
    """Those that were given out and not used yet; only their hashes are kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make an empty book."""
        self._clock = clock
        self._open: dict[bytes, tuple[float, Any]] = {}

    def issue(self, account: Any) -> str:
        """Return a ticket for an account.

        Raises:
            LimitExceeded: too many are open.
        """
        now = self._clock()
        while self._open and next(iter(self._open.values()))[0] < now:  # oldest first, and all live equally long
            del self._open[next(iter(self._open))]
        if len(self._open) >= _MAX_OPEN:
            raise LimitExceeded("too many open stream tickets", fix="wait half a minute")
        ticket = secrets.token_urlsafe(32)
        self._open[sha256(ticket.encode()).digest()] = (now + LIFETIME_S, account)
        return ticket

    def redeem(self, ticket: str) -> Any:
        """Return whose ticket it is, once.

        Raises:
            Unauthenticated: it is unknown, used or too old.
        """
        until, account = self._open.pop(sha256(ticket.encode()).digest(), (0.0, None))
        if account is None or until < self._clock():
            raise Unauthenticated("the stream ticket is unknown, used or expired", fix="get a new one")
        return account
