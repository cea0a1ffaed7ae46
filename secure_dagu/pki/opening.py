"""Open a CA that is on disk: its certificate, and its key wherever that is kept."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from secure_dagu.errors import ConfigError
from secure_dagu.pki import keys
from secure_dagu.pki.authority import Authority
from secure_dagu.pki.ledger import Ledger
from secure_dagu.security.secret import Secret

Passphrase = Callable[[], Secret]
"""Gives the passphrase of a CA key or the PIN of a token; called only where one is needed. Raises ConfigError."""


def load_authority(
    *, certificate: Path, key: Path, ledger: Path, trust: Path | None = None, passphrase: Passphrase | None = None
) -> Authority:
    """Open a CA.

    Args:
        certificate: of the CA; in a file with several, the one that fits the key.
        key: a PEM private key, plain or under a passphrase, or one line `pkcs11:…` that names a key in a token.
        ledger: of what it issued.
        trust: what peers must trust; None: the certificate file as a whole.
        passphrase: None: a key that needs one is refused.

    Raises:
        ConfigError: a file is missing or damaged, the key is another certificate's, the passphrase is wrong or missing,
            or it is no CA of ours.
    """
    where = certificate.parent
    try:
        found = x509.load_pem_x509_certificates(certificate.read_bytes())
        text = key.read_bytes()
        anchors = (trust or certificate).read_bytes()
    except FileNotFoundError as problem:
        raise ConfigError(
            f"there is no CA in {where}",
            why=f"{problem.filename} is missing",
            fix="make one with `secure-dagu pki init --advertise NAME`, or point --dagu-home at the host that has it",
        ) from problem
    except (OSError, ValueError) as problem:
        raise unusable(where, f"{certificate.name} and {key.name}: {problem}") from problem
    _check_mode(key)
    signer = open_key(key, text, passphrase)
    for one in found:
        if one.public_key() == signer.public_key():
            try:
                if one.issuer == one.subject:
                    one.verify_directly_issued_by(one)
                return Authority(signer=signer, certificate=one, ledger=Ledger(ledger), trust=anchors)
            except (ValueError, TypeError, InvalidSignature) as problem:
                raise unusable(where, f"{certificate.name}: {problem}") from problem
    raise unusable(where, f"{key.name} is not the key of {certificate.name}", "restore both files from the same backup")


def open_key(path: Path, text: bytes, passphrase: Passphrase | None) -> ec.EllipticCurvePrivateKey:
    """Return a CA's key from its file; ConfigError as `load_authority`."""
    if text.startswith(b"pkcs11:"):
        from secure_dagu.pki import hsm

        return hsm.open_key(hsm.parse_uri(text.decode(errors="replace").strip()), _asked(path, passphrase))
    secret = _asked(path, passphrase) if keys.is_encrypted(text) else None
    try:
        private = keys.load_private(text, secret)
    except (ValueError, TypeError) as problem:
        if secret is not None:
            raise ConfigError(
                f"{path} cannot be opened",
                why="the passphrase is wrong, or the file is damaged",
                fix="try again; without the passphrase nothing opens it, and a new CA must be made",
            ) from problem
        raise unusable(path.parent, f"{path.name}: {problem}") from problem
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise unusable(path.parent, f"{path.name} is no ECDSA key")
    return private


def unusable(where: Path, why: str, fix: str = "restore both files from your backup") -> ConfigError:
    """Return the error for a CA that is there and damaged."""
    return ConfigError(f"the CA in {where} cannot be used", why=why, fix=fix)


def _asked(path: Path, passphrase: Passphrase | None) -> Secret:
    if passphrase is None:
        raise ConfigError(
            f"{path} is protected, and nobody is there to ask for its passphrase",
            why="this process has no terminal",
            fix="give --passphrase-file FILE, or the systemd credential ca-passphrase",
        )
    return passphrase()


def _check_mode(key: Path) -> None:
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{key} is not used", why=f"others may use the CA's key (mode {mode:04o})", fix=f"chmod 600 {key}"
        )
