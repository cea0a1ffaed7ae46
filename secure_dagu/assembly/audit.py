"""The coordinator's audit log: opened before it serves, told of its links, its refused calls and its weaknesses."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from secure_dagu import __version__
from secure_dagu.assembly.recording import folder_of
from secure_dagu.assembly.verifying import verified
from secure_dagu.audit.chain import Place
from secure_dagu.audit.events import SYSTEM, Action, Detail, Event, Outcome, Trail, by
from secure_dagu.audit.log import AuditLog, open_trail
from secure_dagu.audit.syslog import Target, shipping
from secure_dagu.config.load import Loaded
from secure_dagu.config.values import address
from secure_dagu.dispatch.model import Caller
from secure_dagu.link.context import ClientPolicy, MinimumTls, ServerPolicy, UnsafePlaintext
from secure_dagu.link.register import Happening, LinkEvent, OnEvent
from secure_dagu.security.admission import Deny, DenyReason
from secure_dagu.security.explain import method_of
from secure_dagu.telemetry import metrics

if TYPE_CHECKING:
    from secure_dagu.wire.interceptors import Denial

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def process_trail(
    loaded: Loaded,
    source: str,
    policy: ServerPolicy | ClientPolicy | UnsafePlaintext | None,
    *,
    folder: Path | None = None,
    wait_s: float = 5.0,
) -> AsyncIterator[AuditLog]:
    """Open the log of a process for the time of the context.

    It says there that the process started, how weak its transport is, and at the end that it stopped.

    Args:
        loaded: the configuration.
        source: `coordinator`, `server` or `scheduler`.
        policy: of its transport to and from peers; None: it has none.
        folder: where the log is; None: where the source has it.
        wait_s: how long another process may write there.

    Raises:
        Unavailable: another process writes there, or the disk refuses.
        IntegrityViolation: the log is damaged: nothing is served before somebody has looked.
    """
    said = loaded.settings.audit.syslog
    lost: Callable[[int], None] = lambda count: log.warning("audit.syslog_lost", records=count, target=said)  # noqa: E731
    with shipping(_target(said), lost) as ship:

        def written(events: Sequence[Event], lines: Sequence[bytes], place: Place) -> None:
            ship(lines)
            for event in events:
                metrics.AUDIT_EVENTS.labels(event.action.category, event.outcome.value).inc()
            metrics.AUDIT_CHAIN_LENGTH.set(place.seq)

        def failed() -> None:
            metrics.AUDIT_WRITE_FAILURES.inc()
            if not trail.is_whole:
                metrics.AUDIT_CHAIN_VALID.set(0)
            log.error("audit.not_written", is_whole=trail.is_whole, fix="make room for it, or see `audit verify`")

        place = folder or folder_of(loaded, source)
        opening = open_trail(
            place, host=socket.gethostname(), source=source, on_written=written,
            on_failed=failed, wait_s=wait_s,
        )  # fmt: skip
        async with (
            opening as trail, verified(trail, place, source, every=loaded.settings.audit.verify_interval)
        ):  # fmt: skip
            metrics.audit_opened(head=trail.place.hash)
            own = loaded.settings.coordinator.id if source == "coordinator" else socket.gethostname()
            details: dict[Detail, str | int] = {Detail.VERSION: __version__}
            await trail.record(
                Event(action=Action.PROCESS_STARTED, actor=SYSTEM, target=f"{source}:{own}", details=details)
            )
            for weakness in weaknesses(policy) if policy is not None else ():
                await trail.record(
                    Event(
                        action=Action.TRANSPORT_WEAKENED, actor=SYSTEM, target=f"{source}:{own}",
                        details={Detail.SETTING: weakness},
                    )
                )  # fmt: skip
            try:
                yield trail
            finally:
                trail.note(Event(action=Action.PROCESS_STOPPED, actor=SYSTEM, target=f"{source}:{own}"))


def weaknesses(policy: ServerPolicy | ClientPolicy | UnsafePlaintext) -> Iterator[str]:
    """Name the settings by which a process speaks less than TLS 1.3 with certificates on both ends."""
    if isinstance(policy, UnsafePlaintext):
        yield "peer.insecure=true"
    elif policy.minimum is MinimumTls.V1_2:
        yield "peer.min_tls_version=1.2"


def links(trail: Trail, also: OnEvent) -> OnEvent:
    """Return what notes every link event in the trail, after telling `also`."""

    def happened(event: LinkEvent) -> None:
        also(event)
        trail.note(_of_link(event))

    return happened


def denials(trail: Trail, also: Callable[[object], None]) -> Callable[[Denial], None]:
    """Return what notes every refused call in the trail, after telling `also`."""

    def denied(denial: Denial) -> None:
        also(denial)
        is_label = denial.reason == DenyReason.LABEL_NOT_GRANTED
        trail.note(_of_denial(denial, Action.LABEL_REFUSED if is_label else Action.CALL_DENIED, Outcome.DENIED))

    return denied


def would_be_denials(trail: Trail, also: Callable[[object], None]) -> Callable[[Denial], None]:
    """Return what notes every call in the trail that only the dry-run lets through, after telling `also`."""

    def would_deny(denial: Denial) -> None:
        also(denial)
        trail.note(_of_denial(denial, Action.CALL_WOULD_BE_DENIED, Outcome.SUCCEEDED))

    return would_deny


def tenant_would_be_denials(trail: Trail) -> Callable[[Caller, str, Deny], None]:
    """Return what counts and notes every call to another tenant's run that only the dry-run lets through."""

    def would_deny(caller: Caller, word: str, deny: Deny) -> None:
        method = method_of(word)
        metrics.call_would_be_denied(deny.reason, method)
        log.warning("call.would_be_refused", reason=deny.reason.value, method=method, what=deny.error.what)
        trail.note(
            by(
                caller, Action.CALL_WOULD_BE_DENIED, f"method:{method}", reason=deny.reason.value,
                details={Detail.WHAT: deny.error.what},
            )
        )  # fmt: skip

    return would_deny


