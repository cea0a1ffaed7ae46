"""One request to the REST API of another server, bounded in every direction.

The key goes to the server that its context names and to nobody else: redirects are errors, proxies and credentials of
this process's environment are not used, and a connection that is not proven carries nothing. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec
from msgspec import Struct

from secure_dagu import __version__
from secure_dagu.contexts.book import Context
from secure_dagu.errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NoMatchingWorker,
    NotFound,
    NotRunning,
    Refused,
    SecureDaguError,
    Unauthenticated,
    Unavailable,
)
from secure_dagu.link import https
from secure_dagu.link.https import Proven

MAX_ANSWER: Final = 16 * 2**20
"""Bytes of one answer: a run of a thousand steps has about one million."""
MAX_MESSAGE: Final = 500
"""Characters of what a server says of an error."""
CONNECT_S: Final = 10.0
T = TypeVar("T")
Query = Sequence[tuple[str, str]]


LAYERS: Final = {
    "unknown_name": "name",
    "unreachable": "route",
    "timeout": "route",
    "lost": "route",
    "not_http": "api",
    "not_an_api": "api",
    "redirect": "api",
    "too_large": "api",
    "other_name": "api",
    "too_often": "api",
    "server_error": "api",
    "unauthenticated": "login",
    "forbidden": "login",
} | dict.fromkeys(https.CODES, "tls")
"""Code of an error (`reason`) → the layer in which it happened."""


class Answer(Struct, frozen=True, kw_only=True):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    proven: Proven | None = None


class Nothing(Struct, frozen=True):
    """An answer of which nothing is read."""


class _Problem(Struct, frozen=True):
    code: str = ""
    message: str = ""


class Client:
    """A server that a context names."""

    def __init__(self, context: Context, http: httpx.AsyncClient) -> None:
        """Take the context, and a client that was made by `opened`."""
        self.context = context
        self._http = http

    @property
    def where(self) -> str:
        """Return the server as errors name it."""
        return f"{self.context.server.origin} (context {self.context.name})"

    async def get(self, path: str, shape: type[T], query: Query = ()) -> T:
        """Return what is at a path below the API's.

        Raises:
            As `send`; NotFound, Unauthenticated, Refused, Unavailable, …: the server's error as ours.
        """
        return self._read(await self.send("GET", path, query=query), shape)

    async def post(self, path: str, body: Mapping[str, Any], shape: type[T]) -> T:
        """Ask for a change.

        Raises:
            As `get`.
        """
        return self._read(await self.send("POST", path, body=body), shape)

    async def send(
        self, method: str, path: str, *, query: Query = (), body: Mapping[str, Any] | None = None, with_key: bool = True
    ) -> Answer:
        """Send one request and return the answer, whatever its status.

        Raises:
            Unavailable: there is none, or none in time; `reason` says what failed, `LAYERS` in which layer.
            Refused: the server is not proven (tls), or sends us elsewhere.
            LimitExceeded: the answer is too large.
        """
        url = f"{self.context.server}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json"}
        if with_key and self.context.api_key:
            headers["Authorization"] = f"Bearer {self.context.api_key.reveal()}"
        content = None
        if body is not None:
            content, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            async with (
                asyncio.timeout(self.context.timeout_s),
                self._http.stream(method, url, headers=headers, content=content) as answer,
            ):
                return await self._received(answer)
        except TimeoutError:
            raise self._late() from None
        except httpx.TimeoutException:
            raise self._late() from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise self._unreachable(error) from error

    async def _received(self, answer: httpx.Response) -> Answer:
        stream = answer.extensions.get("network_stream")
        connection = stream.get_extra_info("ssl_object") if stream is not None else None
        if 300 <= answer.status_code < 400:
            raise self._elsewhere(answer)
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            # Packed it could unpack to any size; we have asked for it as it is.
            raise coded(
                Unavailable(
                    f"{self.where} was not understood", why="it sends a compressed answer that nobody asked for"
                ),
                "not_an_api",
            )
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > MAX_ANSWER:
                raise coded(
                    LimitExceeded(
                        f"the answer of {self.where} is too large", why=f"the limit is {MAX_ANSWER} bytes",
                        fix="ask for less, such as with --limit",
                    ),
                    "too_large",
                )  # fmt: skip
        return Answer(
            status=answer.status_code, headers=answer.headers, body=bytes(body), proven=https.proven_by(connection)
        )

    def _read(self, answer: Answer, shape: type[T]) -> T:
        if not 200 <= answer.status < 300:
            raise self.problem(answer)
        if shape is Nothing:
            return shape()
        try:
            return decoded(answer, shape)
        except ValueError as error:
            raise self._no_api(str(error)) from error

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────

    def problem(self, answer: Answer) -> SecureDaguError:
        """Return an answer that is an error as one of ours."""
        try:
            told = decoded(answer, _Problem)
        except ValueError:
            told = _Problem()
        name, status = self.context.name, answer.status
        said = told.message[:MAX_MESSAGE].strip()
        why = f"{self.where} says: {said}" if said else f"{self.where} answers {status}"
        match status:
            case 401:
                error: SecureDaguError = Unauthenticated(
                    f"{self.where} does not know who asks",
                    why=said or "it wants an API key, and ours is none of its keys, or its end has come",
                    fix=f"make a key there, then `secure-dagu context update {name} --api-key-stdin`",
                )
                return coded(error, "unauthenticated")
            case 403:
                error = Refused(
                    f"{self.where} does not allow this", why=said or "the role of the key is too low",
                    fix="ask for a key of a role that may",
                )  # fmt: skip
                return coded(error, "forbidden")
            case 404:
                return NotFound(said) if said and told.code == "not_found" else self._no_api("it has no such endpoint")
            case 400 if told.code == "not_running":
                return NotRunning(said)
            case 409 if told.code == "already_exists":
                return AlreadyExists(said)
            case 409:
                return Conflict(said or "the state has moved on", fix="look again, then repeat it")
            case 413:
                return LimitExceeded(said or "the request is too large", why=why)
            case 421:
                error = ConfigError(
                    f"{self.where} is not called so", why=said, fix="use its own name, or set public_url there"
                )
                return coded(error, "other_name")
            case 429:
                wait = answer.headers.get("retry-after", "")
                seconds = f"in {wait} seconds" if wait.isdigit() else "later"
                return coded(
                    Unavailable(f"{self.where} was asked too often", why=said, fix=f"try {seconds}"), "too_often"
                )
            case 503 if told.code == "no_worker":
                return NoMatchingWorker(said)
            case _ if status >= 500 or status == 408:
                return coded(
                    Unavailable(f"{self.where} could not do it", why=why, fix="look at its log"), "server_error"
                )
            case _:
                return InvalidRequest(said or f"{self.where} answers {status}")

    def not_an_api(self, answer: Answer) -> SecureDaguError:
        """Return what is said of an answer that is none of a REST API's."""
        kind = answer.headers.get("content-type", "").partition(";")[0][:60]
        wants_tls = "; it may want https://" if self.context.server.is_plaintext and answer.status == 400 else ""
        return self._no_api(f"it answers {answer.status}" + (f" with {kind}" if kind else "") + wants_tls)

    def _no_api(self, why: str) -> SecureDaguError:
        error = Unavailable(
            f"what answers at {self.context.server} is no REST API of Dagu", why=why,
            fix=f"`secure-dagu context update {self.context.name} --server URL` with the API's own path, which often "
            "ends in /api/v1",
        )  # fmt: skip
        return coded(error, "not_an_api")

    def _elsewhere(self, answer: httpx.Response) -> SecureDaguError:
        to = re.sub(r"[?#].*", "", answer.headers.get("location", ""))[:200]
        if to.startswith("/") and not to.startswith(("//", "/\\")):
            return self._no_api(f"it leads to {to}")  # a page for browsers
        error = Refused(
            f"{self.where} sends us elsewhere", why=f"to {to or 'nowhere'}; the key is for the named server only",
            fix=f"if that is right, `secure-dagu context update {self.context.name} --server URL --api-key-stdin`",
        )  # fmt: skip
        return coded(error, "redirect")

    def _late(self) -> SecureDaguError:
        error = Unavailable(
            f"{self.where} does not answer in time", why=f"nothing whole came within {self.context.timeout_s} s",
            fix=f"look at it and at the way there; `context update {self.context.name} --timeout` waits longer",
        )  # fmt: skip
        return coded(error, "timeout")

    def _unreachable(self, error: Exception) -> SecureDaguError:
        if fault := https.fault_of(error):
            return coded(
                Refused(f"{self.where} is not believed ({fault.code})", why=fault.why, fix=fault.fix), fault.code
            )
        cause = _root(error)
        if isinstance(cause, socket.gaierror | UnicodeError):
            return coded(
                Unavailable(
                    f"{self.where} cannot be found", why=f"nobody knows the name {self.context.server.host}",
                    fix="correct the server's URL, or the name service of this host",
                ),
                "unknown_name",
            )  # fmt: skip
        if isinstance(error, httpx.ConnectError):
            return coded(
                Unavailable(
                    f"{self.where} cannot be reached", why=getattr(cause, "strerror", None) or "it takes no connection",
                    fix="see whether the server runs, and whether a firewall lets this host through",
                ),
                "unreachable",
            )  # fmt: skip
        if isinstance(error, httpx.RemoteProtocolError):
            return coded(
                Unavailable(
                    f"{self.where} broke off", why="it ended the connection, or what it says is no HTTP",
                    fix="see what listens there: it may want https:// instead of http://",
                ),
                "not_http",
            )  # fmt: skip
        why = getattr(cause, "strerror", None) or type(cause).__name__
        return coded(Unavailable(f"the connection to {self.where} was lost", why=why, fix="try again"), "lost")


