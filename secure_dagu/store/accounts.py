"""Users and API keys as private files, one JSON document each, in Dagu's layout: `<uuid>.json`.

A folder is read again when it changed, so that several servers on one folder, and a restored backup, are seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from secure_dagu.errors import Unavailable
from secure_dagu.store import whole

log = structlog.get_logger()

_FILE = re.compile(r"[0-9A-Za-z-]{1,64}\.json\Z")
MAX_BYTES = 64 * 1024
MAX_FILES = 10_000


class AccountFolder:
    """The documents of one folder, by id. Methods block for the time of a small file."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made with the first document."""
        self._folder = folder
        self._seen: object = None
        self._documents: dict[str, dict[str, Any]] = {}

    def all(self) -> Mapping[str, dict[str, Any]]:
        """Return every document by id; one that cannot be read is left out and said once."""
        seen = self._sign()
        if seen != self._seen:
            self._documents = self._read()
            self._seen = seen
        return self._documents

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Write one, whole; it is on disk when this returns.

        Raises:
            Unavailable: the disk refuses.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole.replace(self._folder / f"{key}.json", json.dumps(document, ensure_ascii=False, indent=1).encode())
        except OSError as error:
            raise Unavailable(
                "the account cannot be written", why=f"{self._folder}: {os.strerror(error.errno or 0)}",
                fix="look at the disk and the rights of paths.data_dir",
            ) from error  # fmt: skip
        self._seen = None

    def remove(self, key: str) -> None:
        """Remove one, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / f"{key}.json")
            whole.sync(self._folder)
        self._seen = None

    def claim(self, name: str) -> bool:
        """Make an empty marker file; False if somebody made it before: of many processes one wins."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        return True

    def release(self, name: str) -> None:
        """Remove a marker file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / name)

    def _sign(self) -> object:
        try:
            found = os.stat(self._folder)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ino

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            names = sorted(name for name in os.listdir(self._folder) if _FILE.match(name))[:MAX_FILES]
        except OSError:
            return {}
        found = {}
        for name in names:
            try:
                handle = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                with os.fdopen(handle, "rb") as file:
                    document = json.loads(file.read(MAX_BYTES))
                if isinstance(document, dict) and document.get("id") == name.removesuffix(".json"):
                    found[document["id"]] = document
                    continue
            except (OSError, ValueError, RecursionError):
                pass
            log.warning("accounts.unreadable", file=name)
        return found
