"""Who may come in (`web.api.deps.Gate`): by login, API key or certificate; and the record of what is changed.

A login in a cookie is sent by the browser whatever page asks for it. So what changes something must come from a page of
ours: with the second secret of the login (`X-CSRF-Token`, or the field `_csrf` of a form), and from our own origin.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from secure_dagu.audit.events import Action, Detail, Event, Outcome, Trail
from secure_dagu.dispatch import model
from secure_dagu.errors import NotFound, Refused, Unauthenticated
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import web_series
from secure_dagu.web.accounts import KEY_PREFIX, Accounts, TooOften
from secure_dagu.web.api.deps import Account, Change, Need
from secure_dagu.web.people import Person, Role, Way

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE: Final = "secure_dagu_login"
HOST_COOKIE: Final = f"__Host-{COOKIE}"

_OF_CERTIFICATE: Final = {model.Role.ADMIN: Role.ADMIN, model.Role.DISPATCHER: Role.OPERATOR}
"""What a client certificate may do here; one of role metrics reads /metrics and nothing else."""

ACTIONS: Final = {
    Change.DAG_CREATE: Action.DAG_CREATED,
    Change.DAG_UPDATE: Action.DAG_UPDATED,
    Change.DAG_RENAME: Action.DAG_RENAMED,
    Change.DAG_DELETE: Action.DAG_DELETED,
    Change.DAG_EXECUTE: Action.RUN_STARTED,
    Change.DAG_EXECUTE_SYNC: Action.RUN_STARTED,
    Change.DAG_ENQUEUE: Action.RUN_ENQUEUED,
    Change.DAG_DEQUEUE: Action.RUN_DEQUEUED,
    Change.DAG_TERMINATE: Action.RUN_CANCELLED,
    Change.DAG_STOP_ALL: Action.RUN_CANCELLED,
    Change.DAG_RETRY: Action.RUN_RETRIED,
    Change.DAG_RESCHEDULE: Action.RUN_RESCHEDULED,
    Change.DAG_SUSPEND: Action.DAG_SUSPENDED,
    Change.DAG_RESUME: Action.DAG_RESUMED,
    Change.RUN_DELETE: Action.RUN_DELETED,
    Change.STEP_STATUS: Action.STEP_CHANGED,
    Change.STEP_APPROVE: Action.STEP_APPROVED,
    Change.STEP_REJECT: Action.STEP_REJECTED,
    Change.STEP_PUSH_BACK: Action.STEP_PUSHED_BACK,
    Change.TASK_COMPLETE: Action.TASK_COMPLETED,
    Change.ARTIFACT_READ: Action.ARTIFACT_READ,
    Change.QUEUE_PAUSE: Action.QUEUE_PAUSED,
    Change.QUEUE_RESUME: Action.QUEUE_RESUMED,
    Change.WORKER_DRAIN: Action.WORKER_DRAINED,
    Change.WORKER_REVOKE: Action.CERTIFICATE_REVOKED,
    Change.BASE_CONFIG: Action.BASE_CONFIG_CHANGED,
    Change.SECRET_CREATE: Action.SECRET_CREATED,
    Change.SECRET_UPDATE: Action.SECRET_UPDATED,
    Change.SECRET_DELETE: Action.SECRET_DELETED,
    Change.AUDIT_READ: Action.AUDIT_READ,
    Change.AUDIT_EXPORT: Action.AUDIT_EXPORTED,
    Change.AUDIT_VERIFY: Action.AUDIT_VERIFIED,
}
"""How the audit log calls what somebody changes."""


class Rules(Struct, frozen=True, kw_only=True):
    """What an installation decided about access."""

    mode: str = "builtin"
    """`builtin`, `basic` or `none`."""
    basic_username: str = ""
    basic_password: str = ""
    write_dags: bool = True
    run_dags: bool = True
    origins: frozenset[str] = frozenset()
    """Origins beside our own whose pages may change something."""


class Doorkeeper:
    """The gate of one web server."""

    def __init__(
        self,
        accounts: Accounts,
        trail: Trail,
        rules: Rules,
        *,
        standing: Callable[[Peer], str] = lambda _peer: "",
    ) -> None:
        """Take who there is, where it is recorded, and what was decided.

        `standing`: why a certificate that was proven at the handshake is not good any more; empty: it is.
        """
        self.accounts, self._trail, self._rules, self._standing = accounts, trail, rules, standing

    @property
    def challenge(self) -> str:
        """Return the scheme of credentials (`web.api.deps.Gate.challenge`): for `Basic` a browser asks its user."""
        return "Basic" if self._rules.mode == "basic" else "Bearer"

    # ── coming in ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, request: Request, need: Need) -> Person:
        """Return who asks (`web.api.deps.Gate.admit`)."""
        try:
            person = self.who(request)
            self._check(request, person, need)
        except (Unauthenticated, Refused) as error:
            self._trail.note(_denied(request, error))
            raise
        return person

    def who(self, request: Request) -> Person:
        """Return whose credentials a request carries; those in a header win over a cookie, a cookie over a certificate.

        Raises:
            Unauthenticated: it carries none that are good.
        """
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        if self._rules.mode == "none":
            return Person(name="anonymous", role=Role.ADMIN, way=Way.NONE)
        if scheme.lower() == "basic" and self._rules.mode == "basic":
            return self._basic(said.strip(), address=address_of(request))
        if scheme.lower() == "bearer" and self._rules.mode == "builtin":
            said = said.strip()
            return self._of_key(said) if said.startswith(KEY_PREFIX) else self.accounts.of_token(said)
        if scheme:
            raise Unauthenticated("these credentials are not taken here", fix=f"auth.mode is {self._rules.mode}")
        if cookie := request.cookies.get(_cookie_name(request)):
            return replace(self.accounts.of_token(cookie), in_cookie=True)
        peer = request.scope.get("peer")
        if isinstance(peer, Peer) and peer.identity is not None:
            if reason := self._standing(peer):
                raise Unauthenticated("the client certificate is not good any more", why=reason)
            return _of_peer(peer)
        raise Unauthenticated("nobody is logged in", fix="log in, or send `Authorization: Bearer` with an API key")

    def _of_key(self, said: str) -> Person:
        try:
            return self.accounts.of_key(said)
        except Unauthenticated:
            web_series.LOGINS.labels(Way.API_KEY.value, "bad_credentials").inc()
            raise

    def _basic(self, said: str, *, address: str) -> Person:
        try:
            name, _, password = base64.b64decode(said, validate=True).decode().partition(":")
        except ValueError:
            name = password = ""
        rules, attempts, now = self._rules, self.accounts.attempts, time.monotonic()
        if wait := attempts.wait_s(f"address:{address}", now=now):
            web_series.LOGINS.labels(Way.BASIC.value, "rate_limited").inc()
            raise TooOften(wait)
        fits = hmac.compare_digest(name.encode(), rules.basic_username.encode())
        fits &= hmac.compare_digest(password.encode(), rules.basic_password.encode())
        if not fits or not rules.basic_password:
            attempts.failed(f"address:{address}", now=now)
            web_series.LOGINS.labels(Way.BASIC.value, "bad_credentials").inc()
            raise Unauthenticated("Invalid username or password")
        attempts.forget(f"address:{address}")
        return Person(name=name, role=Role.ADMIN, way=Way.BASIC)

    def _check(self, request: Request, person: Person, need: Need) -> None:
        if person.only_metrics and not request.url.path.endswith("/metrics"):
            raise Refused("this certificate reads /metrics and nothing else")
        if not person.may(need):
            raise Refused("Insufficient permissions", why=f"the role {person.role.value} may not do this")
        rules = self._rules
        if (need is Need.WRITE and not rules.write_dags) or (need is Need.RUN and not rules.run_dags):
            raise Refused("Permission denied", why="this installation does not allow it (permissions)")
        if request.method not in SAFE:
            self.check_origin(request, person)

    def check_origin(self, request: Request, person: Person | None) -> None:
        """Check that a change comes from a page of ours, where the browser itself might have sent the credentials.

        Raises:
            Refused: it came from elsewhere, or without the second secret of the login.
        """
        by_browser = person is None or person.in_cookie or person.way in (Way.NONE, Way.CERTIFICATE, Way.BASIC)
        if not by_browser:
            return
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused("this request comes from another site")
        origin = request.headers.get("origin")
        if origin is not None and not self._is_ours(request, origin):
            raise Refused("this request comes from another site", why=f"its origin is {origin[:100]!r}")
        if person is not None and person.in_cookie:
            said = request.headers.get("x-csrf-token", "")
            if not self.accounts.sessions.is_form_token(person.session, said):
                raise Refused("the form token is missing or not that of this login", fix="load the page again")

    def _is_ours(self, request: Request, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
            return f"{parts.scheme}://{parts.netloc}" in self._rules.origins or (
                parts.netloc.lower() == request.headers.get("host", "").lower()
            )
        except ValueError:
            return False

    async def still_good(self, account: Account) -> bool:
        """Tell whether a login, or key, is still one (`web.api.deps.Gate.still_good`)."""
        assert isinstance(account, Person)
        if account.expires_at is not None and account.expires_at <= datetime.now(UTC):
            return False
        try:
            if account.key_id:
                self.accounts.api_key(account.key_id)
            return not account.user_id or not self.accounts.user(account.user_id).is_disabled
        except NotFound:
            return False

    # ── logging in and out ───────────────────────────────────────────────────────────────────────────────────────────

    async def set_up(self, request: Request, username: str, password: str, *, token: str) -> tuple[str, Person]:
        """Make the first admin and log in (`Accounts.set_up`). A stranger who may not is recorded as one who tried."""
        try:
            self.check_origin(request, None)
            self.accounts.check_open(token)
        except Refused as error:
            self._trail.note(_denied(request, error))
            raise
        nobody = Person(name="setup", role=Role.ADMIN, way=Way.NONE)
        await self.note(request, nobody, Action.ACCOUNT_SET_UP, f"user:{username[:64]}")
        return await self.accounts.set_up(username, password, token=token)

    async def log_in(self, request: Request, username: str, password: str) -> tuple[str, Person]:
        """Log somebody in by password; it is recorded either way (`Accounts.log_in`)."""
        try:
            self.check_origin(request, None)
            self._check_mode()
            token, person = await self.accounts.log_in(username, password, address=address_of(request))
        except (Unauthenticated, Refused) as error:
            result = "rate_limited" if isinstance(error, TooOften) else "bad_credentials"
            web_series.LOGINS.labels(Way.PASSWORD.value, result).inc()
            await self._trail.record(
                Event(
                    action=Action.LOGIN, outcome=Outcome.DENIED, address=address_of(request), reason=result,
                    target="login", details={Detail.CLAIMED: username[:64], Detail.VIA: Way.PASSWORD.value},
                )
            )  # fmt: skip
            raise
        web_series.LOGINS.labels(Way.PASSWORD.value, "ok").inc()
        await self._trail.record(
            Event(
                action=Action.LOGIN, actor=actor_of(person), address=address_of(request), target="login",
                details={Detail.VIA: person.way.value},
            )
        )  # fmt: skip
        return token, person

    def _check_mode(self) -> None:
        if self._rules.mode != "builtin":
            raise Refused("there is no login here", why=f"auth.mode is {self._rules.mode}")

    def log_out(self, request: Request, person: Person) -> None:
        """End the login of a request."""
        self.accounts.log_out(person)
        self._trail.note(
            Event(
                action=Action.LOGOUT, actor=actor_of(person), address=address_of(request), target="login",
                details={Detail.VIA: person.way.value},
            )
        )  # fmt: skip

    def form_token(self, person: Person) -> str:
        """Return what a page of this login puts into its forms."""
        return self.accounts.sessions.form_token(person.session) if person.session else ""

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def record(self, request: Request, account: Account, change: Change, target: str) -> None:
        """Write a change into the audit log (`web.api.deps.Gate.record`)."""
        assert isinstance(account, Person)
        await self.note(request, account, ACTIONS[change], target)

    async def note(self, request: Request, person: Person, action: Action, target: str, what: str = "") -> None:
        """Write what somebody is about to do into the audit log.

        Raises:
            Unavailable: it cannot be written; then it must not happen.
        """
        event = Event(
            action=action, actor=actor_of(person), serial=person.serial, address=address_of(request), target=target,
            details={Detail.VIA: person.way.value, **({Detail.WHAT: what} if what else {})},
        )  # fmt: skip
        await self._trail.record(event)
        request.state.recorded = [*getattr(request.state, "recorded", ()), event]

    def failed(self, request: Request, status: int, reason: str) -> None:
        """Note that what was recorded for a request did not happen (`web.api.deps.Gate.failed`)."""
        outcome = Outcome.DENIED if status in (401, 403, 429) else Outcome.FAILED
        for event in getattr(request.state, "recorded", ()):
            self._trail.note(replace(event, outcome=outcome, reason=reason))
        request.state.recorded = []


def set_cookie(request: Request, response: Response, token: str, person: Person) -> None:
    """Put a login into the browser: no script reads it, and no other site sends it."""
    assert person.expires_at is not None, "a login has an end"
    response.set_cookie(
        _cookie_name(request), token, expires=person.expires_at, path="/", secure=_is_https(request), httponly=True,
        samesite="strict",
    )  # fmt: skip


def clear_cookie(request: Request, response: Response) -> None:
    """Take the login out of the browser."""
    response.delete_cookie(_cookie_name(request), path="/", secure=_is_https(request), httponly=True, samesite="strict")


def address_of(request: Request) -> str:
    """Return where a request comes from, as `web.walls` found it out."""
    client = request.scope.get("client")
    return str(client[0]) if client else ""


def actor_of(person: Person) -> str:
    """Return how somebody is written in the audit log."""
    if person.way is Way.CERTIFICATE:
        return person.name
    return person.name if person.way is Way.API_KEY else f"user:{person.name}"


def _cookie_name(request: Request) -> str:
    return HOST_COOKIE if _is_https(request) else COOKIE


def _is_https(request: Request) -> bool:
    return bool(request.scope.get("scheme") == "https")


def _of_peer(peer: Peer) -> Person:
    identity = peer.identity
    assert identity is not None, "asked only of the proven"
    role = _OF_CERTIFICATE.get(identity.role)
    is_scraper = identity.role is model.Role.METRICS
    if role is None and not is_scraper:
        raise Unauthenticated(
            f"a certificate of role {identity.role.value} does not log in here",
            fix="use one of role admin or dispatcher, or a password",
        )
    return Person(
        name=identity.uri, role=role or Role.VIEWER, way=Way.CERTIFICATE, serial=f"{peer.serial:x}",
        expires_at=peer.not_after, only_metrics=is_scraper,
    )  # fmt: skip


def _denied(request: Request, error: Unauthenticated | Refused) -> Event:
    route = request.scope.get("route")
    path = str(getattr(route, "path", request.url.path))[:200]
    reason = "auth_failed" if isinstance(error, Unauthenticated) else "role_not_allowed"
    return Event(
        action=Action.CALL_DENIED, outcome=Outcome.DENIED, address=address_of(request), reason=reason,
        target=f"method:{request.method} {path}", details={Detail.WHAT: error.what},
    )  # fmt: skip
