"""What the audit log is told of exceptions. A process without one, such as a worker, never imports its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from secure_dagu.audit.events import SYSTEM, Action, Detail, Event
from secure_dagu.security.exceptions import WEAKNESSES, Exemption


def in_force(item: Exemption) -> Event:
    """Return that a process runs under an exception."""
    details = {Detail.SETTING: WEAKNESSES[item.kind].setting, **_terms(item)}
    return Event(action=Action.POLICY_CHANGED, actor=SYSTEM, target=_target(item), details=details)


def ended(item: Exemption, why: str) -> Event:
    """Return that an exception has ended by itself in a process."""
    details = {Detail.WHAT: item.kind.value, **_terms(item)}
    return Event(action=Action.EXCEPTION_EXPIRED, actor=SYSTEM, target=_target(item), reason=why, details=details)


def granted(item: Exemption, head: str) -> Event:
    """Return that somebody granted an exception; `head`: the end of the ledger's chain then."""
    return _written(Action.EXCEPTION_GRANTED, item, head)


def withdrawn(item: Exemption, head: str) -> Event:
    """Return that somebody withdrew an exception; `head` as above."""
    return _written(Action.EXCEPTION_WITHDRAWN, item, head)


def _written(action: Action, item: Exemption, head: str) -> Event:
    details = {Detail.WHAT: item.kind.value, **_terms(item), Detail.HEAD: head}
    return Event(action=action, target=_target(item), reason=item.reason, details=details)


def _target(item: Exemption) -> str:
    return f"exception:{item.id}"


def _terms(item: Exemption) -> Mapping[Detail, str | int]:
    return {Detail.OWNER: item.owner, Detail.UNTIL: item.until.isoformat()}
