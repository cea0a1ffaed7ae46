"""Pages of two documents: the base configuration, and the reference of the REST API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response

from secure_dagu.web.api.deps import Need, spec_tag
from secure_dagu.web.api.system import base_text
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.threads import on_thread

_TITLES = {"system": "System", "accounts": "Accounts", "dags": "Definitions", "dag-runs": "Runs"}
_DEEPEST = 4
_ERROR = "ErrorBody"
_SENTENCE_END = re.compile(r"(?<=\.)\s+")

router = APIRouter(include_in_schema=False)


class Parameter(Struct, frozen=True, kw_only=True):
    """One parameter of an operation, or one key of a body."""

    name: str
    place: str
    type: str
    told: str
    is_required: bool


class Operation(Struct, frozen=True, kw_only=True):
    """One endpoint."""

    method: str
    path: str
    summary: str
    told: str
    role: str
    parameters: tuple[Parameter, ...]
    body: tuple[Parameter, ...]
    answers: tuple[tuple[str, str, str], ...]
    """Status, what it means, and the shape; without the errors that every operation has."""
    refusals: tuple[tuple[str, str, str], ...]
    """The same of all errors."""

    @property
    def anchor(self) -> str:
        """Return its id on the page."""
        return f"{self.method.lower()}-{self.path.strip('/').replace('/', '-').replace('{', '').replace('}', '')}"


class Reference(Struct, frozen=True, kw_only=True):
    """The whole API."""

    about: str
    groups: tuple[tuple[str, tuple[Operation, ...]], ...]
    everywhere: tuple[Parameter, ...]
    """Parameters that every operation takes."""
    refusals: tuple[tuple[str, str], ...]
    """Status and meaning of the errors with the usual body."""
    shapes: tuple[tuple[str, str, tuple[Parameter, ...]], ...]
    """Name of each shape, what it is, and its keys."""

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the shapes."""
        return frozenset(name for name, _, _ in self.shapes)


@router.get("/base-config")
async def base_config(request: Request) -> Response:
    """Show the base configuration that every definition inherits, to change it."""
    services, person = await entered(request, Need.MACHINES)
    text = await on_thread(lambda: base_text(services.parts))
    return render(
        request, person, "base_config.html", text=text, tag=spec_tag(text), file=services.parts.base_config.name,
        may_write=person.may(Need.WRITE) and services.options.write_dags,
    )  # fmt: skip


@router.get("/api-docs")
async def api_docs(request: Request) -> Response:
    """Show the OpenAPI document for people."""
    services, person = await entered(request, Need.READ)
    reference = await on_thread(lambda: _reference(services.parts.api_path))
    return render(request, person, "api_docs.html", reference=reference)


@cache
def _reference(api_path: str) -> Reference:
    from secure_dagu.web.api.document import openapi  # it is made of all endpoints, which takes a moment

    return reference_of(openapi(api_path))


def reference_of(document: Mapping[str, Any]) -> Reference:
    """Return an OpenAPI document as people read it: what every operation has is said once."""
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    everywhere = set.intersection(*({_key(one) for one in item.get("parameters", ())} for item in operations))
    groups = _groups(document, everywhere)
    parts = _mapping(_mapping(document.get("components")).get("schemas"))
    errors = {
        (status, told): None
        for _, found in groups
        for operation in found
        for status, told, kind in operation.refusals
        if kind == _ERROR
    }
    return Reference(
        about=str(document["info"].get("description", "")),
        groups=tuple(groups),
        everywhere=tuple(_parameter(document, one) for one in operations[0].get("parameters", ())
                         if _key(one) in everywhere),
        refusals=tuple(sorted(errors)),
        shapes=tuple((name, str(_mapping(one).get("description", "")), tuple(_keys(document, one)))
                     for name, one in sorted(parts.items())),
    )  # fmt: skip


def _groups(document: Mapping[str, Any], everywhere: Set[tuple[str, str]]) -> list[tuple[str, tuple[Operation, ...]]]:
    found: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            title = _TITLES.get(tag, tag.replace("-", " ").capitalize())
            found.setdefault(title, []).append(_operation(document, path, method, operation, everywhere))
    return [(title, tuple(operations)) for title, operations in found.items()]


def _key(parameter: Mapping[str, Any]) -> tuple[str, str]:
    return parameter["in"], parameter["name"]


def _operation(
    document: Mapping[str, Any],
    path: str,
    method: str,
    operation: Mapping[str, Any],
    everywhere: Set[tuple[str, str]],
) -> Operation:
    told = str(operation.get("description", ""))
    first, *rest = _SENTENCE_END.split(told, maxsplit=1)
    answers = tuple(
        (status, answer.get("description", ""), _answer_shape(document, answer))
        for status, answer in operation.get("responses", {}).items()
    )
    content = _mapping(operation.get("requestBody")).get("content", {})
    body = _mapping(_mapping(content).get("application/json")).get("schema")
    return Operation(
        method=method.upper(),
        path=path,
        summary=first or str(operation.get("summary", "")),
        told=" ".join(rest),
        role=str(operation.get("x-role", "")),
        parameters=tuple(
            _parameter(document, one) for one in operation.get("parameters", ()) if _key(one) not in everywhere
        ),
        body=tuple(_keys(document, body)),
        answers=tuple(one for one in answers if one[0] < "4" or one[2] != _ERROR),
        refusals=tuple(one for one in answers if one[0] >= "4"),
    )


def _parameter(document: Mapping[str, Any], one: Mapping[str, Any]) -> Parameter:
    return Parameter(
        name=one["name"],
        place=one["in"],
        type=shape(document, one.get("schema")),
        told=one.get("description") or _mapping(one.get("schema")).get("description", ""),
        is_required=one.get("required", False),
    )


def _keys(document: Mapping[str, Any], schema: Any) -> Sequence[Parameter]:
    whole = _resolved(document, schema)
    required = whole.get("required", ())
    return [
        Parameter(
            name=name, place="body", type=shape(document, one), told=_mapping(one).get("description", ""),
            is_required=name in required,
        )
        for name, one in _mapping(whole.get("properties")).items()
    ]  # fmt: skip


def _answer_shape(document: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    content = _mapping(answer.get("content"))
    if "application/json" not in content:
        return ", ".join(content)
    return shape(document, content["application/json"].get("schema"))


def shape(document: Mapping[str, Any], schema: Any, depth: int = 0) -> str:
    """Return a schema in a few words: `string`, `list of Run`, `active | paused`."""
    schema = _mapping(schema)
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if choices := schema.get("enum"):
        return " | ".join(str(one) or '""' for one in choices)
    if "const" in schema:
        return str(schema["const"])
    either = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if either and depth < _DEEPEST:
        return " or ".join(dict.fromkeys(shape(document, one, depth + 1) for one in either))
    kind = str(schema.get("type", "any"))
    if kind == "array" and depth < _DEEPEST:
        return f"list of {shape(document, schema.get('items'), depth + 1)}"
    if said := schema.get("format"):
        return f"{kind} ({said})"
    return kind


def _resolved(document: Mapping[str, Any], schema: Any) -> Mapping[str, Any]:
    said = _mapping(schema)
    if "$ref" in said:
        name = str(said["$ref"]).rpartition("/")[2]
        return _mapping(_mapping(_mapping(document.get("components")).get("schemas")).get(name))
    return said


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
