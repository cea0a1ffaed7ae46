"""The closed vocabulary of what is recorded: actions, outcomes, details, and who takes an event. Pure.

An event holds identifiers and reasons, never inputs: there is no field for parameters, environment, documents or
values, and the names of details are a closed list. Every text is bounded and its control characters are escaped when
the event is made, so a record is one line whatever a peer sends (threats reference, T20, T21).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from secure_dagu.dispatch.model import Caller
from secure_dagu.errors import SecureDaguError
from secure_dagu.run.model import DagRunRef

MAX_TEXT = 512
"""Characters of one text of an event after escaping; more is cut and ends in `…`."""
MAX_DETAIL = 256


class Outcome(StrEnum):
    """How it ended: the closed set of the metric label `result` (metrics reference, C.8)."""

    SUCCEEDED = "succeeded"
    DENIED = "denied"
    """Somebody may not do it."""
    FAILED = "failed"
    """It was allowed and did not work."""


class Action(StrEnum):
    """What happened. The part before the dot is its category, the metric label `category`."""

    TOKEN_ISSUED = "enrolment.token_issued"  # noqa: S105 - a word, no password
    TOKEN_WITHDRAWN = "enrolment.token_withdrawn"  # noqa: S105 - as above
    JOINED = "enrolment.joined"
    JOIN_REFUSED = "enrolment.refused"

    CERTIFICATE_ISSUED = "certificate.issued"
    CERTIFICATE_RENEWED = "certificate.renewed"
    RENEWAL_REFUSED = "certificate.renewal_refused"
    CERTIFICATE_REVOKED = "certificate.revoked"
    CERTIFICATE_LOADED = "certificate.loaded"
    CERTIFICATE_UNUSABLE = "certificate.unusable"
    CERTIFICATE_UNKNOWN = "certificate.unknown"
    CERTIFICATE_COPIED = "certificate.copied"

    CA_CREATED = "ca.created"
    CA_KEY_PROTECTED = "ca.key_protected"
    TRUST_CHANGED = "ca.trust_changed"
    ROTATION_PREPARED = "ca.rotation_prepared"
    ROTATION_ACTIVATED = "ca.rotation_activated"
    ROTATION_RETIRED = "ca.rotation_retired"
    ROTATION_FINISHED = "ca.rotation_finished"
    ROTATION_ROLLED_BACK = "ca.rotation_rolled_back"

    CRL_SIGNED = "crl.signed"
    CRL_LOADED = "crl.loaded"
    CRL_STALE = "crl.stale"
    CRL_REFUSED = "crl.refused"

    LINK_OPENED = "link.opened"
    LINK_CLOSED = "link.closed"
    LINK_CUT = "link.cut"
    HANDSHAKE_REFUSED = "link.refused"

    CALL_DENIED = "call.denied"
    CALL_WOULD_BE_DENIED = "call.would_be_denied"
    LABEL_REFUSED = "call.label_refused"

    TASK_DISPATCHED = "task.dispatched"
    TASK_CLAIMED = "task.claimed"
    TASK_RELEASED = "task.released"
    RUN_ENDED = "run.ended"
    REPORT_REFUSED = "run.report_refused"
    RUN_CANCELLED = "run.cancel_requested"
    RUN_ABANDONED = "run.abandoned"
    RUN_READ = "run.read"
    LOG_WRITTEN = "run.log_written"
    ARTIFACT_WRITTEN = "run.artifact_written"

    SECRET_READ = "secret.read"  # noqa: S105 - as above
    SECRET_CREATED = "secret.created"  # noqa: S105 - as above
    SECRET_UPDATED = "secret.updated"  # noqa: S105 - as above
    SECRET_DELETED = "secret.deleted"  # noqa: S105 - as above
    STATE_READ = "state.read"
    STATE_WRITTEN = "state.written"
    STATE_DELETED = "state.deleted"
    BUNDLE_STORED = "bundle.stored"
    BUNDLE_READ = "bundle.read"
    DEFINITION_READ = "definition.read"
    WORKERS_READ = "workers.read"
    WORKER_DRAINED = "workers.drained"
    WORKER_FREED = "workers.freed"

    TRANSPORT_WEAKENED = "transport.weakened"
    POLICY_CHANGED = "policy.changed"
    EXCEPTION_GRANTED = "exception.granted"
    EXCEPTION_WITHDRAWN = "exception.withdrawn"
    EXCEPTION_EXPIRED = "exception.expired"

    AUDIT_READ = "audit.read"
    AUDIT_VERIFIED = "audit.verified"
    AUDIT_EXPORTED = "audit.exported"
    AUDIT_CHECKPOINT = "audit.checkpoint"
    AUDIT_KEY_MADE = "audit.key_made"
    AUDIT_RECOVERED = "audit.recovered"
    AUDIT_LOST = "audit.lost"

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    DAG_CREATED = "dag.created"
    DAG_UPDATED = "dag.updated"
    DAG_RENAMED = "dag.renamed"
    DAG_DELETED = "dag.deleted"
    DAG_SUSPENDED = "dag.suspended"
    DAG_RESUMED = "dag.resumed"
    BASE_CONFIG_CHANGED = "dag.base_config_changed"
    RUN_STARTED = "run.start_requested"
    RUN_ENQUEUED = "run.enqueue_requested"
    RUN_DEQUEUED = "run.dequeued"
    RUN_RETRIED = "run.retry_requested"
    RUN_RESCHEDULED = "run.reschedule_requested"
    RUN_DELETED = "run.deleted"
    STEP_CHANGED = "run.step_status_changed"
    STEP_APPROVED = "run.step_approved"
    STEP_REJECTED = "run.step_rejected"
    STEP_PUSHED_BACK = "run.step_pushed_back"
    TASK_COMPLETED = "run.task_completed"
    ARTIFACT_READ = "run.artifact_read"
    QUEUE_PAUSED = "queue.paused"
    QUEUE_RESUMED = "queue.resumed"
    ACCOUNT_SET_UP = "account.set_up"
    USER_CREATED = "account.user_created"
    USER_UPDATED = "account.user_updated"
    USER_DELETED = "account.user_deleted"
    PASSWORD_CHANGED = "account.password_changed"  # noqa: S105 - as above
    PASSWORD_RESET = "account.password_reset"  # noqa: S105 - as above
    KEY_CREATED = "account.key_created"
    KEY_UPDATED = "account.key_updated"
    KEY_DELETED = "account.key_deleted"
    LOGIN = "login.attempted"
    LOGOUT = "login.ended"

    @property
    def category(self) -> str:
        """Return what the metric and filters group by."""
        return self.value.partition(".")[0]


class Meaning(Struct, frozen=True, kw_only=True):
    """One row of the list of events."""

    text: str
    """What it says, one sentence for the reference."""
    durable: bool = False
    """True: on disk before the action is acknowledged (`Trail.record`). False: on disk within a second (`note`)."""
    folds: bool = False
    """True: the same event again within a minute is counted, not written: it repeats at the will of others."""


def _now(text: str) -> Meaning:
    return Meaning(text=text, durable=True)


def _soon(text: str) -> Meaning:
    return Meaning(text=text)


def _often(text: str) -> Meaning:
    return Meaning(text=text, folds=True)


MEANINGS: Mapping[Action, Meaning] = MappingProxyType(
    {
        Action.TOKEN_ISSUED: _now("A join token was made for a name, role and labels."),
        Action.TOKEN_WITHDRAWN: _now("A join token was withdrawn before its use."),
        Action.JOINED: _now("A machine redeemed a join token and got its first certificate."),
        Action.JOIN_REFUSED: _often("A join was refused: token unknown, used, expired or for something else."),
        Action.CERTIFICATE_ISSUED: _now("The CA signed a certificate."),
        Action.CERTIFICATE_RENEWED: _now("The CA signed a new certificate for the holder of one that is still valid."),
        Action.RENEWAL_REFUSED: _often("A renewal was refused."),
        Action.CERTIFICATE_REVOKED: _now("A certificate was revoked."),
        Action.CERTIFICATE_LOADED: _soon("A process took a new certificate of its own into use."),
        Action.CERTIFICATE_UNUSABLE: _often("New certificate files cannot be used; the last good ones stay in use."),
        Action.CERTIFICATE_UNKNOWN: _often(
            "A peer came with a certificate that our CA signed and its ledger does not know: its key may be stolen."
        ),
        Action.CERTIFICATE_COPIED: _often(
            "A worker's certificate is in use from more than one address at once: its key may be stolen."
        ),
        Action.CA_CREATED: _now("A CA was made."),
        Action.CA_KEY_PROTECTED: _now("The protection of the CA's key was changed (passphrase, PKCS#11)."),
        Action.TRUST_CHANGED: _soon("A process took another CA bundle into use."),
        Action.ROTATION_PREPARED: _now("A new CA was made beside the old one; both are trusted."),
        Action.ROTATION_ACTIVATED: _now("The new CA signs from now on."),
        Action.ROTATION_RETIRED: _now("The old CA is no longer trusted."),
        Action.ROTATION_FINISHED: _now("The rotation is complete and the old key is gone."),
        Action.ROTATION_ROLLED_BACK: _now("The rotation was undone."),
        Action.CRL_SIGNED: _now("The CA signed a revocation list."),
        Action.CRL_LOADED: _soon("A process took a revocation list into use."),
        Action.CRL_STALE: _often("The revocation list is past its next update."),
        Action.CRL_REFUSED: _often("A revocation list was refused: forged, rolled back, truncated or for another CA."),
        Action.LINK_OPENED: _soon("A peer proved who it is and opened a connection, for all its polls and heartbeats."),
        Action.LINK_CLOSED: _soon("A connection ended."),
        Action.LINK_CUT: _soon("We ended a live connection, such as after a revocation."),
        Action.HANDSHAKE_REFUSED: _often("A connection was refused before any call."),
        Action.CALL_DENIED: _often("A call was refused: role, claimed identity, or whose object it is."),
        Action.CALL_WOULD_BE_DENIED: _often("A call that the policy in dry-run mode would have refused."),
        Action.LABEL_REFUSED: _often("A worker claimed a label that its certificate does not grant."),
        Action.TASK_DISPATCHED: _now("A task was accepted."),
        Action.TASK_CLAIMED: _now("A worker took a task under a lease."),
        Action.TASK_RELEASED: _soon("A lease was taken from a worker and its task handed on or ended."),
        Action.RUN_ENDED: _soon("A worker reported the end of a run."),
        Action.RUN_ABANDONED: _soon("A run was failed whose process was gone."),
        Action.REPORT_REFUSED: _often("A status report was not believed."),
        Action.RUN_CANCELLED: _now("Somebody asked for the end of a run."),
        Action.RUN_READ: _often("Status, log or artifacts of runs were read."),
        Action.LOG_WRITTEN: _often("A worker uploaded logs of a run."),
        Action.ARTIFACT_WRITTEN: _often("A worker uploaded artifacts of a run."),
        Action.SECRET_READ: _now("A managed secret was asked for; the outcome says whether it was given."),
        Action.SECRET_CREATED: _now("A managed secret was made."),
        Action.SECRET_UPDATED: _now("A managed secret got another value."),
        Action.SECRET_DELETED: _now("A managed secret was removed."),
        Action.STATE_READ: _often("A shared value was read, or values were listed."),
        Action.STATE_WRITTEN: _now("A shared value was written."),
        Action.STATE_DELETED: _now("A shared value was deleted."),
        Action.BUNDLE_STORED: _now("A workspace bundle was stored."),
        Action.BUNDLE_READ: _often("A workspace bundle was read or asked after."),
        Action.DEFINITION_READ: _often("A definition of the DAG directory was read."),
        Action.WORKERS_READ: _often("The list of workers, or of links, was read."),
        Action.WORKER_DRAINED: _now("A worker is given no new task from now on."),
        Action.WORKER_FREED: _now("A worker that was drained is given tasks again."),
        Action.TRANSPORT_WEAKENED: _now("A process runs with less than TLS 1.3 and mutual certificates."),
        Action.POLICY_CHANGED: _now("Rules of admission were changed or switched to dry run."),
        Action.EXCEPTION_GRANTED: _now("A weakening was allowed, with owner, reason and end."),
        Action.EXCEPTION_WITHDRAWN: _now("An exception was withdrawn before its end."),
        Action.EXCEPTION_EXPIRED: _soon("An exception ended by itself."),
        Action.AUDIT_READ: _now("This log was read."),
        Action.AUDIT_VERIFIED: _now("This log was verified."),
        Action.AUDIT_EXPORTED: _now("This log was exported."),
        Action.AUDIT_CHECKPOINT: _now("The log up to here, signed."),
        Action.AUDIT_KEY_MADE: _now("The key that signs checkpoints was made; its public half is the target."),
        Action.AUDIT_RECOVERED: _now("The torn end of a line that no one had been told of was removed after a crash."),
        Action.AUDIT_LOST: _soon("Events that nobody waited for were lost while the disk refused writes."),
        Action.PROCESS_STARTED: _now("A service started."),
        Action.PROCESS_STOPPED: _now("A service stopped."),
        Action.DAG_CREATED: _now("A definition was created."),
        Action.DAG_UPDATED: _now("A definition was changed."),
        Action.DAG_RENAMED: _now("A definition got another name."),
        Action.DAG_DELETED: _now("A definition was deleted."),
        Action.DAG_SUSPENDED: _now("The schedule of a DAG was suspended."),
        Action.DAG_RESUMED: _now("The schedule of a DAG goes on."),
        Action.BASE_CONFIG_CHANGED: _now("The base configuration of all DAGs was changed."),
        Action.RUN_STARTED: _now("Somebody asked for a run."),
        Action.RUN_ENQUEUED: _now("Somebody put a run into a queue."),
        Action.RUN_DEQUEUED: _now("A run was taken out of its queue."),
        Action.RUN_RETRIED: _now("Somebody asked for another attempt of a run."),
        Action.RUN_RESCHEDULED: _now("Somebody asked for a new run like an earlier one."),
        Action.RUN_DELETED: _now("A run was deleted with all that it left."),
        Action.STEP_CHANGED: _now("Somebody corrected the status of a step."),
        Action.STEP_APPROVED: _now("A waiting step was approved."),
        Action.STEP_REJECTED: _now("A waiting step was rejected."),
        Action.STEP_PUSHED_BACK: _now("A waiting step was sent back."),
        Action.TASK_COMPLETED: _now("A human task was completed."),
        Action.ARTIFACT_READ: _now("An artifact was downloaded."),
        Action.QUEUE_PAUSED: _now("A queue starts nothing from now on."),
        Action.QUEUE_RESUMED: _now("A queue starts runs again."),
        Action.ACCOUNT_SET_UP: _now("The first admin was made."),
        Action.USER_CREATED: _now("A user was made."),
        Action.USER_UPDATED: _now("A user was changed."),
        Action.USER_DELETED: _now("A user was deleted."),
        Action.PASSWORD_CHANGED: _now("A person changed the own password."),
        Action.PASSWORD_RESET: _now("An admin gave a user another password."),
        Action.KEY_CREATED: _now("An API key was made."),
        Action.KEY_UPDATED: _now("An API key was changed."),
        Action.KEY_DELETED: _now("An API key was deleted."),
        Action.LOGIN: _now("A person tried to log in."),
        Action.LOGOUT: _soon("A person's session ended."),
    }
)
"""Every action, in the order of the reference."""


class Detail(StrEnum):
    """Names of details. None of them is for a value that somebody wants to keep secret."""

    ROLE = "role"
    LABELS = "labels"
    NAMES = "names"
    CLAIMED = "claimed"
    """What a peer said of itself and did not prove."""
    ATTEMPT = "attempt"
    ROOT = "root"
    STATUS = "status"
    WORKER = "worker"
    SIZE = "size"
    VERSION = "version"
    NUMBER = "number"
    COUNT = "count"
    REPEATS = "repeats"
    UNTIL = "until"
    OWNER = "owner"
    SUBJECT = "subject"
    ISSUER = "issuer"
    FINGERPRINT = "fingerprint"
    TLS = "tls"
    SETTING = "setting"
    WHAT = "what"
    """Which part of the object, such as `log` or `artifacts` of a run."""
    VIA = "via"
    """How the actor came into the web server: `password`, `api_key`, `basic`, `certificate` or `none`."""
    HEAD = "head"
    SIGNATURE = "signature"


class Event(Struct, frozen=True, kw_only=True):
    """One thing that happened. When, where and the place in the chain are added as it is written.

    Making one cuts and escapes its texts. Use `by` for what a caller did.
    """

    action: Action
    outcome: Outcome = Outcome.SUCCEEDED
    actor: str = ""
    """Who: the identity URI, `os:<user>` for a command on this host, `system` for the process; empty: nobody proven."""
    serial: str = ""
    """Of the actor's certificate, lower-case hex."""
    address: str = ""
    """From where: remote `host:port`."""
    target: str = ""
    """On what: `run:NAME/ID`, `certificate:SERIAL`, `worker:NAME`, `secret:REF`, `state:SCOPE/NAMESPACE/KEY`, …"""
    reason: str = ""
    """Why it was denied or failed: a code of `DenyReason` or `verdict.Reason` where there is one."""
    details: Mapping[Detail, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Escape and bound the texts; TypeError for what is neither text nor number, such as a `Secret`."""
        for name in ("actor", "serial", "address", "target", "reason"):
            text = getattr(self, name)
            if not _is_plain(text, MAX_TEXT):
                force_setattr(self, name, cleaned(text, MAX_TEXT))
        for key, value in self.details.items():
            if type(key) is not Detail or not isinstance(value, str | int):
                raise TypeError("details are texts and numbers under names of the closed list")
            if not (_is_plain(value, MAX_DETAIL) if isinstance(value, str) else -_MAX_NUMBER <= value <= _MAX_NUMBER):
                force_setattr(self, "details", {name: _bounded(item) for name, item in self.details.items()})
                break


class Trail(Protocol):
    """Where events go. Services are handed one; `audit.log` writes it, `NO_TRAIL` forgets."""

    async def record(self, event: Event) -> None:
        """Return when the event is on disk.

        Raises:
            Unavailable: it cannot be written; then the action must not happen.
        """
        ...

    def note(self, event: Event) -> None:
        """Take an event that is on disk within a second. Returns at once and never raises."""
        ...


class _NoTrail:
    async def record(self, event: Event) -> None:
        """Forget it."""

    def note(self, event: Event) -> None:
        """Forget it."""


NO_TRAIL: Trail = _NoTrail()
"""For tests of rooms whose subject is something else."""

SYSTEM = "system"


@asynccontextmanager
async def recorded(trail: Trail, event: Event) -> AsyncIterator[None]:
    """Do something that must not happen unrecorded: the record first, then the work; a failure gets its own event.

    Raises:
        Unavailable: the record cannot be written; nothing was done.
    """
    await trail.record(event)
    try:
        yield
    except SecureDaguError as error:
        trail.note(replace(event, outcome=Outcome.FAILED, reason=error.code))
        raise


def by(
    caller: Caller,
    action: Action,
    target: str,
    *,
    outcome: Outcome = Outcome.SUCCEEDED,
    reason: str = "",
    details: Mapping[Detail, str | int] = MappingProxyType({}),
) -> Event:
    """Return an event of a caller; what an unproven one says of itself is a detail, not the actor."""
    if not caller.proven and caller.name:
        details = {**details, Detail.CLAIMED: caller.name}
    return Event(
        action=action,
        outcome=outcome,
        actor=caller.identity,
        serial=caller.serial,
        address=caller.address,
        target=target,
        reason=reason,
        details=details,
    )


def run_target(run: DagRunRef) -> str:
    """Return how a run is written as a target."""
    return f"run:{run.name}/{run.run_id}"


_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.DOTALL)


_MAX_NUMBER = 2**53
"""Larger ones are written as texts: not every reader of JSON keeps their digits."""


def _bounded(value: str | int) -> str | int:
    if isinstance(value, str):
        return cleaned(value, MAX_DETAIL)
    return value if -_MAX_NUMBER <= value <= _MAX_NUMBER else str(value)[:MAX_DETAIL]


def _is_plain(text: str, limit: int) -> bool:
    return len(text) <= limit and text.isascii() and text.isprintable() and "-----" not in text


def cleaned(text: str, limit: int) -> str:
    """Return text without what does not print, such as direction marks, or private keys, cut to `limit` characters."""
    text = _KEY.sub("[redacted]", text[: 4 * limit])
    text = "".join(char if char.isprintable() else _escaped(char) for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
