"""Run workflow commands as a person does, in this process: the parser, the command, what it printed, its exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.cli import main as cli


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


class Host:
    """A home folder, workflow files beside it, and commands."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "home"
        self.folder = folder / "files"
        self.folder.mkdir()
        self._capsys = capsys
        monkeypatch.chdir(self.folder)
        for name in ("DAGU_DEBUG", "DEBUG", "DAGU_HOME"):
            monkeypatch.delenv(name, raising=False)

    def file(self, name: str, text: str) -> str:
        """Write a workflow file; return its name."""
        (self.folder / name).write_text(text)
        return name

    def run(self, *words: str) -> Done:
        """Run a command."""
        self._capsys.readouterr()
        command, *rest = words
        code = cli.main([command, "--dagu-home", str(self.home), *rest])
        told = self._capsys.readouterr()
        return Done(code, told.out, told.err)

    def ok(self, *words: str) -> str:
        """Run a command that succeeds; return what it printed."""
        done = self.run(*words)
        assert done.code == 0, done
        return done.out

    def status(self, dag: str) -> dict[str, Any]:
        """Return the newest status document of the DAG's newest run."""
        names = sorted(self.home.glob(f"data/dag-runs/{dag}/dag-runs/*/*/*/dag-run_*/a_*/status.jsonl"))
        found: dict[str, Any] = json.loads(names[-1].read_text().splitlines()[-1])
        return found

    def attempts(self, dag: str) -> list[Path]:
        """Return the folders of all attempts of a DAG, hidden ones too."""
        return sorted(
            path
            for path in self.home.glob(f"data/dag-runs/{dag}/dag-runs/*/*/*/dag-run_*/*")
            if path.is_dir() and path.name != "sub"
        )
