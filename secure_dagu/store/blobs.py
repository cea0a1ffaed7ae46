"""Logs, artifacts and bundles as files. Where each lives is decided here and nowhere else.

Logs:      <logs>/<safe(root dag)>/<safe(root run)>/<safe(attempt)>/<step>.stdout.log   (protocol, section 5.3)
Artifacts: <artifacts>/<safe(dag)>/<folder of the run>/<relative path>                   (section 6.2)
Bundles:   <bundles>/<first two digits>/<digest>.tar.gz                                  (section 7)
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from msgspec import Struct

from secure_dagu.dispatch.model import ArtifactInfo, LogStream
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.run.model import AttemptId, DagRunRef
from secure_dagu.store.folder import Folder, checked_name, write_failure

MAX_SAFE_NAME = 100
MAX_ARTIFACT_DEPTH = 64
MAX_ARTIFACT_PATH = 4096
TEMPORARY = ".dagu-artifact-"

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SUFFIX = {LogStream.STDOUT: ".stdout.log", LogStream.STDERR: ".stderr.log", LogStream.UNSPECIFIED: ".log"}


def safe(name: str) -> str:
    """Return a name as a path component: others than `[A-Za-z0-9_-]` become `_`, at most 100 (protocol, 2.2)."""
    return _UNSAFE.sub("_", name)[:MAX_SAFE_NAME]


def log_stem(step: str) -> str:
    """Return the file stem of a step's logs: its name as it is when that is safe, else made safe plus a hash.

    Two steps whose safe names collide keep apart; a script that builds the path of a plainly named step still works.
    """
    plain = safe(step)
    return plain if plain == step else f"{plain}-{sha256(step.encode()).hexdigest()[:8]}"


def log_name(step: str, stream: LogStream) -> str:
    """Return the file name of one stream of a step."""
    if stream is LogStream.SCHEDULER:
        return "scheduler.log"
    stem = log_stem(step)
    if stream is LogStream.UNSPECIFIED and stem == "scheduler":
        stem = f"{stem}-step"  # a step of that name must not write the run's own log
    return stem + _SUFFIX[stream]


class LogPlace(Struct, frozen=True):
    """The log folder of one attempt, as path components."""

    root: DagRunRef
    attempt_id: AttemptId

    @property
    def parts(self) -> tuple[str, str, str]:
        """Return the components below the log directory."""
        return safe(self.root.name), safe(self.root.run_id), safe(self.attempt_id)


class Blobs:
    """Open files for those who stream. Calls are short system calls and run where they are made."""

    def __init__(self, *, logs: Path, artifacts: Path, bundles: Path) -> None:
        """Take the three directories, made when first written to."""
        self.logs = Folder(logs)
        self._artifacts = Folder(artifacts)
        self._bundles = Folder(bundles)

    # -- logs ---------------------------------------------------------------------------------------------------------

    def log_folder(self, place: LogPlace) -> str:
        """Return the folder of an attempt's logs as text, for status documents."""
        return "/".join((str(self.logs.root), *place.parts))

    def open_log(self, place: LogPlace, step: str, stream: LogStream) -> int:
        """Open a log for writing and return its descriptor."""
        return self.logs.open_write(place.parts, log_name(step, stream))

    def read_log(self, place: LogPlace, step: str, stream: LogStream) -> int:
        """Open a log for reading and return its descriptor.

        Raises:
            NotFound: nothing was written.
        """
        return self.logs.open_read(place.parts, log_name(step, stream))

    def log_bytes(self, place: LogPlace) -> int:
        """Return the size of all logs of an attempt."""
        try:
            with self.logs.directory(place.parts, create=False) as fd, os.scandir(fd) as entries:
                return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        except NotFound:
            return 0

    def remove_logs(self, place: LogPlace) -> None:
        """Remove the logs of an attempt, and the folder of its root run once that is empty."""
        self.logs.remove(place.parts)
        self.logs.remove_empty(place.parts[:-1])

    # -- artifacts ----------------------------------------------------------------------------------------------------

    def new_archive(self, dag: str, folder: str, *, other: str) -> str:
        """Make the artifact folder of a run and return it relative to the artifact directory.

        A folder that exists belongs to somebody else, so `other` is appended then.
        """
        for name in (folder, f"{folder}-{other}"):
            if self._artifacts.make_new((safe(dag), name)):
                return f"{safe(dag)}/{name}"
        return f"{safe(dag)}/{folder}-{other}"

    def archive_folder(self, archive: str) -> str:
        """Return the artifact folder as text, for status documents."""
        return f"{self._artifacts.root}/{archive}"

    def new_artifact(self, archive: str, path: str) -> NewFile:
        """Begin an artifact file.

        Raises:
            InvalidRequest: the path climbs, is too long or too deep, or something is in its way.
        """
        *folders, name = artifact_parts(path)
        return NewFile(self._artifacts, (*archive.split("/"), *folders), name)

    def artifacts(self, archive: str) -> list[ArtifactInfo]:
        """List the artifact files in lexical order: regular files only."""
        found: list[ArtifactInfo] = []
        try:
            with self._artifacts.directory(archive.split("/"), create=False) as fd:
                for folder, names, files, at in os.fwalk(".", dir_fd=fd, follow_symlinks=False):
                    names.sort()
                    for name in files:
                        info = os.stat(name, dir_fd=at, follow_symlinks=False)
                        if stat.S_ISREG(info.st_mode) and not name.startswith(TEMPORARY):
                            path = os.path.normpath(os.path.join(folder, name))
                            found.append(ArtifactInfo(path=path, size_bytes=info.st_size))
        except NotFound:
            return []
        return sorted(found, key=lambda info: info.path)

    def read_artifact(self, archive: str, path: str) -> int:
        """Open an artifact for reading and return its descriptor.

        Raises:
            NotFound: there is none.
        """
        *folders, name = artifact_parts(path)
        return self._artifacts.open_read((*archive.split("/"), *folders), name)

    def remove_artifacts(self, archive: str) -> None:
        """Remove the artifact folder of a run."""
        self._artifacts.remove(archive.split("/"))

    # -- bundles ------------------------------------------------------------------------------------------------------

    def has_bundle(self, digest: str) -> bool:
        """Tell whether a bundle is stored."""
        with contextlib.suppress(NotFound):
            os.close(self.read_bundle(digest))
            return True
        return False

    def new_bundle(self, digest: str) -> NewFile:
        """Begin a bundle file."""
        return NewFile(self._bundles, (checked_digest(digest)[:2],), f"{digest}.tar.gz")

    def read_bundle(self, digest: str) -> int:
        """Open a bundle for reading and return its descriptor.

        Raises:
            NotFound: it is not stored.
        """
        return self._bundles.open_read((checked_digest(digest)[:2],), f"{digest}.tar.gz")


