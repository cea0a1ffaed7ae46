"""Managed secrets as files: `<directory>/<workspace or .global>/<reference>`, readable by their owner only."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NoReturn

import structlog

from secure_dagu.errors import NotFound, PreconditionFailed, SecureDaguError
from secure_dagu.security.secret import Secret
from secure_dagu.store.folder import Folder

log = structlog.get_logger()
MAX_SECRET = 64 * 1024


class SecretFiles:
    """Read secrets by reference. A file that others may read is no secret and is refused."""

    def __init__(self, directory: Path) -> None:
        self._folder = Folder(directory)

    def get(self, workspace: str, ref: str) -> Secret | None:
        """Return a secret without the newline that editors leave at the end; None when there is none.

        Raises:
            PreconditionFailed: the file may be read by others, is too large, or is no text. The log names the file.
        """
        *folders, name = ref.split("/")
        try:
            fd = self._folder.open_read((workspace, *folders), name)
        except NotFound:
            return None
        except SecureDaguError:  # a link or a file stands where a folder should
            return None
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if stat.S_IMODE(info.st_mode) & 0o077:
                self._refuse(workspace, ref, "group or others may read the file; chmod 600 it")
            data = file.read(MAX_SECRET + 1)
        if len(data) > MAX_SECRET:
            self._refuse(workspace, ref, f"the file is larger than {MAX_SECRET} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self._refuse(workspace, ref, "the file is not UTF-8 text")
        return Secret(text.removesuffix("\n").removesuffix("\r"))

    def _refuse(self, workspace: str, ref: str, why: str) -> NoReturn:
        log.error("secret.unusable", workspace=workspace, ref=ref, why=why)
        raise PreconditionFailed("the secret cannot be served", fix="an operator finds the reason in the log")
