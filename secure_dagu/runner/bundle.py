"""Pack the file dependencies of a workflow into a content-addressed bundle (protocol, section 7).

The same files always give the same bytes, so the digest names the content: entries sorted, times and owners zero.
"""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Sequence
from pathlib import Path

from secure_dagu.dispatch.model import BundleRef
from secure_dagu.errors import DefinitionError, LimitExceeded

MAX_PACKED_BYTES = 64 * 2**20
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_ENTRIES = 8192


def pack(*, base: Path, dag_path: str, dag_text: str, patterns: Sequence[str]) -> tuple[BundleRef, bytes]:
    """Return the bundle of `dag_text` (stored as `dag_path`) and of every file below `base` that a pattern names.

    Args:
        base: the folder of the DAG file; patterns are relative to it and use forward slashes.
        dag_path: the DAG file's name inside the bundle.
        dag_text: what to store there.
        patterns: literal paths or globs (`*`, `?`, `[...]`, `**`).

    Raises:
        DefinitionError: a pattern climbs out, matches nothing, or meets a link or a special file.
        LimitExceeded: more than 8192 entries, 256 MiB of content or 64 MiB packed.
    """
    files: dict[str, Path] = {}
    for pattern in patterns:
        files.update(_matches(base, pattern))
    files.pop(dag_path, None)
    if len(files) + 1 > MAX_ENTRIES:
        raise LimitExceeded(f"the workspace bundle has {len(files) + 1} entries", why=f"the limit is {MAX_ENTRIES}")
    tar_bytes = io.BytesIO()
    total = len(dag_text.encode())
    import gzip  # whoever only reads bundles has another reader (`runner.tar`)
    import tarfile

    with tarfile.open(fileobj=tar_bytes, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted([*files, dag_path]):
            if name == dag_path:
                data, mode = dag_text.encode(), 0o644
            else:
                data, mode = files[name].read_bytes(), stat.S_IMODE(files[name].stat().st_mode)
                total += len(data)
            if total > MAX_UNPACKED_BYTES:
                raise LimitExceeded(
                    "the workspace bundle is too large", why=f"over {MAX_UNPACKED_BYTES} bytes unpacked"
                )
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    packed = gzip.compress(tar_bytes.getvalue(), mtime=0)
    if len(packed) > MAX_PACKED_BYTES:
        raise LimitExceeded("the workspace bundle is too large", why=f"over {MAX_PACKED_BYTES} bytes packed")
    digest = hashlib.sha256(packed).hexdigest()
    return BundleRef(digest=digest, size_bytes=len(packed), dag_path=dag_path), packed


def _matches(base: Path, pattern: str) -> dict[str, Path]:
    """Return relative name → file for one pattern; a matched folder stands for every file below it."""
    parts = pattern.split("/")
    if pattern.startswith("/") or ".." in parts or ".git" in parts:
        raise DefinitionError(
            f"file dependency {pattern!r} is refused",
            why="dependencies are paths below the workflow's folder, without `..` and `.git`",
        )
    found: dict[str, Path] = {}
    for path in sorted(base.glob(pattern)):
        for file in [path, *sorted(path.rglob("*"))] if path.is_dir() and not path.is_symlink() else [path]:
            relative = file.relative_to(base)
            if ".git" in relative.parts:
                continue
            mode = file.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise DefinitionError(
                    f"file dependency {relative.as_posix()!r} is refused", why="links and special files cannot travel"
                )
            found[relative.as_posix()] = file
    if not found:
        raise DefinitionError(f"file dependency {pattern!r} matches nothing", why=f"looked in {base}")
    return found
