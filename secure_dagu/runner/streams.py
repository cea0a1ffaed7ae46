"""Where a step's streams go: the names of its log files, files of the author's choice, what is kept to read.

Workflow language, sections 3.5 and 6.1.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING

from msgspec import Struct

from secure_dagu.dag.model import Dag, Step
from secure_dagu.dag.scope import Scope
from secure_dagu.dag.values import FieldMode, resolve
from secure_dagu.errors import DefinitionError
from secure_dagu.runner import process
from secure_dagu.runner.api import RunFolders
from secure_dagu.runner.files import path_below
from secure_dagu.runner.output import Capture, LogFile

if TYPE_CHECKING:
    from secure_dagu.runner.graph import Graph

RUN_LOG = "scheduler.log"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class LogPaths(Struct, frozen=True):
    """The log files of one step; one file where its streams are merged."""

    stdout: Path
    stderr: Path

    @property
    def are_merged(self) -> bool:
        """Tell whether both streams go to one file, as they are written."""
        return self.stdout == self.stderr


def run_log(folders: RunFolders) -> Path:
    """Return the path of the engine's log of a run."""
    return folders.run_log or folders.logs / RUN_LOG


def log_paths(folders: RunFolders, stem: str, dag: Dag, step: Step, *, below: str = "") -> LogPaths:
    """Return where a step's streams are logged; `below` is a folder in that of the logs."""
    base = folders.logs / below if below else folders.logs
    is_merged = step.merged_logs if step.merged_logs is not None else dag.merged_logs
    if folders.log_suffix:
        name = f"{stem}.{folders.log_suffix}"
        if is_merged:
            return LogPaths(base / f"{name}.log", base / f"{name}.log")
        return LogPaths(base / f"{name}.out", base / f"{name}.err")
    out = base / f"{stem}.stdout.log"
    return LogPaths(out, out if is_merged else base / f"{stem}.stderr.log")


def log_stems(nodes: Iterable[str]) -> Mapping[str, str]:
    """Return a file stem for each node: its name with unsafe characters as `_`, numbered where two are alike."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for node in nodes:
        stem = base = _UNSAFE.sub("_", node)[:100]
        number = 2
        while stem in taken:
            stem, number = f"{base}_{number}", number + 1
        taken.add(stem)
        stems[node] = stem
    return stems


def tee(run: Graph, path: str, artifact: str, scope: Scope, cwd: Path) -> LogFile | None:
    """Return the file that a stream is also written to: a path of the author's, or an artifact.

    Raises:
        DefinitionError: an artifact path that is not relative, or climbs.
    """
    if artifact:
        name = resolve(artifact, scope, FieldMode.PATH)
        parts = PurePath(name).parts
        if not parts or name.startswith("/") or PureWindowsPath(name).drive or ".." in re.split(r"[/\\]", name):
            raise DefinitionError(f"the artifact path {name!r} climbs out of the artifact folder")
        target = path_below(run.folders.artifacts, name)
    elif path:
        target = path_below(cwd, resolve(path, scope, FieldMode.PATH))
    else:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    return LogFile(target, run.new_masker(), lambda _path, _size: None, mode=0o644, is_made=True)


def sink(log: LogFile, *others: Capture | LogFile | None) -> process.Sink:
    """Return one sink that feeds a log file and whoever else wants the stream."""
    writes = [other.write for other in others if other is not None]
    if not writes:
        return log.write

    def write(data: bytes) -> None:
        log.write(data)
        for also in writes:
            also(data)

    return write


@contextlib.contextmanager
def output_file(folder: Path) -> Iterator[Path]:
    """Make the file of one attempt's declared outputs, empty and ours alone; remove it afterwards."""
    name = f"{folder}/output-{secrets.token_hex(8)}"
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
