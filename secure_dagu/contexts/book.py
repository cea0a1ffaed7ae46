"""The contexts of this host: other servers by name (command line reference, section 7).

    <contexts_dir>/<name>.json      with the API key as it is (`store.private_files`)
    <contexts_dir>/.current         the name of the one that commands use which name none

`local`, this host, is built in and has no file.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.contexts import address
from secure_dagu.contexts.address import ServerUrl
from secure_dagu.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable
from secure_dagu.security.secret import Secret
from secure_dagu.store.private_files import PrivateFiles, is_name

LOCAL = "local"
MAX_KEY = 4096
MAX_DESCRIPTION = 500
MAX_FILE_BYTES = 64 * 1024
TIMEOUT_S = 30
MAX_TIMEOUT_S = 3600
_KEY = re.compile(r"[!-~]*\Z")
_CURRENT = ".current"


class Context(Struct, frozen=True, kw_only=True):
    """Another server."""

    name: str
    server: ServerUrl
    api_key: Secret = Secret("")
    """Empty: the server asks for none."""
    description: str = ""
    ca_file: str = ""
    """Whom to believe instead of this host's authorities, PEM."""
    timeout_s: int = TIMEOUT_S
    """For one request."""
    insecure_http: bool = False
    """Whether somebody asked for HTTP without TLS beyond this host, by its name."""


class _Document(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    server: str
    api_key: str
    description: str = ""
    ca_file: str = ""
    timeout_seconds: int = TIMEOUT_S
    insecure_http: bool = False


class Contexts:
    """All contexts of this host."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made with the first one."""
        self._files = PrivateFiles(folder, kind="context", most_bytes=MAX_FILE_BYTES)

    def names(self) -> list[str]:
        """Return the names of all contexts but `local`, sorted."""
        return [name for name in self._files.names() if name != LOCAL]

    def get(self, name: str) -> Context:
        """Return a context.

        Raises:
            NotFound: there is none.
            Refused: others may read its file, or it is another user's, who may say where our key is sent.
            Unavailable: its file cannot be read, or is not ours.
        """
        data = self._files.read(name, only_own=True)
        if data is None:
            raise _unknown(name)
        try:
            found = msgspec.json.decode(data, type=_Document)
            return checked(
                Context(
                    name=name,
                    server=address.parse(found.server),
                    api_key=Secret(found.api_key),
                    description=found.description,
                    ca_file=found.ca_file,
                    timeout_s=found.timeout_seconds,
                    insecure_http=found.insecure_http,
                )
            )
        except (msgspec.MsgspecError, InvalidRequest, UnicodeDecodeError):
            raise self._files.damaged(name) from None

    def add(self, context: Context) -> None:
        """Keep a new context.

        Raises:
            InvalidRequest: a part of it cannot be.
            AlreadyExists: there is one of that name.
        """
        with self._changing(context.name):
            if os.path.lexists(self._files.path(context.name)):
                raise AlreadyExists(
                    f'context "{context.name}" already exists', fix=f"`secure-dagu context update {context.name}`"
                )
            self._write(context)

    def update(self, name: str, **changes: object) -> Context:
        """Change fields of a context; return it.

        Raises:
            InvalidRequest: another server is named and no key for it: the old one must not go there.
        """
        with self._changing(name):
            old = self.get(name)
            new = replace(old, **changes)
            if new.server.origin != old.server.origin and "api_key" not in changes and old.api_key:
                raise InvalidRequest(
                    f"context {name} was not changed", why=f"its key is for {old.server.origin}, not for another",
                    fix="give the key of the new one as well: --api-key-stdin",
                )  # fmt: skip
            self._write(new)
            return new

    def remove(self, name: str) -> None:
        """Remove a context with its key; if it was the current one, `local` is.

        Raises:
            NotFound: there is none.
        """
        with self._changing(name):
            if not self._files.remove(name):
                raise _unknown(name)
            if self.current() == name:
                self._choose(LOCAL)

    def current(self) -> str:
        """Return the name of the current context; it may be gone.

        Raises:
            Unavailable: the file that says it cannot be read.
        """
        path = self._files.folder / _CURRENT
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                name = file.read(256).decode("utf-8", "replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return LOCAL
        except OSError as error:
            raise Unavailable(
                "the current context is not known", why=f"{path}: {os.strerror(error.errno or 0)}",
                fix="say it with --context NAME, or `secure-dagu context use local`",
            ) from error  # fmt: skip
        return name if is_name(name) else LOCAL

    def use(self, name: str) -> None:
        """Make a context the current one.

        Raises:
            NotFound, Refused, Unavailable: it cannot be used.
        """
        if name != LOCAL:
            self.get(name)
        elif not self._files.folder.is_dir():
            return  # it is the current one
        with self._changing():
            self._choose(name)

    def _choose(self, name: str) -> None:
        self._files.write(self._files.folder / _CURRENT, name.encode() + b"\n")

    @contextlib.contextmanager
    def _changing(self, name: str = "") -> Iterator[None]:
        """Let one process at a time read and write. `name`: of the context that is changed."""
        if name == LOCAL:
            raise InvalidRequest(
                f"context {LOCAL} cannot be changed", why="it is this host, and built in", fix="take another name"
            )
        if name:
            self._files.path(name)  # before anything is made
        with self._files.changing():
            yield

    def _write(self, context: Context) -> None:
        checked(context)
        kept = _Document(
            server=str(context.server),
            api_key=context.api_key.reveal(),
            description=context.description,
            ca_file=context.ca_file,
            timeout_seconds=context.timeout_s,
            insecure_http=context.insecure_http,
        )
        self._files.write(self._files.path(context.name), msgspec.json.format(msgspec.json.encode(kept)) + b"\n")


def checked(context: Context) -> Context:
    """Return a context whose parts can be.

    Raises:
        InvalidRequest: one cannot.
    """
    key = context.api_key.reveal()
    if len(key) > MAX_KEY or not _KEY.match(key):
        raise InvalidRequest(
            "the API key cannot be used", why=f"a key has no spaces or other characters, and at most {MAX_KEY}",
            fix="copy it whole, as the server showed it when it was made",
        )  # fmt: skip
    if not 1 <= context.timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest(f"the timeout is {context.timeout_s}", why=f"it is 1 to {MAX_TIMEOUT_S} seconds")
    if len(context.description) > MAX_DESCRIPTION or not context.description.isprintable():
        raise InvalidRequest("the description cannot be kept", why=f"it is one line of at most {MAX_DESCRIPTION}")
    return context


def _unknown(name: str) -> NotFound:
    return NotFound(f'context "{name}" not found', fix="see `secure-dagu context list`")