@asynccontextmanager
async def opened(context: Context) -> AsyncIterator[Client]:
    """Open the way to a server; nothing is sent yet.

    Raises:
        ConfigError: the file of its CA cannot be used.
    """
    server = context.server
    ca = Path(context.ca_file) if context.ca_file else None
    verify: Any = False if server.is_plaintext else https.client_context(ca)
    limits = httpx.Limits(max_connections=4, max_keepalive_connections=4)
    async with httpx.AsyncClient(
        verify=verify, trust_env=False, follow_redirects=False, limits=limits,
        timeout=httpx.Timeout(context.timeout_s, connect=min(CONNECT_S, context.timeout_s)),
        headers={"User-Agent": f"secure-dagu/{__version__}", "Accept-Encoding": "identity"},
    ) as http:  # fmt: skip
        yield Client(context, http)


def decoded(answer: Answer, shape: type[T]) -> T:
    """Return the body of an answer.

    Raises:
        ValueError: it is no JSON, nested too deeply, or of another shape; the text says which.
    """
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ValueError("it is no JSON") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def segment(text: str) -> str:
    """Return a text as one segment of a path.

    Raises:
        InvalidRequest: it would be another place.
    """
    if text in ("", ".", ".."):
        raise InvalidRequest(f"{text!r} is no name")
    return quote(text, safe="")


def coded(error: SecureDaguError, code: str) -> SecureDaguError:
    """Return the error with its stable code: one of `LAYERS`, or of a fault of TLS (`link.https`)."""
    error.reason = code
    return error


def _root(error: BaseException) -> BaseException:
    """Return what began it."""
    seen = [error]
    while (below := error.__cause__ or error.__context__) is not None and below not in seen:
        seen.append(below)
        error = below
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return _root(error.exceptions[0])
    return error
