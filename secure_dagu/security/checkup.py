"""What a doctor finds: one result for each check, in the order of the layers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from msgspec import Struct

from secure_dagu.errors import ConfigError, SecureDaguError
from secure_dagu.security.verdict import FAULTS, Reason, Side


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    """It works, and somebody should look."""
    FAIL = "fail"


class Name(StrEnum):
    """The checks, in the order in which they are made: from this host outwards."""

    CONFIG = "config"
    LIBRARY = "library"
    PROXY = "proxy"
    FILES = "files"
    KEY = "key"
    CERTIFICATE = "certificate"
    IDENTITY = "identity"
    LABELS = "labels"
    RENEWAL = "renewal"
    REVOCATION = "revocation"
    NAME = "name"
    ROUTE = "route"
    TLS = "tls"
    GRPC = "grpc"
    CLOCK = "clock"
    ADMISSION = "admission"
    ADVERTISED = "advertised"
    IDLE = "idle"
    API = "api"
    LOGIN = "login"


class Check(Struct, frozen=True, kw_only=True):
    """The result of one check."""

    check: Name
    state: State
    code: str
    """`ok`, or the code of the fault: one of `verdict.FAULTS` where there is one."""
    target: str = ""
    """The file or `host:port` that it is about."""
    what: str
    why: str = ""
    fix: str = ""
    exit_code: int = 0
    """Of a failure (conventions, "Errors"): 3 configuration, 4 not proven or not allowed, 5 cannot be reached now."""


Told = Callable[[Check], None]


def ok(check: Name, what: str, *, target: str = "") -> Check:
    """Return a good result."""
    return Check(check=check, state=State.OK, code="ok", target=target, what=what)


def warn(check: Name, code: str, what: str, *, why: str = "", fix: str = "", target: str = "") -> Check:
    """Return a result that somebody should look at."""
    return Check(check=check, state=State.WARN, code=code, target=target, what=what, why=why, fix=fix)


def failed(check: Name, error: SecureDaguError, *, code: str = "", target: str = "", more: str = "") -> Check:
    """Return a failure as an error tells it; `more` is added to its why."""
    return Check(
        check=check,
        state=State.FAIL,
        code=code or error.reason or error.code,
        target=target,
        what=error.what,
        why="; ".join(part for part in (error.why, more) if part),
        fix=error.fix,
        exit_code=error.exit_code,
    )


def own_fault(check: Name, reason: Reason, detail: str, *, target: str, fix: str = "") -> Check:
    """Return a failure of our own certificate, which the other end would refuse for this reason.

    `fix`: better than what the list of faults knows.
    """
    fault = FAULTS[reason]
    words = fault.server or fault.words(Side.CLIENT)  # what a coordinator would say of it
    why = words.why.replace("its ", "our ", 1)
    known = fault.client.fix if fault.client is not None else words.fix
    return Check(
        check=check,
        state=State.FAIL,
        code=reason.value,
        target=target,
        what=f"our own files are at fault ({reason.value})",
        why=f"{why} ({detail})" if detail else why,
        fix=fix or known,
        exit_code=ConfigError.exit_code,
    )


def exit_code(checks: Iterable[Check]) -> int:
    """Return the exit code: that of the first failure, 0 without one."""
    return next((check.exit_code for check in checks if check.state is State.FAIL), 0)
