"""The standard place of certificates on one host, `<home>/pki`, and what init and issue put there.

ca.crt                              what every peer trusts
ca.key                              the CA's key, or one line that names it in a token; only where it signs
issuing.crt issuing.key             the issuing CA, where ca.crt is an offline root (`pki.issuing`)
ledger.jsonl                        every certificate that the CA here issued
coordinator.crt coordinator.key     what the coordinator on this host serves with
operator.crt operator.key           what commands on this host call with (role admin)
issued/NAME/                        NAME.crt NAME.key ca.crt: the folder to carry to the host that needs it
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import authority, files, keys
from secure_dagu.pki.authority import Authority
from secure_dagu.pki.certificates import permitted_domains
from secure_dagu.pki.facts import read_certificates
from secure_dagu.pki.files import Pem
from secure_dagu.pki.keys import CaKind, KeyKind
from secure_dagu.pki.ledger import Ledger, LedgerEntry
from secure_dagu.pki.names import OWN_HOST, IpAddress, domains_of, parse_domains, parse_names
from secure_dagu.pki.opening import Passphrase, load_authority, open_key, unusable
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.security.grants import NOTHING, Grants
from secure_dagu.security.identity import NAME
from secure_dagu.security.secret import Secret

DEFAULT_TRUST_DOMAIN = "secure-dagu"
COORDINATOR = "coordinator"
OPERATOR = "operator"
ISSUING = ("issuing.crt", "issuing.key")
LEDGER = "ledger.jsonl"
_CA = ("ca.crt", "ca.key")
_RESERVED_NAMES = frozenset({"ca", "issuing"})


class Written(Struct, frozen=True, kw_only=True):
    """One certificate that was issued, and where its files are."""

    entry: LedgerEntry
    uri: str
    certificate: Path
    key: Path
    ca: Path


class Initialised(Struct, frozen=True, kw_only=True):
    """What init made."""

    directory: Path
    trust_domain: str
    ca_not_after: datetime
    permitted: tuple[str, ...]
    """DNS domains to which the CA is constrained."""
    coordinator: Written
    operator: Written


class KeyPlace(Struct, frozen=True, kw_only=True):
    """Where a new CA key is kept: in a file, under a passphrase if there is one, or in a token."""

    passphrase: Secret | None = None
    """Of the file, or the PIN of the token."""
    token: str = ""
    """A `pkcs11:` URI of the key to make."""


def initialise(
    directory: Path,
    *,
    advertised: Sequence[str],
    trust_domain: str,
    now: datetime,
    permit: Sequence[str] = (),
    key: KeyPlace = KeyPlace(),  # noqa: B008 - frozen
    actor: str = "",
) -> Initialised:
    """Make a CA, the coordinator's certificate and the operator's.

    The coordinator's certificate covers the advertised names and this host's own; the CA may name hosts in their
    domains, in those of `permit` and in those of its profile.

    Raises:
        ConfigError: there is a CA or one of the files already, and then nothing has changed; a bad name.
    """
    refuse_existing_ca(directory)
    names = tuple(dict.fromkeys((*parse_names(advertised), *OWN_HOST)))
    domains = (*domains_of(names), *parse_domains(permit))
    made = new_ca(directory, permit=domains, trust_domain=trust_domain, key=key, now=now)
    return equip(directory, made, names=names, now=now, actor=actor)


def refuse_existing_ca(directory: Path) -> None:
    """Raise ConfigError if this directory holds anything that init would write."""
    files.refuse_existing(
        directory,
        (*_CA, *ISSUING, LEDGER, *(f"{name}.{end}" for name in (COORDINATOR, OPERATOR) for end in ("crt", "key"))),
        fix="use what is there: `secure-dagu pki issue ROLE NAME` for further certificates, `secure-dagu pki list` to "
        "see them; for a new CA move the directory away, after which every certificate must be issued anew",
    )


def new_ca(
    directory: Path,
    *,
    permit: Sequence[str],
    trust_domain: str,
    key: KeyPlace,
    now: datetime,
    is_root: bool = False,
) -> Authority:
    """Make a CA and write ca.key and ca.crt. `is_root`: one that signs issuing CAs. `permit` adds to its profile's."""
    profiles = load_profiles()
    profile = profiles.root if is_root else profiles.ca
    signer, text = make_key(profile.key, key)
    made = authority.make_authority(
        profile,
        signer,
        trust_domain=trust_domain,
        permitted=tuple(dict.fromkeys((*profiles.ca.permit, *permit))),
        ledger=directory / LEDGER,
        now=now,
    )
    files.make_private_directory(directory)
    files.write(directory, Pem("ca.key", text, is_private=True))
    files.write(directory, Pem("ca.crt", made.trust_pem))
    return made


