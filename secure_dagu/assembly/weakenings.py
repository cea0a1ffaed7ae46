"""What a running coordinator does when one of its exceptions ends (`security.exceptions.WEAKNESSES`)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

from secure_dagu.assembly.exceptions import InForce, policy_of
from secure_dagu.errors import SecureDaguError, Unavailable
from secure_dagu.security.exceptions import Kind, command_for

if TYPE_CHECKING:
    from secure_dagu.assembly.reload import Reload
    from secure_dagu.assembly.trust import Current
    from secure_dagu.link.context import ServerPolicy
    from secure_dagu.link.listener import Listener
    from secure_dagu.wire.interceptors import Gate
    from secure_dagu.wire.server import WireServer


class Weakenings:
    """What can be taken back from a running coordinator."""

    def __init__(
        self,
        held: InForce,
        watched: Reload[ServerPolicy] | None,
        current: Current,
        *,
        edge: Listener,
        gate: Gate,
        wire: WireServer,
    ) -> None:
        self._held, self._watched, self._current = held, watched, current
        self._edge, self._gate, self._wire = edge, gate, wire
        self._is_shut: SecureDaguError | None = None

    def objections(self) -> list[SecureDaguError]:
        """Return why this coordinator cannot do its work any more, for `/ready`."""
        return [self._is_shut] if self._is_shut is not None else []

    def take_back(self, kind: Kind) -> None:
        """End a weakening."""
        match kind:
            case Kind.PLAINTEXT:
                self._is_shut = Unavailable(
                    "the exception for plaintext has ended",
                    why="the port takes no new connections",
                    fix=f"turn peer.insecure off, or {command_for(kind, datetime.now(UTC))}, and start again",
                )
                self._edge.stop_accepting()
                self._wire.drain()  # no new work over the links that are open; what runs may still report
            case Kind.TLS_1_2:
                if self._watched is not None:
                    self._current.policy = self._edge.policy = self._watched.remake()
                self._edge.register.cut(lambda peer: peer.tls_version == "TLSv1.2")
            case Kind.POLICY_DRY_RUN | Kind.UNGRANTED_LABELS:
                self._gate.policy = policy_of(self._held)
                self._wire.ask_again()  # an open poll may wait with labels that are refused from now on
            case Kind.METRICS_PUBLIC:
                pass  # asked at every scrape
            case Kind.HTTP_PLAINTEXT | Kind.NO_LOGIN:
                pass  # the web server's (assembly.web)
            case _:
                assert_never(kind)
