"""What the wire needs of a link: a private socket whose other end is one coordinator. `link.dialer` makes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from secure_dagu.errors import SecureDaguError


class Link(Protocol):
    """The way to one coordinator address; each connection to `target` is dialled, proven and relayed."""

    @property
    def target(self) -> str:
        """Return what gRPC dials: `unix:/path`."""
        ...

    @property
    def authority(self) -> str:
        """Return the coordinator's name, sent as `:authority`."""
        ...

    def explain(self) -> SecureDaguError | None:
        """Return why the last dial failed; None when it succeeded or there was none yet."""
        ...

    def proves(self, host: str) -> bool:
        """Tell whether the certificate at the other end of a live connection is for this host too."""
        ...

    async def close(self) -> None:
        """Close the socket and every connection through it."""
        ...


Connect = Callable[[str, int], Awaitable[Link]]
"""Make the link to `host`, `port`. It returns at once: dialling happens when gRPC connects."""
