"""`http.request` (workflow language, section 4.2), and the requests of `wait.http`."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import httpx
from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, LimitExceeded, Unavailable
from secure_dagu.run.machine import Result
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import file_access as access
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below
from secure_dagu.runner.masking import raw

CONNECT_S = 30.0
SILENCE_S = 600.0
"""How long the other end may say nothing, where the step sets no timeout."""
MAX_REDIRECTS = 10
MAX_PRINTED = 64 * 2**20
"""Bytes of a body that is printed: it goes into a log file."""
MAX_PARSED = 16 * 2**20
MAX_SAVED = 64 * 2**30
_SCHEMES = ("http", "https")


class Request(Struct, frozen=True):
    """What is asked, resolved and checked."""

    method: str
    url: httpx.URL
    headers: httpx.Headers
    body: bytes | None

    @staticmethod
    def read(options: Options, *, default_method: str = "") -> Request:
        """Read the options that `http.request` and `wait.http` share.

        Raises:
            DefinitionError: a bad method, URL or header.
        """
        method = (options.text("method") or default_method).strip().upper()
        if not (method.isascii() and method.isalpha()):
            raise DefinitionError("with.method is no HTTP method")
        try:
            url = httpx.URL(options.needed("url").strip())
        except (httpx.InvalidURL, ValueError) as error:
            raise DefinitionError("with.url is no URL", why=str(error)) from None
        if url.scheme not in _SCHEMES or not url.host:
            raise DefinitionError("with.url is no URL", why="expected http://host/… or https://host/…")
        if query := options.any("query"):
            url = url.copy_merge_params(_texts(query, "query"))
        headers = _headers(options.any("headers"))
        body = options.any("body")
        if isinstance(body, Mapping | list | tuple):
            headers.setdefault("Content-Type", "application/json")
        content = None if body is None else raw(formats.as_text(body))
        return Request(method, url, headers, content)


def _texts(values: Any, key: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise DefinitionError(f"with.{key} cannot be used", why="expected a map")
    return {
        str(name): [formats.as_text(item) for item in value] if isinstance(value, list) else formats.as_text(value)
        for name, value in values.items()
        if value is not None
    }


def _headers(values: Any) -> httpx.Headers:
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in _texts(values or {}, "headers").items():
        for text in value if isinstance(value, list) else [value]:
            if not name.isascii() or any(char in name + text for char in "\r\n\0"):
                raise DefinitionError(f"with.headers.{name[:80]!r} is no header")
            pairs.append((name.encode(), text.strip().encode(errors="replace")))
    headers = httpx.Headers(pairs)
    # As it is on the other side: compressed data would be unpacked on the way into a file.
    headers.setdefault("Accept-Encoding", "identity")
    headers.setdefault("User-Agent", "secure-dagu")
    return headers


def client(context: StepContext, *, timeout_s: float = 0, skip_verify: bool = False) -> httpx.AsyncClient:
    """Return a client: authorities of this host and of the step's `SSL_CERT_FILE`, nothing else of its environment."""
    limit = httpx.Timeout(timeout_s or SILENCE_S, connect=min(timeout_s or CONNECT_S, CONNECT_S))
    verify = httpx.create_ssl_context(verify=not skip_verify, trust_env=False)
    if not skip_verify:
        authorities = context.env.get("SSL_CERT_FILE")
        try:
            verify.load_default_certs()
            if authorities:
                verify.load_verify_locations(cafile=path_below(context.cwd, authorities))
        except OSError as error:
            raise DefinitionError("SSL_CERT_FILE cannot be read", why=str(error.strerror or error)) from None
    return httpx.AsyncClient(
        verify=verify, timeout=limit, follow_redirects=True, max_redirects=MAX_REDIRECTS, trust_env=False
    )


async def status_of(client: httpx.AsyncClient, request: Request, limit_s: float) -> int:
    """Return the status of the answer, 0 when there is none; the body is not read."""
    try:
        async with (
            asyncio.timeout(limit_s or None),
            client.stream(request.method, request.url, headers=request.headers, content=request.body) as answer,
        ):
            return answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):  # TimeoutError is an OSError
        return 0


async def request(context: StepContext) -> Done:
    """Send a request and print the answer."""
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    asked = Request.read(options)
    timeout_s = options.seconds("timeout", 0)
    return await unless_stopped(context.stop, _request(context, options, asked, timeout_s))


