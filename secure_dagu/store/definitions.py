"""The DAG directory: read a definition by name. Names cannot climb, links are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_DEFINITION_BYTES = 4 * 1024 * 1024
_SUFFIXES = (".yaml", ".yml")


class DefinitionFolder:
    """Read-only access to one flat folder of YAML files."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it need not exist yet."""
        self._folder = folder

    def text(self, name: str) -> str | None:
        """Return the YAML of `name`, with or without its suffix; None when there is none or the name is not plain.

        Only regular files directly in the folder count (protocol, section 8.2).
        """
        if not name or name.startswith(".") or len(name.encode()) > 200 or any(c in name for c in "/\\\0"):
            return None
        names = [name] if name.endswith(_SUFFIXES) else [name + suffix for suffix in _SUFFIXES]
        for candidate in names:
            data = _read_regular(self._folder / candidate)
            if data is not None:
                return data
        return None


def _read_regular(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_DEFINITION_BYTES:
            return None
        try:
            return file.read(MAX_DEFINITION_BYTES + 1).decode()
        except UnicodeDecodeError:
            return None