class NewFile:
    """A file that becomes visible only when it is complete. Leave the context without `keep` and nothing remains."""

    def __init__(self, folder: Folder, parts: tuple[str, ...], name: str) -> None:
        """Begin it under a temporary name beside its place."""
        self._folder = folder
        self._parts = parts
        self._name = checked_name(name)
        self._temporary = f"{TEMPORARY}{secrets.token_hex(8)}"
        self._fd = folder.open_write(parts, self._temporary, exclusive=True)
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise write_failure(error) from error
        self.size += len(data)

    def keep(self) -> None:
        """Give the file its name."""
        with self._folder.directory(self._parts, create=False) as above:
            try:
                if not _is_replaceable(self._name, above):
                    raise InvalidRequest("a folder or link is in the place of a file", fix="choose another path")
                os.rename(self._temporary, self._name, src_dir_fd=above, dst_dir_fd=above)
            except OSError as error:
                raise write_failure(error) from error
        self._temporary = ""
        self.close()

    def close(self) -> None:
        """End it; what was not kept is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary:
            with contextlib.suppress(OSError, NotFound), self._folder.directory(self._parts, create=False) as above:
                os.unlink(self._temporary, dir_fd=above)
            self._temporary = ""


def _is_replaceable(name: str, above: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def artifact_parts(path: str) -> list[str]:
    """Return the components of an artifact path; a leading `/` is taken as relative (protocol, section 6.3).

    Raises:
        InvalidRequest: it is empty, climbs, or passes a limit on depth or length.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise InvalidRequest("an artifact path is not usable", why="it is empty or climbs out of the folder")
    if len(parts) > MAX_ARTIFACT_DEPTH or len(path) > MAX_ARTIFACT_PATH:
        raise InvalidRequest(
            "an artifact path is not usable",
            why=f"it passes {MAX_ARTIFACT_DEPTH} folders or {MAX_ARTIFACT_PATH} characters",
        )
    for part in parts:
        checked_name(part)
        if part.startswith(TEMPORARY):
            raise InvalidRequest("an artifact path is not usable", why=f"names in {TEMPORARY}* are ours")
    return parts


def checked_digest(digest: str) -> str:
    """Return a bundle digest.

    Raises:
        InvalidRequest: it is not 64 lower-case hex digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest("valid workspace bundle digest is required", fix="send 64 lower-case hex digits")
    return digest


def read_pieces(fd: int, offset: int, size: int) -> Iterator[bytes]:
    """Yield a file from `offset` to its present end in pieces of `size`; the descriptor stays open."""
    while piece := os.pread(fd, size, offset):
        offset += len(piece)
        yield piece