def make_key(kind: CaKind, place: KeyPlace) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Make a CA key, and return it with the text of its file."""
    if place.token:
        from secure_dagu.pki import hsm

        uri = hsm.parse_uri(place.token)
        return hsm.make_key(uri, kind, place.passphrase), f"{uri}\n".encode()
    signer = keys.new_ca_key(kind)
    return signer, keys.private_pem(signer, place.passphrase)


def equip(
    directory: Path, ca: Authority, *, names: Sequence[str | IpAddress], now: datetime, actor: str
) -> Initialised:
    """Issue and write what a coordinator's host needs."""
    profiles = load_profiles()
    server = ca.issue(profiles.roles[Role.COORDINATOR], COORDINATOR, now=now, names=names, actor=actor)
    person = ca.issue(profiles.roles[Role.ADMIN], OPERATOR, now=now, actor=actor)
    return Initialised(
        directory=directory,
        trust_domain=ca.trust_domain,
        ca_not_after=ca.not_after,
        permitted=permitted_domains(ca.certificate) or (),
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
    lifetime: timedelta | None,
    force: bool,
    now: datetime,
    labels: Grants = NOTHING,
    kind: KeyKind | None = None,
    passphrase: Passphrase | None = None,
    actor: str = "",
) -> Written:
    """Issue one certificate with the CA in `directory` and write it with its key and the CA's certificate.

    Args:
        out: where to write; None means `<directory>/issued/NAME`.
        advertised: DNS names and addresses, for a coordinator only; this host's own are added.
        lifetime: None means the profile's.
        force: replace files that exist.
        labels: that it grants.
        kind: of its key; None means the profile's first.
        passphrase: of the CA's key.
        actor: who asks, for the ledger.

    Raises:
        ConfigError: no CA, a bad name, or files that exist.
    """
    profiles = load_profiles()
    # Before a path is made of it; `Authority.issue` checks again, being the one that must.
    if not NAME.fullmatch(name) or name in _RESERVED_NAMES:
        raise ConfigError(
            f"{name[:200]!r} cannot be the name in a certificate",
            why="names are 1 to 64 letters, digits, '.', '_' and '-', a letter or digit at both ends; "
            "'ca' and 'issuing' are taken",
        )
    names = parse_names(advertised)
    target = out if out is not None else directory / "issued" / name
    if not force:
        files.refuse_existing(target, (f"{name}.crt", f"{name}.key"), fix="choose another --out, or say --force")
    ca = open_ca(directory, passphrase)
    _refuse_other_ca(target / "ca.crt", ca.trust_pem, force=force)
    if role is Role.COORDINATOR and names:
        names = tuple(dict.fromkeys((*names, *OWN_HOST)))
    made = ca.issue(
        profiles.roles[role], name, now=now, names=names, labels=labels, lifetime=lifetime, kind=kind, actor=actor
    )
    files.make_private_directory(target)
    if not (target / "ca.crt").exists() or force:
        files.write(target, Pem("ca.crt", ca.trust_pem), replace=force)
    return _write(target, made, replace=force)


def open_ca(directory: Path, passphrase: Passphrase | None = None) -> Authority:
    """Open the CA that signs in `directory`: the issuing CA where there is one. ConfigError says how to make one."""
    ledger_file, anchors = directory / LEDGER, directory / "ca.crt"
    if (directory / ISSUING[0]).exists():
        certificate, key = (directory / name for name in ISSUING)
        return load_authority(
            certificate=certificate, key=key, ledger=ledger_file, trust=anchors, passphrase=passphrase
        )
    return load_authority(certificate=anchors, key=directory / "ca.key", ledger=ledger_file, passphrase=passphrase)


def ca_key_file(directory: Path) -> Path:
    """Return the file of the key that signs here."""
    return directory / (ISSUING[1] if (directory / ISSUING[1]).exists() else "ca.key")


def change_passphrase(directory: Path, old: Passphrase | None, new: Secret | None) -> Path:
    """Write the key that signs here again, under another passphrase or under none, and return its file.

    Raises:
        ConfigError: no key, a wrong old passphrase, or a key in a token.
    """
    path = ca_key_file(directory)
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise unusable(directory, f"{path.name}: {problem.strerror}") from problem
    if text.startswith(b"pkcs11:"):
        raise ConfigError(
            "the CA's key is in a token", why="its PIN belongs to the token", fix="change it with the token's own tool"
        )
    signer = open_key(path, text, old)
    return files.write(directory, Pem(path.name, keys.private_pem(signer, new), is_private=True), replace=True)


def ledger(directory: Path) -> Ledger:
    """Return the ledger of the CA in `directory`."""
    return Ledger(directory / LEDGER)


def signer_keys(directory: Path, book: Ledger) -> frozenset[str]:
    """Return the SHA-256 of the public key of each CA that `book` speaks for, as in `Peer.issuers`.

    Raises:
        ConfigError: a CA certificate here is damaged.
    """
    found = [directory / name for name in ("ca.crt", ISSUING[0]) if (directory / name).exists()]
    issuers = {entry.issuer for entry in book.entries()}
    return frozenset(
        keys.fingerprint(one.public_key())
        for file in found
        for one in read_certificates(file)
        # An issuing CA has a new certificate each year, and signs nowhere else.
        if file.name == ISSUING[0] or one.fingerprint(hashes.SHA256()).hex() in issuers
    )


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
    if force or not path.exists():
        return
    if set(_certificates(path.read_bytes())) & set(_certificates(ours)):
        return  # the same, or a bundle in the middle of a rotation
    raise ConfigError(
        f"{path} belongs to another CA",
        why="replacing it would cut that host off from its present peers",
        fix="choose another --out, or say --force to move the host to this CA",
    )


def _certificates(pem: bytes) -> list[bytes]:
    marker = b"-----END CERTIFICATE-----"
    return [part.strip() for part in pem.split(marker)[:-1]]
