"""The JSON schema of the configuration file, made from the declarations of the settings. Pure."""

from __future__ import annotations

from typing import Any

from secure_dagu.config import known
from secure_dagu.config.settings import SECTIONS, Setting, all_settings

_TEXTS = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}
_SHAPES: dict[str, dict[str, Any]] = {
    "true|false": {"type": "boolean"},
    "TEXT": {"type": "string"},
    "HOST": {"type": "string"},
    "FILE": {"type": "string"},
    "PATH": {"type": "string"},
    "URL": {"type": "string"},
    "SECRET": {"type": "string"},
    "LIST": {"type": "array"},
    "IP|CIDR,…": _TEXTS,
    "DIR": {"type": "string"},
    "PORT": {"type": "integer", "minimum": 0, "maximum": 65535},
    "N": {"type": "integer", "minimum": 0},
    "DURATION": {"type": "string", "examples": ["30s", "1h30m"]},
    "A,B,…": _TEXTS,
    "HOST,…": _TEXTS,
    "HOST:PORT,…": _TEXTS,
    "K=V,…": {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "string"}]},
}
"""By the word that help texts use for a value; one with other words lists its choices."""


def config_schema() -> dict[str, Any]:
    """Return the schema of `config.yaml`. Old names and keys that are not used are allowed and say so."""
    root: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        if section != "core":
            root[section] = _object((cls.__doc__ or "").strip())
    for item in all_settings().values():
        _put(root, item.key, _property(item))
    unused = {"description": "Known to Dagu, not used by this version."}
    for key in sorted(known.UNUSED_KEYS | known.UNUSED_SECTIONS):
        _put(root, key, unused)
    for key, name in known.OLD_NAMES.items():
        _put(root, key, {"description": f"The old name of {name}.", "deprecated": True})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "secure-dagu configuration",
        "type": "object",
        "properties": root,
        "additionalProperties": False,
    }


def _put(properties: dict[str, Any], key: str, shape: dict[str, Any]) -> None:
    """Put the shape of a dotted key where it belongs."""
    first, dot, rest = key.partition(".")
    if dot:
        _put(properties.setdefault(first, _object(""))["properties"], rest, shape)
    else:
        properties.setdefault(first, shape)


def _object(description: str) -> dict[str, Any]:
    said = {"description": description} if description else {}
    return {"type": "object", **said, "properties": {}, "additionalProperties": False}


def _property(item: Setting) -> dict[str, Any]:
    shape = _SHAPES.get(item.word) or {"enum": item.word.split("|")}
    default = f" Default: {item.default}." if item.default else ""
    return {**shape, "description": f"{item.help}{default} Variable: {item.env[0]}."}
