"""The way of a process to its coordinator, which may appear after the process has started. Pure."""

from __future__ import annotations

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller


class Way:
    """Whom to ask, and as whom. Read it at each use: what was None may be there now; what is there stays."""

    __slots__ = ("_caller", "_coordinator")

    def __init__(self, coordinator: Coordinator | None, caller: Caller) -> None:
        """Take the coordinator, None while there is none; `caller` is as whom it is asked."""
        self._coordinator, self._caller = coordinator, caller

    @property
    def coordinator(self) -> Coordinator | None:
        """Return whom to ask; None: everything is done here."""
        return self._coordinator

    @property
    def caller(self) -> Caller:
        """Return as whom."""
        return self._caller

    def open(self, coordinator: Coordinator, caller: Caller) -> None:
        """Lead to a coordinator from now on."""
        self._coordinator, self._caller = coordinator, caller
