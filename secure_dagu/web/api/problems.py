"""Errors of ours, of FastAPI and of the unexpected kind → the error body of the REST API (REST reference, 1.1)."""

from __future__ import annotations

import http

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from secure_dagu import errors
from secure_dagu.web.accounts import TooOften
from secure_dagu.web.api.shapes import encoded

log = structlog.get_logger()

_ANSWERS: tuple[tuple[type[errors.SecureDaguError], int, str], ...] = (
    (errors.DefinitionError, 400, "bad_request"),
    (errors.NotFound, 404, "not_found"),
    (errors.NoMatchingWorker, 503, "no_worker"),
    (errors.NoWorker, 503, "no_worker"),
    (errors.AlreadyExists, 409, "already_exists"),
    (errors.NotRunning, 400, "not_running"),
    (errors.WrongState, 400, "bad_request"),
    (errors.Conflict, 409, "conflict"),
    (errors.LimitExceeded, 413, "payload_too_large"),
    (TooOften, 429, "rate_limited"),
    (errors.Unauthenticated, 401, "unauthorized"),
    (errors.Refused, 403, "forbidden"),
    (errors.Unavailable, 503, "unavailable"),
)
_CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
          408: "timeout", 409: "conflict", 413: "payload_too_large", 429: "rate_limited"}  # fmt: skip
_STREAM_WORDS = frozenset({"unknown_session", "too_many_topics"})
"""What clients of `/events/stream` look for in `error`, beside the body that every error has."""
_UNEXPECTED = "An unexpected error occurred"


def install(app: FastAPI) -> None:
    """Let `app` answer errors as the REST API does."""
    app.add_exception_handler(errors.SecureDaguError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def answer(status: int, code: str, message: str, *, word: str = "", **headers: str) -> Response:
    """Return an error as JSON; `word` is one of those of streams, or empty."""
    body = encoded({"code": code, "message": message, **({"error": word} if word else {})})
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def of(error: errors.SecureDaguError) -> tuple[int, str]:
    """Return status and code of an error of ours."""
    for family, status, code in _ANSWERS:
        if isinstance(error, family):
            return status, code
    return 500, "internal_error"


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.SecureDaguError)
    status, code = of(error)
    request.app.state.api.gate.failed(request, status, error.code)
    if status == 500:
        log.error("web.failed", code=error.code, what=error.what, why=error.why)
        return answer(status, code, _UNEXPECTED)
    message = str(error) + (f"; {error.fix}" if error.fix else "")
    headers = (
        {"WWW-Authenticate": f'{request.app.state.api.gate.challenge} realm="restricted"'} if status == 401 else {}
    )
    if isinstance(error, TooOften):
        headers["Retry-After"] = str(error.wait_s)
    return answer(status, code, message, word=error.what if error.what in _STREAM_WORDS else "", **headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()[:10]]
    return answer(400, "bad_request", "; ".join(told)[:2000])


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "internal_error")
    message = error.detail or http.HTTPStatus(error.status_code).phrase
    return answer(error.status_code, code, str(message), **dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    request.app.state.api.gate.failed(request, 500, "internal-error")
    log.error("web.unexpected", path=request.scope.get("route"), error=type(error).__name__, exc_info=error)
    return answer(500, "internal_error", _UNEXPECTED)