async def _request(context: StepContext, options: Options, asked: Request, timeout_s: float) -> Done:
    complain = context.stderr or context.stdout
    skip_verify = options.boolean("skip_tls_verify")
    if skip_verify:
        complain(
            b"WARNING: skip_tls_verify is set: anybody on the way can read and change this request and its answer\n"
        )
    if options.boolean("debug"):
        names = ", ".join(sorted({name.title() for name in asked.headers}))
        complain(raw(f"{asked.method} {asked.url.copy_with(query=None, userinfo=b'')} (headers: {names})\n"))
    try:
        with _parts(context, options, asked) as parts:
            async with (
                asyncio.timeout(timeout_s or None),
                client(context, timeout_s=timeout_s, skip_verify=skip_verify) as http,
                http.stream(
                    asked.method, asked.url, headers=asked.headers, content=asked.body, files=parts or None
                ) as answer,
            ):
                await _print(context, options, answer)
                status, is_good = answer.status_code, answer.is_success
    except TimeoutError:
        raise Unavailable("the request took too long", why=f"the timeout is {timeout_s:g}s") from None
    except httpx.TooManyRedirects:
        raise Unavailable("the server redirects without end", why=f"more than {MAX_REDIRECTS} redirects") from None
    except httpx.TimeoutException as error:
        raise Unavailable(f"{asked.url.host} does not answer in time", why=type(error).__name__) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"the request to {asked.url.host} failed", why=str(error) or type(error).__name__) from None
    if not is_good:
        return Done(result=Result.FAILED, exit_code=1, error=f"http status code not 2xx: {status}")
    return SUCCESS


Part = tuple[str, tuple[str | None, Any] | tuple[str, BinaryIO, str]]


@contextmanager
def _parts(context: StepContext, options: Options, asked: Request) -> Iterator[list[Part]]:
    """Yield the parts of a multipart body, their files open; none at all without `form` and `files`."""
    form, files = _texts(options.any("form") or {}, "form"), _texts(options.any("files") or {}, "files")
    if asked.body is not None and (form or files):
        raise DefinitionError("with.body excludes form and files")
    parts: list[Part] = [
        (name, (None, text)) for name, value in form.items() for text in (value if isinstance(value, list) else [value])
    ]
    with ExitStack() as stack:
        for name, value in files.items():
            for text in value if isinstance(value, list) else [value]:
                folder, last = stack.enter_context(access.parent(path_below(context.cwd, text)))
                file = stack.enter_context(access.reading(folder, last, follow=True))
                kind = mimetypes.guess_type(last)[0] or "application/octet-stream"
                parts.append((name, (last, file, kind)))
        yield parts


async def _print(context: StepContext, options: Options, answer: httpx.Response) -> None:
    """Print an answer as the options want it; a body that is saved is not printed."""
    silent = options.boolean("silent") and answer.is_success
    output = options.text("output") if answer.is_success else ""
    as_json = options.choice("format", ("json", ""), "") == "json" or options.boolean("json")
    shown: dict[str, Any] = {}
    if not silent:
        shown = {"status_code": answer.status_code, "headers": _grouped(answer)}
        if not as_json:
            context.stdout(raw(_head(answer, shown["headers"])))
    if output:
        await _save(context, answer, output)
    elif as_json:
        shown["body"] = await _parsed(answer)
    else:
        seen = 0
        async for piece in answer.aiter_bytes():
            seen += len(piece)
            _check(seen, MAX_PRINTED)
            context.stdout(piece)
    if as_json and shown:
        context.stdout(raw(formats.pretty_json(shown, 1) + "\n"))


def _head(answer: httpx.Response, headers: Mapping[str, list[str]]) -> str:
    lines = [f"{name}: {value}" for name, values in headers.items() for value in values]
    return "\n".join([f"{answer.status_code} {answer.reason_phrase}".rstrip(), *lines]) + "\n"


def _grouped(answer: httpx.Response) -> dict[str, list[str]]:
    """Return the values of each header, sorted by name; names as `Content-Type`, however they were sent."""
    grouped: dict[str, list[str]] = {}
    for name, value in sorted(answer.headers.multi_items(), key=lambda pair: pair[0]):
        grouped.setdefault("-".join(word.capitalize() for word in name.split("-")), []).append(value)
    return grouped


async def _parsed(answer: httpx.Response) -> Any:
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        _check(len(body), MAX_PARSED)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        if not answer.is_success:
            return body.decode(errors="replace")  # the status is what went wrong
        raise DefinitionError("the body of the answer is not JSON") from None


async def _save(context: StepContext, answer: httpx.Response, output: str) -> None:
    with (
        access.parent(path_below(context.cwd, output), make=True) as (folder, name),
        access.replacing(folder, name, mode=0o644, overwrite=True) as file,
    ):
        seen = 0
        async for piece in answer.aiter_bytes():
            seen += len(piece)
            _check(seen, MAX_SAVED)
            file.write(piece)


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise LimitExceeded("the body of the answer is too large", why=f"the limit is {limit} bytes")
