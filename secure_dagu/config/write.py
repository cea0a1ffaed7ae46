"""Add settings to the configuration file: only those that it does not have, everything else stays as it was written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secure_dagu.config.document import read_document
from secure_dagu.config.settings import all_settings
from secure_dagu.errors import ConfigError

Value = str | int | list[str] | dict[str, str]


def add_missing(path: Path, wanted: Mapping[str, Value]) -> tuple[str, ...]:
    """Add each of these keys (`section.field`) that the file does not have; return those that were added.

    The file is replaced in one step and is private if it is new; comments and order are kept.

    Raises:
        ConfigError: the file cannot be read, used or written; nothing has changed then.
    """
    there = read_document(path, all_settings().keys()).found if path.exists() else {}
    missing = {key: value for key, value in wanted.items() if key not in there}
    if missing:
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            _replace(path, _with(text, missing))
        except OSError as problem:
            raise ConfigError(f"{path} cannot be written", why=problem.strerror or str(problem)) from problem
    return tuple(missing)


def _with(text: str, missing: Mapping[str, Value]) -> str:
    """Return the document with these keys."""
    from ruamel.yaml import YAML

    yaml = YAML()  # round trip: keeps comments, order and quotes
    yaml.preserve_quotes = True
    yaml.width = 4096
    document: Any = yaml.load(text)
    if document is None:
        return text + ("\n" if text and not text.endswith("\n") else "") + _dumped(yaml, _nested(missing))
    for section, values in _nested(missing).items():
        written = next((name for name in document if name.lower() == section), section)
        if document.get(written) is None:
            document[written] = {}
        document[written].update(values)
    return _dumped(yaml, document)


def _nested(flat: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    nested: dict[str, dict[str, Value]] = {}
    for key, value in flat.items():
        section, _, field = key.partition(".")
        nested.setdefault(section, {})[field] = value
    return nested


def _dumped(yaml: Any, document: Any) -> str:
    import io

    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as sink:
            os.fchmod(sink.fileno(), mode)
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path.resolve())
    finally:
        temporary.unlink(missing_ok=True)
