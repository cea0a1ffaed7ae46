"""The wall in front of every method: identify → admit → limit → record, wrapped once around each handler.

It is built when a method is registered, not per call: a gRPC interceptor would cost 25 µs each time.
The order inside one call: who is on this connection (a dictionary lookup), what does the message claim (one parse), may
they (a table), is there room (a counter). A method that is not in the table is refused whoever asks.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from time import perf_counter
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import grpc
import grpc.aio
import structlog
from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.dispatch.model import Caller
from secure_dagu.errors import InvalidRequest, LimitExceeded, OtherTenant, Refused, SecureDaguError, Unavailable
from secure_dagu.security.admission import Allow, Deny, DenyReason, admit
from secure_dagu.security.peer import Peer
from secure_dagu.security.policy import STRICT, Objection, Policy, objection_to_labels
from secure_dagu.security.revocation import deny
from secure_dagu.wire import status

log = structlog.get_logger()

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]
Status = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]


class Cap(Enum):
    """How many calls of a sort one identity may have open at once: its name in errors and the number."""

    POLLS = ("open polls", 1000)
    STREAMS = ("open streams", 256)
    CALLS = ("calls in progress", 512)


class Method(Struct, frozen=True, kw_only=True):
    """One row of the method table.

    Handlers take the proven caller and what was decoded; they return or yield messages that `encode` turns to bytes.
    Exactly one of the three handlers is set.
    """

    path: str
    decode: Callable[[bytes], Any]
    claimed: Callable[[Any], str] | None = None
    """Returns the worker id that a request carries; None where such requests carry none."""
    labels: Callable[[Any], Mapping[str, str]] | None = None
    """Returns the labels that a worker claims in a request; None where such requests carry none."""
    cap: Cap = Cap.CALLS
    kind: str = ""
    """The `grpc_type` label where the handler does not tell it."""
    unary: Callable[[Caller, Any, Context], Awaitable[bytes]] | None = None
    upload: Callable[[Caller, AsyncIterator[Any]], Awaitable[bytes]] | None = None
    download: Callable[[Caller, Any], AsyncIterator[bytes]] | None = None


class Series(Protocol):
    """What is counted for one method."""

    def started(self) -> None:
        """Count the start of a call."""
        ...

    def ended(self, code: str, seconds: float, *, received: int, sent: int) -> None:
        """Count its end: gRPC status name, duration, messages each way."""
        ...


class Recorder(Protocol):
    """Where calls are counted."""

    def method(self, kind: str, service: str, method: str, /) -> Series:
        """Return the series of a method."""
        ...

    def too_large(self) -> None:
        """Count a call that ended because one of its messages was too large."""
        ...


class Denial(Struct, frozen=True, kw_only=True):
    """A call that the wall refused, for the metric and the audit log."""

    method: str
    reason: str
    peer: Peer | None
    claimed_worker: str
    error: SecureDaguError
    labels: Mapping[str, str] = field(default_factory=dict)
    """What it claimed, where that was refused."""


class Gate:
    """Wrap handlers; know the open calls; cut them by peer."""

    def __init__(
        self,
        *,
        peer_of: Callable[[str], Peer | None],
        recorder: Recorder,
        denied: Callable[[Denial], None],
        would_deny: Callable[[Denial], None] = lambda _denial: None,
        policy: Policy = STRICT,
        standing: Callable[[Peer, datetime], DenyReason | None] = lambda _peer, _now: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the register's lookup and who is told.

        Args:
            peer_of: the peer behind the name that gRPC reports (`unix:/…`), None when unknown.
            denied: told of each refusal, by the wall or by the service behind it; must return at once.
            would_deny: told of each call that the policy in dry-run would have refused; must return at once.
            policy: what is refused beyond role and identity; may be assigned later.
            standing: why a peer that was proven may not speak any more (`security.revocation.Standing`); asked at every
                message, so it must cost next to nothing.
        """
        self._peer_of = peer_of
        self._recorder = recorder
        self._denied = denied
        self._would_deny = would_deny
        self.policy = policy
        self._standing = standing
        self._now = now
        self._open: dict[Cap, dict[object, int]] = {cap: {} for cap in Cap}
        self._calls: dict[asyncio.Task[Any], Peer] = {}
        self._cut: dict[asyncio.Task[Any], SecureDaguError] = {}
        self._told: WeakSet[SecureDaguError] = WeakSet()
        self.is_draining = False

    def cut(self, which: Callable[[Peer], bool], error: SecureDaguError) -> Sequence[asyncio.Task[Any]]:
        """End the open polls and streams of some peers with `error`; return them: each is over once it has answered."""
        hit = [task for task, peer in self._calls.items() if which(peer)]
        for task in hit:
            self._cut[task] = error
            task.cancel()
        return hit

    def wrap(self, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler to register for a method."""
        if method.upload is not None:
            return grpc.stream_unary_rpc_method_handler(self._upload(method))
        if method.download is not None:
            return grpc.unary_stream_rpc_method_handler(self._download(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def unknown(self, path: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return a handler that refuses a method outside the table.

        A known peer is told UNIMPLEMENTED, on which newer and foreign clients carry on without the method.
        """

        async def refuse(_requests: AsyncIterator[bytes], context: Context) -> None:
            peer = self._peer_of(context.peer())
            verdict = self._judge(peer, path[:200], None)
            if isinstance(verdict, Deny):
                self._tell(verdict, path[:200], peer, "")
                if peer is None:
                    await context.abort(*_status(verdict.error))
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {path[:200]}")

        return grpc.stream_stream_rpc_method_handler(refuse)

    # -- one call ------------------------------------------------------------------------------------------------------

    def _unary(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        series, call = self._series(method, "unary"), method.unary
        assert call is not None, "a method has a handler"

        async def unary(raw: bytes, context: Context) -> bytes:
            series.started()
            began = perf_counter()
            code = "OK"
            try:
                peer = self._peer_of(context.peer())
                caller, request = self._admit_message(method, peer, raw)
                counts, key = self._enter(method.cap, peer)
                try:
                    return await call(caller, request, context)
                finally:
                    _leave(counts, key)
            except BaseException as error:
                code, answer = self._answer(error, method, context)
                if answer is None:
                    raise
                await context.abort(*answer)
            finally:
                series.ended(code, perf_counter() - began, received=1, sent=code == "OK")

        return unary

    def _upload(self, method: Method) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]:
        series, call = self._series(method, "client_stream"), method.upload
        assert call is not None, "a method has a handler"

        async def upload(requests: AsyncIterator[bytes], context: Context) -> bytes:
            series.started()
            began = perf_counter()
            code, received = "OK", 0
            try:
                peer = self._peer_of(context.peer())
                self._admit(method, peer, None)
                counts, key = self._enter(method.cap, peer)
                try:
                    incoming = aiter(requests)
                    first = await _first(incoming)
                    caller, message = self._admit_message(method, peer, first)
                    received = 1

                    async def messages() -> AsyncIterator[Any]:
                        nonlocal received
                        yield message
                        async for raw in incoming:
                            received += 1
                            # Every message again: a stream must not outlive a certificate, nor change whom it acts as.
                            _, later = self._admit_message(method, peer, raw)
                            yield later

                    return await self._tracked(peer, call(caller, messages()))
                finally:
                    _leave(counts, key)
            except BaseException as error:
                code, answer = self._answer(error, method, context)
                if answer is None:
                    raise
                await context.abort(*answer)
            finally:
                series.ended(code, perf_counter() - began, received=received, sent=code == "OK")

        return upload

    def _download(self, method: Method) -> Callable[[bytes, Context], Awaitable[None]]:
        series, call = self._series(method, "server_stream"), method.download
        assert call is not None, "a method has a handler"

        async def download(raw: bytes, context: Context) -> None:
            series.started()
            began = perf_counter()
            code, sent = "OK", 0

            async def send(caller: Caller, request: Any) -> None:
                nonlocal sent
                answers = call(caller, request)
                try:
                    async for answer in answers:
                        try:
                            await context.write(answer)
                        except Exception as error:
                            raise _GoneError from error
                        sent += 1
                finally:
                    if (close := getattr(answers, "aclose", None)) is not None:
                        await close()

            try:
                peer = self._peer_of(context.peer())
                caller, request = self._admit_message(method, peer, raw)
                counts, key = self._enter(method.cap, peer)
                try:
                    await self._tracked(peer, send(caller, request))
                finally:
                    _leave(counts, key)
            except _GoneError as gone:
                code = "CANCELLED"
                log.debug("call.unanswered", method=method.path, why=str(gone.__cause__)[:200])
            except BaseException as error:
                code, answer = self._answer(error, method, context)
                if answer is None:
                    raise
                await context.abort(*answer)
            finally:
                series.ended(code, perf_counter() - began, received=1, sent=sent)

        return download

    # -- identify, admit, limit ----------------------------------------------------------------------------------------

    def _admit_message(self, method: Method, peer: Peer | None, raw: bytes) -> tuple[Caller, Any]:
        """Return who calls and what was asked."""
        if peer is None or method.claimed is None:
            caller = self._admit(method, peer, None)
            return caller, method.decode(raw)
        now = self._now()
        if (reason := self._standing(peer, now)) is not None:  # before its message is looked at
            raise self._refusal(deny(peer, reason), method, peer, "")
        request = method.decode(raw)
        claimed = method.claimed(request)
        caller = self._allowed(admit(peer, method.path, claimed, now), method, peer, claimed)
        if method.labels is not None:
            labels = method.labels(request)
            objection = objection_to_labels(peer, labels, self.policy)
            if objection is not None:
                self._object(objection, method, peer, claimed, labels)
        return caller, request

    def _admit(self, method: Method, peer: Peer | None, claimed: str | None) -> Caller:
        return self._allowed(self._judge(peer, method.path, claimed), method, peer, claimed or "")

    def _allowed(self, verdict: Allow | Deny, method: Method, peer: Peer | None, claimed: str) -> Caller:
        if isinstance(verdict, Allow):
            return verdict.caller
        raise self._refusal(verdict, method, peer, claimed)

    def _refusal(self, verdict: Deny, method: Method, peer: Peer | None, claimed: str) -> SecureDaguError:
        self._tell(verdict, method.path, peer, claimed)
        return verdict.error

    def _object(
        self, objection: Objection, method: Method, peer: Peer, claimed: str, labels: Mapping[str, str]
    ) -> None:
        """Refuse by the policy, or only say so in dry-run."""
        denial = replace(_denial(objection.deny, method.path, peer, claimed), labels=labels)
        if not objection.is_enforced:
            self._would_deny(denial)
            return
        self._told.add(denial.error)
        self._denied(denial)
        raise denial.error

    def _judge(self, peer: Peer | None, path: str, claimed: str | None) -> Allow | Deny:
        """Decide anew at every message: a link may outlive its certificate, its CA and its rights."""
        now = self._now()
        if peer is not None and (reason := self._standing(peer, now)) is not None:
            return deny(peer, reason)
        return admit(peer, path, claimed, now)

    def _tell(self, verdict: Deny, path: str, peer: Peer | None, claimed: str) -> None:
        self._told.add(verdict.error)
        self._denied(_denial(verdict, path, peer, claimed))

    def _enter(self, cap: Cap, peer: Peer | None) -> tuple[dict[object, int], object]:
        assert peer is not None, "nobody unknown was admitted"
        if self.is_draining and cap is Cap.POLLS:
            raise Unavailable("the coordinator is shutting down")
        counts = self._open[cap]
        key = peer.identity or peer.connection
        count = counts.get(key, 0)
        name, limit = cap.value
        if count >= limit:
            raise LimitExceeded(f"too many {name}", why=f"{peer.identity or 'one connection'} has {limit}, the limit")
        counts[key] = count + 1
        return counts, key

    async def _tracked(self, peer: Peer | None, work: Awaitable[T]) -> T:
        """Await `work` where `cut` can find it."""
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        assert peer is not None, "nobody unknown was admitted"
        self._calls[task] = peer
        try:
            return await work
        finally:
            del self._calls[task]

    # -- record --------------------------------------------------------------------------------------------------------

    def _answer(self, error: BaseException, method: Method, context: Context) -> tuple[str, Status | None]:
        """Return the status name to record and the status to answer with, None where nobody waits for one."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            cut = self._cut.pop(task, None) if task is not None else None
            if cut is None or task is None:
                return "CANCELLED", None
            task.uncancel()
            error = cut
        if isinstance(error, Refused) and error not in self._told:  # by the service: the object is not the caller's
            peer = self._peer_of(context.peer())
            reason = DenyReason.OTHER_TENANT if isinstance(error, OtherTenant) else DenyReason.NOT_OWNER
            self._tell(Deny(reason, error), method.path, peer, "")
        if isinstance(error, SecureDaguError):
            return error.grpc_status, _status(error)
        if isinstance(error, Exception):
            number = uuid.uuid4().hex[:12]
            log.error("call.failed", method=method.path, error_id=number, exc_info=error)
            return "INTERNAL", (grpc.StatusCode.INTERNAL, f"internal error {number}", ())
        return "UNKNOWN", None

    def _series(self, method: Method, kind: str) -> Series:
        service, _, name = method.path[1:].partition("/")
        return self._recorder.method(method.kind or kind, service, name)


class _GoneError(Exception):
    """The answer cannot be sent: the caller went away."""


def _denial(verdict: Deny, path: str, peer: Peer | None, claimed: str) -> Denial:
    verdict.error.reason = verdict.reason.value  # the other end prints the code that is counted and audited here
    return Denial(method=path, reason=verdict.reason.value, peer=peer, claimed_worker=claimed, error=verdict.error)


def _leave(counts: dict[object, int], key: object) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]  # identities come and go; the table must not grow with them


def _status(error: SecureDaguError) -> Status:
    return status.code_of(error), status.details_of(error), status.metadata_of(error)


async def _first(incoming: AsyncIterator[bytes]) -> bytes:
    try:
        return await anext(incoming)
    except StopAsyncIteration:
        raise InvalidRequest("the stream carries no message") from None
