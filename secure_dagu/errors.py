"""Error families; one table gives each its exit code, HTTP status and gRPC status.

An error says what happened, why, and what to do next (docs/conventions.md, "Errors"). Raise the most specific class
with `from`; catch a family.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SecureDaguError(Exception):
    """The root of our own errors. Only these may show their text to a peer."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        self.reason = ""
        """The closed code of a refusal or a fault, where there is one: the same at the end that decided and here."""
        super().__init__(what)

    def __str__(self) -> str:
        return self.what + (f": {self.why}" if self.why else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the stable JSON shape: code, what, why, fix, and reason where there is one."""
        told = {"code": self.code, "what": self.what, "why": self.why, "fix": self.fix}
        return told | {"reason": self.reason} if self.reason else told


class DefinitionError(SecureDaguError):
    """The workflow or the request is wrong: its author's move."""

    code = "definition"
    exit_code, http_status, grpc_status = 1, 422, "INVALID_ARGUMENT"


class InvalidRequest(DefinitionError):
    """A message breaks the protocol: a required field is empty, too long or malformed."""

    code = "invalid-request"


class NotFound(SecureDaguError):
    """The named thing does not exist: the caller's move."""

    code = "not-found"
    exit_code, http_status, grpc_status = 1, 404, "NOT_FOUND"


class UnknownCall(NotFound):
    """The other end does not have this call: it is an older release, or another program."""

    code = "unknown-call"
    grpc_status = "UNIMPLEMENTED"


class Conflict(SecureDaguError):
    """The state has moved on: the caller reads again."""

    code = "conflict"
    exit_code, http_status, grpc_status = 1, 409, "ABORTED"


class StaleClaim(Conflict):
    """A claim token is unknown, expired or somebody else's."""

    code = "stale-claim"


class LeaseLost(Conflict):
    """A report came under a lease that no longer exists or was never the caller's."""

    code = "lease-lost"


class PreconditionFailed(Conflict):
    """The request is well formed but cannot be met as the system stands (stale queue dispatch, superseded attempt)."""

    code = "precondition-failed"
    grpc_status = "FAILED_PRECONDITION"


class NoMatchingWorker(PreconditionFailed):
    """No live worker has what a run asks for."""

    code = "no-matching-worker"


class NoAuthorisedWorker(NoMatchingWorker):
    """Somebody offers what a run asks for, but no certificate grants it."""

    code = "no-authorised-worker"


class AlreadyExists(Conflict):
    """The name or the id is taken: the caller chooses another one."""

    code = "already-exists"


class WrongState(Conflict):
    """The run is not in the state that this is for: still active, or not queued any more."""

    code = "wrong-state"
    http_status = 400


class NotRunning(WrongState):
    """Nothing of the run goes on that could be stopped."""

    code = "not-running"


class LimitExceeded(SecureDaguError):
    """A declared limit was passed; the message names the limit."""

    code = "limit-exceeded"
    exit_code, http_status, grpc_status = 1, 413, "RESOURCE_EXHAUSTED"


class ConfigError(SecureDaguError):
    """The configuration cannot be used: the operator's move, before start."""

    code = "config"
    exit_code, http_status, grpc_status = 3, 500, "INTERNAL"


class Unauthenticated(SecureDaguError):
    """The caller has not proven who it is."""

    code = "unauthenticated"
    exit_code, http_status, grpc_status = 4, 401, "UNAUTHENTICATED"


class Refused(SecureDaguError):
    """The caller is known and may not do this: an administrator's move."""

    code = "refused"
    exit_code, http_status, grpc_status = 4, 403, "PERMISSION_DENIED"


class OtherTenant(Refused):
    """The run belongs to a tenant that the caller's certificate does not grant."""

    code = "other-tenant"


class Unavailable(SecureDaguError):
    """The other end cannot be reached now. The only family that is retried."""

    code = "unavailable"
    exit_code, http_status, grpc_status = 5, 503, "UNAVAILABLE"


class NoWorker(Unavailable):
    """No worker is there at all."""

    code = "no-worker"


class IntegrityViolation(SecureDaguError):
    """Stored or transferred data is not what was promised: stop and look."""

    code = "integrity"
    exit_code, http_status, grpc_status = 6, 500, "DATA_LOSS"
