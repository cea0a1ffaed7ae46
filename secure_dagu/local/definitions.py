"""Find and read workflow files as the command line names them (workflow language, section 1.3)."""

from __future__ import annotations

import os
from pathlib import Path

from secure_dagu.errors import DefinitionError

MAX_BYTES = 16 * 2**20
_SUFFIXES = (".yaml", ".yml")


def find(name: str, dags_dir: Path) -> Path | None:
    """Return the file that `name` means: a path that exists, else one below the DAG directory; None when neither is."""
    path = candidate(name, dags_dir)
    return path if path.is_file() else None


def candidate(name: str, dags_dir: Path) -> Path:
    """Return the file that `name` means, whether it exists or not: absolute or `~`, existing here, or a known DAG."""
    given = Path(name).expanduser() if name.startswith("~") else Path(name)
    if given.is_absolute() or given.is_file():
        return given.absolute()
    names = [name] if given.suffix in _SUFFIXES else [f"{name}{suffix}" for suffix in _SUFFIXES]
    for one in names:
        if (path := dags_dir / one).is_file():
            return path
    if name.startswith(("./", "../")) or (name and os.path.lexists(name)):
        return given.absolute()  # it is no file: said of what was meant, not of a workflow that is called so
    return dags_dir / names[0]


def files(dags_dir: Path) -> list[Path]:
    """Return the workflow files of the directory of workflows, by name."""
    try:
        with os.scandir(dags_dir) as entries:
            found = [
                entry.name
                for entry in entries
                if entry.name.endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
            ]
    except OSError:
        return []
    return [dags_dir / name for name in sorted(found)]


def stem(path: Path) -> str:
    """Return the name that a DAG has by its file."""
    return path.name.removesuffix(".yaml").removesuffix(".yml")


def read(path: Path) -> str:
    """Return the text of a workflow file.

    Raises:
        DefinitionError: it cannot be read, is no UTF-8 text, or is far too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DefinitionError(f'failed to read file "{path}"', why=os.strerror(error.errno or 0).lower()) from None
    if len(data) > MAX_BYTES:
        raise DefinitionError(f'failed to read file "{path}"', why=f"it has more than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DefinitionError(f'failed to read file "{path}"', why="it is not UTF-8 text") from None


def load_error(name: str, error: DefinitionError) -> DefinitionError:
    """Return a failure to read or load, as a command says it."""
    return DefinitionError(f"failed to load DAG from {name}: {error.what}", why=error.why, fix=error.fix)
