"""`/secrets`: managed secrets by reference, which can be written and never read (REST reference, section 12)."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import Field, SecretStr
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.errors import NotFound
from secure_dagu.security.secret import Secret
from secure_dagu.store.secret_files import GLOBAL, MAX_SECRET, SecretInfo
from secure_dagu.web.api.bodies import Body
from secure_dagu.web.api.deps import Api, Auditor, Change, recorded, reply
from secure_dagu.web.api.shapes import moment
from secure_dagu.web.threads import on_thread

router = APIRouter(tags=["secrets"])

_PATTERN = r"^[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)*$"
_MAX_REF = 200
Ref = Annotated[str, Path(pattern=_PATTERN, max_length=_MAX_REF, description="As `ref` of a definition names it.")]
Value = Annotated[SecretStr, Field(min_length=1, max_length=MAX_SECRET, description="Text; it is never shown again.")]


class NewSecret(Body):
    """A secret to keep."""

    ref: Annotated[str, Field(pattern=_PATTERN, max_length=_MAX_REF)]
    value: Value


class SecretValue(Body):
    """The next value of a secret."""

    value: Value


class SecretShape(TypedDict):
    """What is told of a secret; `unusable`: others may read its file, so no run gets it."""

    ref: str
    status: Literal["active", "unusable"]
    updatedAt: str


class SecretResponse(TypedDict):
    """One secret, without its value."""

    secret: SecretShape


class SecretList(TypedDict):
    """All secrets, without their values."""

    secrets: list[SecretShape]


@router.get("/secrets", response_model=SecretList)
async def list_secrets(request: Request, parts: Api, _: Auditor) -> Response:
    """List managed secrets by reference, without their values."""
    found = await on_thread(lambda: parts.secrets.list(GLOBAL))
    return reply(request, {"secrets": [_shape(info) for info in found]})


@router.post("/secrets", status_code=201, response_model=SecretResponse)
async def create_secret(request: Request, parts: Api, _: Auditor, body: NewSecret) -> Response:
    """Keep a new secret, which a definition names by `ref`. Its value is shown nowhere, now or later."""
    await recorded(request, Change.SECRET_CREATE, _target(body.ref))
    value = Secret(body.value.get_secret_value())
    kept = await on_thread(lambda: parts.secrets.put(GLOBAL, body.ref, value, is_new=True))
    return reply(request, {"secret": _shape(kept)}, status=201)


@router.get("/secrets/{ref:path}", response_model=SecretResponse)
async def get_secret(request: Request, parts: Api, _: Auditor, ref: Ref) -> Response:
    """Show what is known of a secret, without its value."""
    found = await on_thread(lambda: parts.secrets.info(GLOBAL, ref))
    if found is None:
        raise NotFound(f"there is no secret {ref!r}")
    return reply(request, {"secret": _shape(found)})


@router.put("/secrets/{ref:path}", response_model=SecretResponse)
async def rotate_secret(request: Request, parts: Api, _: Auditor, ref: Ref, body: SecretValue) -> Response:
    """Give a secret another value; runs that begin from now on get it."""
    await recorded(request, Change.SECRET_UPDATE, _target(ref))
    value = Secret(body.value.get_secret_value())
    kept = await on_thread(lambda: parts.secrets.put(GLOBAL, ref, value, is_new=False))
    return reply(request, {"secret": _shape(kept)})


@router.delete("/secrets/{ref:path}", status_code=204, response_model=None)
async def delete_secret(request: Request, parts: Api, _: Auditor, ref: Ref) -> Response:
    """Remove a secret; runs that name it fail before their first step."""
    await recorded(request, Change.SECRET_DELETE, _target(ref))
    await on_thread(lambda: parts.secrets.delete(GLOBAL, ref))
    return Response(status_code=204)


def _target(ref: str) -> str:
    return f"secret:{GLOBAL}/{ref}"


def _shape(info: SecretInfo) -> SecretShape:
    return {
        "ref": info.ref,
        "status": "active" if info.is_private else "unusable",
        "updatedAt": moment(info.updated_at),
    }
