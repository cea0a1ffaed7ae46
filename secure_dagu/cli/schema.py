"""`secure-dagu schema`: the JSON schema of workflow files, or of the configuration."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from secure_dagu.cli import output
from secure_dagu.errors import InvalidRequest, NotFound

SUMMARY = "Print the JSON schema of workflow files or of the configuration, or a part of it."
EXAMPLE = "secure-dagu schema dag steps.retry_policy"
KINDS = ("dag", "config")
_Schema = Mapping[str, Any]
_BRANCHES = ("anyOf", "oneOf", "allOf")
_MAX_DEPTH = 50


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("kind", metavar="dag|config", nargs="?", default="", help="which schema")
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="keys with dots between, such as steps.run")


async def run(args: argparse.Namespace) -> int:
    """Print it."""
    if not args.kind:
        raise InvalidRequest("requires at least 1 arg(s), only received 0", fix=f"name one of {', '.join(KINDS)}")
    if args.kind not in KINDS:
        raise InvalidRequest(f"unknown schema '{args.kind}'", fix=f"name one of {', '.join(KINDS)}")
    whole = _schema(args.kind)
    output.print_json(part(whole, args.path) if args.path else whole)
    return 0


def _schema(kind: str) -> dict[str, Any]:
    if kind == "config":
        from secure_dagu.config.schema import config_schema

        return config_schema()
    from secure_dagu.dag.json_schema import dag_schema

    return dag_schema()


def part(whole: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return what a schema says about a key: the dotted path goes through objects, lists and alternatives.

    Raises:
        NotFound: there is no such key; the nearest one at that place is named.
    """
    found: Mapping[str, Any] = whole
    for at, key in enumerate(path.split(".")):
        known = dict(_keys(whole, found, depth=0))
        if key not in known:
            place = ".".join(path.split(".")[:at]) or "the root"
            close = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean {close[0]}?" if close else f"known at {place}: {', '.join(sorted(known)) or 'nothing'}"
            raise NotFound(f"schema path '{path}' not found", why=f"{place} has no {key!r}", fix=fix)
        found = _resolved(whole, known[key])
    return found


def _keys(
    whole: Mapping[str, Any], schema: Mapping[str, Any], *, depth: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the keys below a schema with theirs; the first of several is the last to be yielded, so that it wins."""
    if depth > _MAX_DEPTH:
        return
    schema = _resolved(whole, schema)
    for word in _BRANCHES:
        for branch in reversed(schema.get(word) or ()):
            yield from _keys(whole, branch, depth=depth + 1)
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), Mapping):
            yield from _keys(whole, schema[word], depth=depth + 1)
    yield from (schema.get("properties") or {}).items()


def _resolved(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references within the document."""
    for _ in range(_MAX_DEPTH):
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#/"):
            break
        target: Any = whole
        for word in ref[2:].split("/"):
            target = target[word]
        schema = target
    return schema
