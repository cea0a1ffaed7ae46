"""Decide which certificate files a process uses, or that it speaks plaintext, never by a missing file. Pure."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

from secure_dagu.config.settings import Peer
from secure_dagu.errors import ConfigError

STANDARD: Final = "the standard place"
"""`PeerFiles.source` where no `peer.*` setting names the files."""


class Purpose(StrEnum):
    """What a process wants to be on the peer network."""

    COORDINATOR = "coordinator"
    WORKER = "worker"
    OPERATOR = "operator"


class PeerFiles(Struct, frozen=True, kw_only=True):
    """Mutual TLS with these files. `source` says where they come from: `peer.*`, or the standard place."""

    cert: Path
    key: Path
    ca: Path
    source: str


class Insecure(Struct, frozen=True):
    """Plaintext, because `peer.insecure` says so."""


def choose_peer(
    peer: Peer, purpose: Purpose, *, worker_id: str, pki_dir: Path, exists: Callable[[Path], bool]
) -> PeerFiles | Insecure:
    """Return the certificate files of a process, or `Insecure`.

    Files come from `peer.cert_file`, `peer.key_file` and `peer.client_ca_file` (all three), else from `pki_dir`:
    `coordinator.crt`, `operator.crt`, or for a worker the part of its id before `@`, each with its key and `ca.crt`.

    Raises:
        ConfigError: a part is missing, the configuration contradicts itself, or it asks for unverified TLS.
    """
    given = {
        "peer.cert_file": peer.cert_file,
        "peer.key_file": peer.key_file,
        "peer.client_ca_file": peer.client_ca_file,
    }
    said = [key for key, path in given.items() if path is not None]
    if peer.skip_tls_verify:
        raise ConfigError(
            "peer.skip_tls_verify is refused",
            why="whoever sits in the path could then read and change everything, and nobody would notice",
            fix="name the CA of the other end in peer.client_ca_file; for a trial on one host say peer.insecure",
        )
    if peer.insecure:
        if said:
            raise ConfigError(
                f"peer.insecure contradicts {', '.join(said)}",
                why="plaintext uses no certificates",
                fix="remove one of the two",
            )
        return Insecure()
    if said:
        return _given(peer, said, exists)
    stem = worker_id.partition("@")[0] if purpose is Purpose.WORKER else purpose.value
    return _standard(purpose, stem, pki_dir, exists)


def _given(peer: Peer, said: list[str], exists: Callable[[Path], bool]) -> PeerFiles:
    if peer.cert_file is None or peer.key_file is None or peer.client_ca_file is None:
        missing = [key for key in ("peer.cert_file", "peer.key_file", "peer.client_ca_file") if key not in said]
        raise ConfigError(
            f"{', '.join(missing)} is missing" if len(missing) == 1 else f"{', '.join(missing)} are missing",
            why=f"{', '.join(said)} is given, and mutual TLS needs all three",
            fix="give all three, or none to use the certificates of the standard place",
        )
    absent = [str(path) for path in (peer.cert_file, peer.key_file, peer.client_ca_file) if not exists(path)]
    if absent:
        raise ConfigError(
            f"{', '.join(absent)} cannot be read",
            why="there is no such file",
            fix="correct the peer.* settings, or issue a certificate with `secure-dagu pki issue ROLE NAME --out DIR`",
        )
    return PeerFiles(cert=peer.cert_file, key=peer.key_file, ca=peer.client_ca_file, source="peer.*")


def _standard(purpose: Purpose, stem: str, pki_dir: Path, exists: Callable[[Path], bool]) -> PeerFiles:
    files = PeerFiles(cert=pki_dir / f"{stem}.crt", key=pki_dir / f"{stem}.key", ca=pki_dir / "ca.crt", source=STANDARD)
    missing = [path.name for path in (files.cert, files.key, files.ca) if not exists(path)]
    if not missing:
        return files
    issue = {
        Purpose.COORDINATOR: "make a CA and this certificate with `secure-dagu pki init --advertise NAME`; where there "
        "is a CA already, `secure-dagu pki issue coordinator coordinator --advertise NAME`",
        Purpose.WORKER: f"on the host of the CA run `secure-dagu pki issue worker {stem}`",
        Purpose.OPERATOR: "on the host of the CA run `secure-dagu pki issue admin operator`",
    }[purpose]
    copy = f"and bring the files to {pki_dir}" if purpose is not Purpose.COORDINATOR else "with `--here`"
    raise ConfigError(
        f"this {purpose.value} has no certificate: {', '.join(missing)} missing in {pki_dir}",
        why="connections are proven on both sides, and neither peer.* files nor peer.insecure are configured",
        fix=f"{issue} {copy}",
    )
