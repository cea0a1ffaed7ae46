"""Where the passphrase of a CA key comes from when nobody is asked: a private file, or a systemd credential.

Never from an argument or a variable: both can be read by others on the host.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from secure_dagu.errors import ConfigError
from secure_dagu.pki.opening import Passphrase
from secure_dagu.security.secret import Secret

CREDENTIAL: Final = "ca-passphrase"
"""Name of the systemd credential: `LoadCredentialEncrypted=ca-passphrase:…` in the unit."""

MIN_LENGTH: Final = 12
_MAX_BYTES: Final = 4096


def unattended(file: Path | None, environ: Mapping[str, str]) -> Passphrase | None:
    """Return what reads the passphrase without asking: the file, else the credential; None: there is neither."""
    if file is not None:
        return lambda: read_file(file)
    folder = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(folder) / CREDENTIAL if folder else None
    return (lambda: read_file(credential)) if credential is not None and credential.is_file() else None


def read_file(file: Path) -> Secret:
    """Return the first line of a file that only its owner can read.

    Raises:
        ConfigError: it is missing, open to others, empty or too long.
    """
    try:
        with file.open("rb") as source:
            mode = stat.S_IMODE(file.stat().st_mode)
            data = source.read(_MAX_BYTES + 1)
    except OSError as problem:
        raise _bad(file, problem.strerror or str(problem), "correct the path") from problem
    if mode & 0o077:
        raise _bad(file, f"others may read it (mode {mode:04o})", f"chmod 600 {file}")
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError as problem:
        raise _bad(file, "it is not UTF-8", "write the passphrase as text") from problem
    if not text or b"\n" in line or len(data) > _MAX_BYTES:
        raise _bad(file, "it wants one line with the passphrase", "write it there, and nothing else")
    return Secret(text)


def check_new(secret: Secret) -> Secret:
    """Return a passphrase that is to be set.

    Raises:
        ConfigError: it is too short to protect anything.
    """
    if len(secret.reveal()) < MIN_LENGTH:
        raise ConfigError(
            "the passphrase is refused",
            why=f"it has fewer than {MIN_LENGTH} characters",
            fix="take a sentence, or `openssl rand -base64 24`",
        )
    return secret


def _bad(file: Path, why: str, fix: str) -> ConfigError:
    return ConfigError(f"{file} cannot be used as a passphrase file", why=why, fix=fix)
