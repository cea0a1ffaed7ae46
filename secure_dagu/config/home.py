"""Find the home directory and the places that follow from it (configuration reference, section 1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct


class Home(Struct, frozen=True, kw_only=True):
    """Where this host keeps things. `said` tells by what it was found."""

    config_dir: Path
    data_dir: Path
    log_dir: Path
    said: str

    @property
    def config_file(self) -> Path:
        """Return the configuration file, which need not exist."""
        return self.config_dir / "config.yaml"

    @property
    def pki_dir(self) -> Path:
        """Return the standard place of certificates."""
        return self.config_dir / "pki"


def find_home(flag: str | None, environ: Mapping[str, str], *, cwd: Path) -> Home:
    """Return the home: `--dagu-home`, else DAGU_HOME, else ~/.dagu if it exists, else the XDG places.

    XDG_CONFIG_HOME is not consulted: Dagu keeps its configuration in ~/.config/dagu whatever it says.
    """
    user = Path(environ.get("HOME") or "/")
    if flag:
        return _unified(cwd / expand(flag, environ), "--dagu-home")
    if environ.get("DAGU_HOME"):
        return _unified(cwd / expand(environ["DAGU_HOME"], environ), "DAGU_HOME")
    if (user / ".dagu").is_dir():
        return _unified(user / ".dagu", "~/.dagu exists")
    share = Path(environ.get("XDG_DATA_HOME") or user / ".local" / "share") / "dagu"
    return Home(
        config_dir=user / ".config" / "dagu", data_dir=share / "data", log_dir=share / "logs", said="XDG directories"
    )


def expand(text: str, environ: Mapping[str, str]) -> Path:
    """Return a path with a leading `~` and every `${VAR}` replaced.

    Raises:
        ValueError: a variable is not set; guessing an empty one could point at the root directory.
    """
    head, slash, rest = text.partition("/")
    if head == "~":
        text = (environ.get("HOME") or "/") + slash + rest
    pieces = text.split("${")
    whole = pieces[0]
    for piece in pieces[1:]:
        name, brace, after = piece.partition("}")
        if not brace or not environ.get(name):
            raise ValueError(f"${{{name}}} is not set" if brace else "a ${ has no }")
        whole += environ[name] + after
    return Path(whole)


def _unified(directory: Path, said: str) -> Home:
    return Home(config_dir=directory, data_dir=directory / "data", log_dir=directory / "logs", said=said)
