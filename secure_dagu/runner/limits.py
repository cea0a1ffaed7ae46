"""`resources.limits`: a cgroup for the processes of a run, as far as this host lets us (workflow language, 3.24).

A child group of our own cgroup (version 2) gets `cpu.max` and `memory.max`. Where there is none, or it is not ours to
divide, the run goes on without limits and says so. Each program joins by itself before it becomes what it is, so that
nothing it starts is left outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from secure_dagu.dag.model import Resources
from secure_dagu.errors import Unavailable

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
"""Period over which the kernel counts; a core is one period of work in each."""
_JOIN = 'echo $$ > "$0" && exec "$@"'


def make(resources: Resources, name: str, *, root: Path = CGROUPS, own: str | None = None) -> Path:
    """Make a group with these limits; return its folder.

    Args:
        root: where cgroups are mounted.
        own: path of our own group below it; None: as the kernel says.

    Raises:
        Unavailable: this host does not let us.
    """
    if not (root / "cgroup.controllers").is_file():
        raise Unavailable("resource limits are not enforced", why="this host has no cgroups of version 2")
    parent = root / (_own_group() if own is None else own).lstrip("/")
    folder = parent / f"secure-dagu-{name}"
    try:
        # Fails where the parent has processes of its own and is not the root: then a manager must delegate a group.
        wanted = [
            word for word, value in (("+cpu", resources.cpu_millicores), ("+memory", resources.memory_bytes)) if value
        ]
        (parent / "cgroup.subtree_control").write_text(" ".join(wanted))
        folder.mkdir(mode=0o755)
        if resources.cpu_millicores:
            quota_us = max(1000, resources.cpu_millicores * PERIOD_US // 1000)  # the kernel takes no less than 1 ms
            (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        if resources.memory_bytes:
            (folder / "memory.max").write_text(str(resources.memory_bytes))
    except OSError as error:
        remove(folder)
        raise Unavailable("resource limits are not enforced", why=f"cgroup: {error.strerror}") from None
    return folder


def remove(folder: Path) -> None:
    """Remove a group; one that still has processes stays."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def joining(folder: Path, argv: Sequence[str]) -> list[str]:
    """Return the arguments that run a program in a group."""
    return ["/bin/sh", "-c", _JOIN, str(folder / "cgroup.procs"), *argv]


def _own_group() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return "/"
