"""What the audit logs say of refusals and revocations, and how often for each reason. Everything here blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace
from typing_extensions import TypedDict

from secure_dagu.audit.events import Action, Detail, Outcome
from secure_dagu.audit.reading import Wanted, newest, records
from secure_dagu.web.api import views_audit
from secure_dagu.web.api.deps import Parts

SECURITY = (
    Action.HANDSHAKE_REFUSED, Action.LINK_CUT, "call", "certificate", "crl", "exception", "policy", "transport",
    "enrolment", "ca", "login",
)  # fmt: skip
"""Actions and categories that concern security; links that open and close as they should are left out."""


_NOTHING = "-"
"""No action is called this."""


class Kind(Struct, frozen=True, kw_only=True):
    """One line of what is counted."""

    word: str
    title: str
    actions: tuple[Action, ...]
    is_refusal: bool = True

    def holds(self, action: str, outcome: str) -> bool:
        """Tell whether a record belongs here."""
        return action in self.actions and (not self.is_refusal or outcome == Outcome.DENIED)


KINDS = (
    Kind(word="handshake", title="Refused handshakes", actions=(Action.HANDSHAKE_REFUSED,)),
    Kind(word="call", title="Refused calls", actions=(Action.CALL_DENIED, Action.LABEL_REFUSED)),
    Kind(word="login", title="Refused logins", actions=(Action.LOGIN,)),
    Kind(word="enrolment", title="Refused enrolments", actions=(Action.JOIN_REFUSED, Action.RENEWAL_REFUSED)),
    Kind(
        word="revocation", title="Revocations", actions=(Action.CERTIFICATE_REVOKED, Action.LINK_CUT), is_refusal=False
    ),
)
"""What is counted by reason, in the order in which it is shown."""


class ReasonCount(TypedDict):
    """How often one thing happened for one reason; an empty reason: none was recorded."""

    kind: str
    action: str
    reason: str
    count: int


class SecurityEvents(views_audit.AuditPage):
    """A page of records, and the counts of all refusals and revocations of the same time."""

    counts: list[ReasonCount]


def security_page(parts: Parts, query: views_audit.AuditPageQuery) -> SecurityEvents:
    """Return a page of records about security, newest first."""
    folders = list(query.folders(parts.audit_folders).values())
    wanted = query.wanted()
    found = newest(folders, of_security(wanted), limit=query.limit, offset=query.offset)
    return {
        "entries": [views_audit.entry(record) for record in found.records],
        "total": found.total,
        "counts": counted(folders, Wanted(since=wanted.since, until=wanted.until)),
    }


def of_security(wanted: Wanted) -> Wanted:
    """Narrow what is asked for to what concerns security."""
    if not wanted.actions:
        return replace(wanted, actions=SECURITY)
    return replace(wanted, actions=tuple(part for word in wanted.actions for part in _of_security(word)) or (_NOTHING,))


def _of_security(word: str) -> Sequence[str]:
    """Return what of an action or category concerns security."""
    if word in SECURITY or word.partition(".")[0] in SECURITY:
        return (word,)
    return [part for part in SECURITY if part.startswith(f"{word}.")]


def counted(folders: Iterable[Path], wanted: Wanted) -> list[ReasonCount]:
    """Return how often each refusal and revocation was recorded, by reason; what was folded counts as often as it was.

    Raises:
        IntegrityViolation: a line of a log is no record.
    """
    found: Counter[tuple[int, str, str]] = Counter()
    wanted = replace(wanted, actions=tuple(action for kind in KINDS for action in kind.actions))
    for folder in folders:
        for _, record in records(folder, wanted):
            times = record.details.get(Detail.REPEATS, 1)
            for number, kind in enumerate(KINDS):
                if kind.holds(record.action, record.outcome):
                    found[(number, record.action, record.reason)] += times if isinstance(times, int) else 1
    ordered = sorted(found.items(), key=lambda item: (item[0][0], -item[1], item[0]))
    return [
        {"kind": KINDS[number].word, "action": action, "reason": reason, "count": count}
        for (number, action, reason), count in ordered
    ]