def _of_denial(denial: Denial, action: Action, outcome: Outcome) -> Event:
    peer = denial.peer
    identity = peer.identity if peer is not None else None
    details: dict[Detail, str | int] = {Detail.CLAIMED: denial.claimed_worker} if denial.claimed_worker else {}
    if denial.reason in (DenyReason.LABEL_NOT_GRANTED, DenyReason.OTHER_TENANT):
        details[Detail.WHAT] = denial.error.what
    return Event(
        action=action, outcome=outcome, target=f"method:{denial.method}", reason=denial.reason,
        actor=identity.uri if identity is not None else "", details=details,
        serial=f"{peer.serial:x}" if peer is not None and peer.serial else "",
        address=peer.address if peer is not None else "",
    )  # fmt: skip


_ACTIONS = {
    Happening.OPENED: Action.LINK_OPENED,
    Happening.CLOSED: Action.LINK_CLOSED,
    Happening.CUT: Action.LINK_CUT,
    Happening.REFUSED: Action.HANDSHAKE_REFUSED,
}


def _of_link(event: LinkEvent) -> Event:
    action, peer, verdict = _ACTIONS[event.happening], event.peer, event.verdict
    if verdict is not None:  # nobody is proven: what the certificate says is a claim
        details: dict[Detail, str | int] = {Detail.SUBJECT: verdict.subject} if verdict.subject else {}
        return Event(
            action=action, outcome=Outcome.DENIED, address=event.address, target="listener",
            reason=verdict.reason.value, serial=f"{verdict.serial:x}" if verdict.serial else "", details=details,
        )  # fmt: skip
    assert peer is not None, "what is not refused has a peer"
    return Event(
        action=action, address=event.address, target="listener",
        actor=peer.identity.uri if peer.identity is not None else "",
        serial=f"{peer.serial:x}" if peer.serial else "", details={Detail.TLS: peer.tls_version},
    )  # fmt: skip


def _target(said: str) -> Target | None:
    if not said:
        return None
    if said.startswith("/"):
        return Target(path=said)
    place = address(said)
    return Target(host=place.host, port=place.port)
