"""Replace a key and its certificate together, although they are two files.

Both are written beside the old ones first, then renamed, the key before the certificate. A crash leaves either the old
pair, or the new key with the new certificate still beside it: `finish` then goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from secure_dagu.errors import ConfigError
from secure_dagu.pki import files
from secure_dagu.pki.files import Pem

_NEW = ".new"


def write(directory: Path, stem: str, *, certificate: bytes, key: bytes) -> Path:
    """Put `stem.crt` and `stem.key` in place, replacing a pair that is there; return the certificate's path.

    Raises:
        ConfigError: the disk refuses; the old pair is then still whole, or `finish` makes the new one so.
    """
    files.write(directory, Pem(f"{stem}.crt{_NEW}", certificate), replace=True)
    files.write(directory, Pem(f"{stem}.key{_NEW}", key, is_private=True), replace=True)
    finish(directory, stem)
    return directory / f"{stem}.crt"


def finish(directory: Path, stem: str) -> None:
    """Complete a replacement that a crash interrupted; does nothing when there is none. Call it before a pair is read.

    Raises:
        ConfigError: the disk refuses.
    """
    new_key, new_certificate = directory / f"{stem}.key{_NEW}", directory / f"{stem}.crt{_NEW}"
    try:
        if new_key.exists():
            if not new_certificate.exists():
                new_key.unlink()  # never with `write`'s order; a key without its certificate is of no use
                return
            new_key.replace(directory / f"{stem}.key")
            files.sync_directory(directory)
        elif not new_certificate.exists():
            return
        elif not _fits(new_certificate, directory / f"{stem}.key"):
            new_certificate.unlink()  # its key was never written: the crash came before
            return
        new_certificate.replace(directory / f"{stem}.crt")
        files.sync_directory(directory)
    except OSError as problem:
        raise ConfigError(f"{directory / stem}.* cannot be replaced", why=problem.strerror or str(problem)) from problem


def _fits(certificate: Path, key: Path) -> bool:
    from cryptography import x509

    from secure_dagu.pki import keys

    try:
        public = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        private = keys.load_private(key.read_bytes())
    except (OSError, ValueError, TypeError):
        return False
    assert hasattr(private, "public_key")
    return keys.fingerprint(private.public_key()) == keys.fingerprint(public)
