"""The contexts of this host: other servers by name (command line reference, section 7).

    <contexts_dir>/<name>.json      0600 in a 0700 folder: it holds the API key as it is
    <contexts_dir>/.current         the name of the one that commands use which name none

A file that others may read is refused, as that of any other secret. `local`, this host, is built in and has no file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from secure_dagu.contexts import address
from secure_dagu.contexts.address import ServerUrl
from secure_dagu.errors import AlreadyExists, InvalidRequest, NotFound, Refused, Unavailable
from secure_dagu.security.secret import Secret

LOCAL = "local"
MAX_KEY = 4096
MAX_DESCRIPTION = 500
MAX_FILE_BYTES = 64 * 1024
TIMEOUT_S = 30
MAX_TIMEOUT_S = 3600
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
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
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all contexts but `local`, sorted."""
        try:
            found = [name.removesuffix(".json") for name in os.listdir(self._folder) if name.endswith(".json")]
        except OSError:
            return []
        return sorted(name for name in found if _NAME.match(name) and name != LOCAL)

    def get(self, name: str) -> Context:
        """Return a context.

        Raises:
            NotFound: there is none.
            Refused: others may read its file.
            Unavailable: its file cannot be read, or is not ours.
        """
        path = self._path(name)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                state = os.fstat(file.fileno())
                data = file.read(MAX_FILE_BYTES) if stat.S_ISREG(state.st_mode) else b""
        except FileNotFoundError:
            raise NotFound(f'context "{name}" not found', fix="see `secure-dagu context list`") from None
        except OSError as error:
            raise Unavailable(f"context {name} cannot be read", why=os.strerror(error.errno or 0)) from error
        if stat.S_IMODE(state.st_mode) & 0o077:
            raise Refused(
                f"context {name} is not used", why=f"group or others may read {path}",
                fix=f"chmod 600 {path}, and if somebody may have read the key, make another one",
            )  # fmt: skip
        if state.st_uid not in (0, os.geteuid()):
            raise Refused(
                f"context {name} is not used", why=f"{path} is another user's, who may say where your key is sent",
                fix="add the context yourself",
            )  # fmt: skip
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
            raise Unavailable(
                f"context {name} cannot be read", why=f"{path} is damaged, or another program's",
                fix="remove it with `secure-dagu context remove`, and add it again",
            ) from None  # fmt: skip

    def add(self, context: Context) -> None:
        """Keep a new context.

        Raises:
            InvalidRequest: a part of it cannot be.
            AlreadyExists: there is one of that name.
        """
        with self._changing(context.name):
            if os.path.lexists(self._path(context.name)):
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
            try:
                self._path(name).unlink()
            except FileNotFoundError:
                raise NotFound(f'context "{name}" not found', fix="see `secure-dagu context list`") from None
            if self.current() == name:
                self._choose(LOCAL)

    def current(self) -> str:
        """Return the name of the current context; it may be gone.

        Raises:
            Unavailable: the file that says it cannot be read.
        """
        path = self._folder / _CURRENT
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
        return name if _NAME.match(name) else LOCAL

    def use(self, name: str) -> None:
        """Make a context the current one.

        Raises:
            NotFound, Refused, Unavailable: it cannot be used.
        """
        if name != LOCAL:
            self.get(name)
        elif not self._folder.is_dir():
            return  # it is the current one
        with self._changing():
            self._choose(name)

    def _choose(self, name: str) -> None:
        self._replace(self._folder / _CURRENT, name.encode() + b"\n")

    def _path(self, name: str) -> Path:
        if not _NAME.match(name):
            raise InvalidRequest(
                f"{name[:64]!r} is no name of a context",
                fix="use at most 64 letters, digits, `_`, `-` and `.`, a letter or digit first",
            )
        return self._folder / f"{name}.json"

    @contextlib.contextmanager
    def _changing(self, name: str = "") -> Iterator[None]:
        """Let one process at a time read and write. `name`: of the context that is changed."""
        if name == LOCAL:
            raise InvalidRequest(
                f"context {LOCAL} cannot be changed", why="it is this host, and built in", fix="take another name"
            )
        if name:
            self._path(name)  # before anything is made
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

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
        self._replace(self._path(context.name), msgspec.json.format(msgspec.json.encode(kept)) + b"\n")

    def _replace(self, path: Path, data: bytes) -> None:
        """Write a file whole, private from the first byte."""
        beside = self._folder / f".{path.name}.{secrets.token_hex(8)}"
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise _unwritable(path, error) from error


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


def _unwritable(path: Path, error: OSError) -> Unavailable:
    return Unavailable("the context cannot be written", why=f"{path}: {os.strerror(error.errno or 0)}")
