"""The standard place of certificates on one host, `<home>/pki`, and what init and issue put there.

ca.crt ca.key                       the CA (ca.key only where certificates are issued)
ledger.jsonl                        every certificate that this CA issued
coordinator.crt coordinator.key     what the coordinator on this host serves with
operator.crt operator.key           what commands on this host call with (role admin)
issued/NAME/                        NAME.crt NAME.key ca.crt: the folder to carry to the host that needs it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import authority, files
from secure_dagu.pki import ledger as ledger_file
from secure_dagu.pki.files import Pem
from secure_dagu.pki.ledger import LedgerEntry
from secure_dagu.pki.names import OWN_HOST, parse_names
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.security.identity import NAME

DEFAULT_TRUST_DOMAIN = "secure-dagu"
COORDINATOR = "coordinator"
OPERATOR = "operator"
_CA = ("ca.crt", "ca.key")
_LEDGER = "ledger.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One certificate that was issued, and where its files are."""

    entry: LedgerEntry
    uri: str
    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What init made."""

    directory: Path
    trust_domain: str
    ca_not_after: datetime
    coordinator: Written
    operator: Written


def initialise(directory: Path, *, advertised: Sequence[str], trust_domain: str, now: datetime) -> Initialised:
    """Make a CA, the coordinator's certificate and the operator's.

    The coordinator's certificate covers the advertised names and this host's own.

    Raises:
        ConfigError: there is a CA or one of the files already, and then nothing has changed; a bad name.
    """
    files.refuse_existing(
        directory,
        (*_CA, _LEDGER, *(f"{name}.{end}" for name in (COORDINATOR, OPERATOR) for end in ("crt", "key"))),
        fix="use what is there: `secure-dagu pki issue ROLE NAME` for further certificates, `secure-dagu pki list` to "
        "see them; for a new CA move the directory away, after which every certificate must be issued anew",
    )
    profiles = load_profiles()
    names = tuple(dict.fromkeys((*parse_names(advertised), *OWN_HOST)))
    made = authority.make_authority(profiles, trust_domain=trust_domain, ledger=directory / _LEDGER, now=now)
    files.make_private_directory(directory)
    files.write(directory, Pem("ca.key", made.key_pem, is_private=True))
    files.write(directory, Pem("ca.crt", made.certificate_pem))
    server = made.issue(profiles.roles[Role.COORDINATOR], COORDINATOR, now=now, names=names)
    person = made.issue(profiles.roles[Role.ADMIN], OPERATOR, now=now)
    return Initialised(
        directory=directory,
        trust_domain=trust_domain,
        ca_not_after=made.not_after,
        coordinator=_write(directory, server, replace=False),
        operator=_write(directory, person, replace=False),
    )


def issue(
    directory: Path,
    role: Role,
    name: str,
    *,
    out: Path | None,
    advertised: Sequence[str],
    days: int | None,
    force: bool,
    now: datetime,
) -> Written:
    """Issue one certificate with the CA in `directory` and write it with its key and the CA's certificate.

    Args:
        out: where to write; None means `<directory>/issued/NAME`.
        advertised: DNS names and addresses, for a coordinator only; this host's own are added.
        days: lifetime; None means the profile's.
        force: replace files that exist.

    Raises:
        ConfigError: no CA, a bad name, or files that exist.
    """
    profiles = load_profiles()
    ca = open_ca(directory)
    # Before a path is made of it; `issue` checks again, being the one that must.
    if not NAME.fullmatch(name) or name == "ca":
        raise ConfigError(
            f"{name[:200]!r} cannot be the name in a certificate",
            why="names are 1 to 64 letters, digits, '.', '_' and '-', a letter or digit at both ends; 'ca' is taken",
        )
    target = out if out is not None else directory / "issued" / name
    if not force:
        files.refuse_existing(target, (f"{name}.crt", f"{name}.key"), fix="choose another --out, or say --force")
    _refuse_other_ca(target / "ca.crt", ca.certificate_pem, force=force)
    names = parse_names(advertised)
    if role is Role.COORDINATOR and names:
        names = tuple(dict.fromkeys((*names, *OWN_HOST)))
    made = ca.issue(profiles.roles[role], name, now=now, names=names, days=days)
    files.make_private_directory(target)
    if not (target / "ca.crt").exists() or force:
        files.write(target, Pem("ca.crt", ca.certificate_pem), replace=force)
    return _write(target, made, replace=force)


def open_ca(directory: Path) -> authority.Authority:
    """Open the CA in `directory`; ConfigError says how to make one."""
    return authority.load_authority(
        certificate=directory / "ca.crt", key=directory / "ca.key", ledger=directory / _LEDGER
    )


def ledger(directory: Path) -> tuple[LedgerEntry, ...]:
    """Return what the CA in `directory` has issued, oldest first."""
    return ledger_file.read(directory / _LEDGER)


def find_certificate(directory: Path, word: str) -> Path:
    """Return the file that `pki show` means: a path, or the name of a certificate in the standard place.

    Raises:
        ConfigError: neither exists.
    """
    candidates = (Path(word), directory / f"{word}.crt", directory / "issued" / word / f"{word}.crt")
    for candidate in candidates if "\0" not in word else ():
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"no certificate {word[:200]!r}",
        why=f"it is no file, and {directory} has none of that name",
        fix="`secure-dagu pki list` shows what was issued",
    )


def _write(directory: Path, issued: authority.Issued, *, replace: bool) -> Written:
    """Write the key first: a certificate without its key is seen at once, a key without certificate never served."""
    name = issued.entry.name
    key = files.write(directory, Pem(f"{name}.key", issued.key, is_private=True), replace=replace)
    certificate = files.write(directory, Pem(f"{name}.crt", issued.certificate), replace=replace)
    return Written(
        entry=issued.entry,
        uri=issued.identity.uri,
        certificate=certificate,
        key=key,
        ca=directory / "ca.crt",
    )


def _refuse_other_ca(path: Path, ours: bytes, *, force: bool) -> None:
    if force or not path.exists() or path.read_bytes() == ours:
        return
    raise ConfigError(
        f"{path} belongs to another CA",
        why="replacing it would cut that host off from its present peers",
        fix="choose another --out, or say --force to move the host to this CA",
    )
