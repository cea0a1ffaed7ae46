"""The state of security at a glance. What takes long is looked at after the answer, and shown the next time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct

from secure_dagu.audit.chain import text_of
from secure_dagu.audit.events import Outcome
from secure_dagu.audit.reading import Wanted, newest
from secure_dagu.errors import SecureDaguError
from secure_dagu.web.api.views_audit import Verified, verified

REFUSED_EVERY = timedelta(seconds=20)
VERIFIED_EVERY = timedelta(minutes=10)
_LATELY = timedelta(hours=24)
_LINK = "link"
"""Category of handshakes and calls between machines."""


class Records(Struct, frozen=True, kw_only=True):
    """What the audit logs of this host say. None: not looked at yet."""

    refused: int | None = None
    """Links refused within 24 hours."""
    refused_at: datetime | None = None
    chain: Verified | None = None
    chain_at: datetime | None = None


class SecurityWatch:
    """Looks at the audit logs now and then, when somebody asks."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Take the logs."""
        self._folders = folders
        self._looking: asyncio.Future[None] | None = None
        self.known = Records()

    def look(self) -> None:
        """Begin to look again at what is old, on a thread: who asks does not wait. Of several at once, one looks."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._look)

    def _look(self) -> None:
        now, known = datetime.now(UTC), self.known
        if known.refused_at is None or now - known.refused_at >= REFUSED_EVERY:
            self.known = known = Records(
                refused=self._refused(now), refused_at=now, chain=known.chain, chain_at=known.chain_at
            )
        if known.chain_at is None or now - known.chain_at >= VERIFIED_EVERY:
            self.known = Records(
                refused=known.refused, refused_at=known.refused_at, chain=verified(self._folders),
                chain_at=datetime.now(UTC),
            )  # fmt: skip

    def _refused(self, now: datetime) -> int | None:
        wanted = Wanted(actions=(_LINK,), outcomes=(Outcome.DENIED.value,), since=text_of(now - _LATELY))
        try:
            return newest(self._folders.values(), wanted, limit=1).total
        except SecureDaguError:  # a line that is no record: verifying says which
            return None
