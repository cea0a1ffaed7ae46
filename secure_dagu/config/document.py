"""Read the YAML file into keys and raw values, with the line of each; say what does not belong there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from secure_dagu.config.known import OLD_NAMES, is_unused
from secure_dagu.config.values import Raw
from secure_dagu.errors import ConfigError
from secure_dagu.trimmed import trimmed

with trimmed(missing=("typing_extensions",)):  # the first to import it; `typing` has what it wants
    from msgspec import Struct

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
"""YAML nodes, counted through aliases: a file of nested aliases stops here instead of filling the memory."""

_CAMEL = re.compile(r"(?<=[a-z0-9])[A-Z]")


class Found(Struct, frozen=True, kw_only=True):
    """One configured key."""

    value: Raw
    line: int


class Document(Struct, frozen=True, kw_only=True):
    """What a file configures, by dotted key, and the keys that it gives for nothing."""

    found: Mapping[str, Found]
    warnings: tuple[str, ...]


def read_document(path: Path, known: Collection[str]) -> Document:
    """Read a configuration file.

    Raises:
        ConfigError: unreadable, not YAML, above a limit, a duplicate or unknown key, or camelCase keys. Every unknown
            key is named with its line and the nearest known one.
    """
    try:
        with path.open("rb") as source:
            data = source.read(MAX_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as problem:
        why = (problem.strerror or str(problem)).lower() if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"failed to read config: open {path}", why=why) from problem
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the configuration file {path} is too large", why=f"the limit is {MAX_BYTES} bytes")
    try:
        entries = list(_entries(_compose(text), known))
    except ValueError as problem:
        raise ConfigError(f"the configuration file {path} cannot be used", why=str(problem)) from problem
    found: dict[str, Found] = {}
    old: dict[str, Found] = {}
    unused, warnings, errors, camel = [], [], [], []
    for key, written, entry in entries:
        if key in OLD_NAMES:
            old[OLD_NAMES[key]] = entry
            warnings.append(f"{path}:{entry.line}: {written} is the old name of {OLD_NAMES[key]}")
        elif key in found:
            errors.append(f"line {entry.line}: {written} is given twice")
        elif key in known:
            found[key] = entry
        elif is_unused(key):
            unused.append(f"{written} (line {entry.line})")
        elif _CAMEL.search(written):
            camel.append(f"{written} -> {_snake(written)}")
        else:
            errors.append(f"line {entry.line}: unknown key {written}{_nearest(key, known)}")
    if camel:
        raise ConfigError(f"{path} uses legacy camelCase keys", why="migrate to snake_case: " + ", ".join(camel))
    if errors:
        raise ConfigError(
            f"{path} has keys that mean nothing",
            why="; ".join(errors[:20]),
            fix="correct or remove them; docs/reference/configuration.md lists every key",
        )
    if unused:
        warnings.append(f"{path}: known to Dagu and not used by this version: {', '.join(unused)}")
    return Document(found=found | old, warnings=tuple(warnings))


def _compose(text: str) -> Any:
    """Parse to YAML's own nodes: they keep the text of every scalar and its line."""
    # Not needed by hosts without a configuration file.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(where + (getattr(problem, "problem", None) or "not valid YAML")) from problem
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _entries(root: Any, known: Collection[str]) -> Iterator[tuple[str, str, Found]]:
    """Yield (dotted key in lower case, the key as written, value) for each key that stands for itself."""
    if root is None or _is_null(root):
        return
    budget = [MAX_NODES]
    if root.id != "mapping":
        raise ValueError("the top level is not a map")
    sections = {
        ".".join(words[:depth]) for words in (key.split(".") for key in known) for depth in range(1, len(words))
    }
    yield from _below(root, "", sections, budget)


def _below(node: Any, prefix: str, sections: Collection[str], budget: list[int]) -> Iterator[tuple[str, str, Found]]:
    for name, value in _pairs(node):
        written = f"{prefix}{name}"
        key = written.lower()
        if _is_null(value) or (value.id == "scalar" and not value.value):
            continue  # nothing is set, as with an empty variable
        if key in sections:
            if value.id != "mapping":
                raise ValueError(f"line {value.start_mark.line + 1}: {written} is not a map")
            yield from _below(value, f"{written}.", sections, budget)
        elif is_unused(key):
            yield key, written, Found(value="", line=value.start_mark.line + 1)
        else:
            yield key, written, _found(value, budget)


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    for key, value in node.value:
        if key.id != "scalar":
            raise ValueError(f"line {key.start_mark.line + 1}: a key is not a word")
        yield key.value, value


def _found(node: Any, budget: list[int]) -> Found:
    return Found(value=_raw(node, budget, depth=0), line=node.start_mark.line + 1)


def _raw(node: Any, budget: list[int], *, depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > 8:
        raise ValueError(f"line {node.start_mark.line + 1}: too much below one key")
    if node.id == "sequence":
        return [_raw(item, budget, depth=depth + 1) for item in node.value]
    if node.id == "mapping":
        pairs: dict[str, Any] = {}
        for key, value in _pairs(node):
            if key in pairs:
                raise ValueError(f"line {value.start_mark.line + 1}: {key} is given twice")
            pairs[key] = _raw(value, budget, depth=depth + 1)
        return pairs
    return "" if _is_null(node) else node.value


def _is_null(node: Any) -> bool:
    return bool(node.id == "scalar" and str(node.tag).endswith(":null"))


def _snake(written: str) -> str:
    return _CAMEL.sub(lambda match: "_" + match.group().lower(), written)


def _nearest(key: str, known: Collection[str]) -> str:
    import difflib  # only a file with a mistake pays for it

    close = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
