"""Our own rules over certificates and over the place where they are kept: what a peer accepts today and should not.

Each rule is one function in `RULES`; what it returns is a finding. `pki verify` says whether a certificate works now;
this says whether it is what the policy (pki/POLICY.md) wants.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from msgspec import Struct

from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.pki import keys
from secure_dagu.pki.facts import Facts, facts_of, read_certificates
from secure_dagu.pki.names import parse_names
from secure_dagu.pki.profiles import Profile, Profiles
from secure_dagu.pki.term import BACKDATE
from secure_dagu.security.identity import parse_identity


class Level(StrEnum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that a rule found."""

    file: str
    rule: str
    level: Level
    what: str


class _Subject(Struct, frozen=True):
    """One certificate, as rules see it."""

    facts: Facts
    certificate: x509.Certificate
    profile: Profile | None
    """Of its role; None: a CA, or no identity of ours."""
    profiles: Profiles
    now: datetime


Found = tuple[Level, str]
Rule = Callable[[_Subject], Iterator[Found]]

_E, _W = Level.ERROR, Level.WARNING


def _key(it: _Subject) -> Iterator[Found]:
    allowed = (
        ("P-256", "P-384")
        if it.facts.is_ca
        else it.profile.keys
        if it.profile is not None
        else ("P-256", "P-384", "Ed25519")
    )
    if it.facts.key not in allowed:
        size = int(it.facts.key.removeprefix("RSA-")) if it.facts.key.startswith("RSA-") else 0
        yield (_W if size >= 3072 else _E), f"its key is {it.facts.key}; {', '.join(allowed)} are issued here"


def _signature(it: _Subject) -> Iterator[Found]:
    if it.facts.signature.lower() in ("md5", "sha1"):
        yield _E, f"it is signed with {it.facts.signature}"


def _lifetime(it: _Subject) -> Iterator[Found]:
    lifetime = it.facts.not_after - it.facts.not_before
    if it.facts.is_ca:
        longest = timedelta(days=max(it.profiles.ca.days, it.profiles.root.days)) + BACKDATE
    else:
        longest = (it.profile.longest if it.profile is not None else timedelta(days=90)) + BACKDATE
    if lifetime > longest:
        yield _W, f"it lives for {lifetime.days} days; {longest.days} are the most that is issued"
    if it.facts.not_after <= it.now:
        yield _E, f"it ended on {it.facts.not_after:%Y-%m-%d %H:%M}Z"
    elif it.facts.not_after - it.now < lifetime / 10:
        yield _W, f"less than a tenth of its lifetime is left: it ends on {it.facts.not_after:%Y-%m-%d %H:%M}Z"
    if it.facts.not_before > it.now:
        yield _E, f"it begins on {it.facts.not_before:%Y-%m-%d %H:%M}Z"


def _identity(it: _Subject) -> Iterator[Found]:
    if it.facts.is_ca:
        return
    if len(it.facts.uris) != 1:
        yield _E, f"it carries {len(it.facts.uris)} URI names; exactly one spiffe URI is an identity"
        return
    try:
        parse_identity(it.facts.identity)
    except InvalidRequest as problem:
        yield _E, str(problem)


def _names(it: _Subject) -> Iterator[Found]:
    if it.facts.is_ca:
        return
    if it.profile is not None and it.profile.names and not it.facts.names:
        yield _E, "it carries no DNS name or address, so nobody can dial it"
    if it.profile is not None and not it.profile.names and it.facts.names:
        yield _W, f"a {it.profile.role.value} is not dialled, and it carries {', '.join(it.facts.names[:5])}"
    for dns in _dns(it.certificate):
        try:
            (parsed,) = parse_names([dns])
        except (ConfigError, ValueError) as problem:
            yield _E, f"its DNS name {dns[:100]!r} can never match: {problem}"
            continue
        if not isinstance(parsed, str):
            yield _E, f"its DNS name {dns} is an address, which counts only as an IP name"


def _usage(it: _Subject) -> Iterator[Found]:
    if it.facts.is_ca:
        if "key_cert_sign" not in it.facts.key_usage:
            yield _E, "a CA without the key usage keyCertSign signs nothing that is believed"
        return
    if len(it.facts.usage) != 1:
        yield (
            _W if it.facts.usage else _E,
            f"it is for {', '.join(it.facts.usage) or 'nothing'}; one purpose is issued here",
        )
    elif it.profile is not None and it.facts.usage != (it.profile.usage,):
        yield _E, f"it is for a {it.facts.usage[0]}, and its role is {it.profile.role.value}"
    if "digital_signature" not in it.facts.key_usage:
        yield _E, "it lacks the key usage digitalSignature"
    if {"key_cert_sign", "crl_sign"} & set(it.facts.key_usage):
        yield _E, "it may sign certificates or revocation lists, and is no CA"


def _constraints(it: _Subject) -> Iterator[Found]:
    if not it.facts.is_ca:
        return
    if it.facts.path_length is None:
        yield _W, "it has no path length, so a CA below it may make more CAs"
    if not any(text.startswith("URI:") for text in it.facts.permitted):
        yield _W, "it is not constrained to a trust domain: its key could name anyone"
    if not any(text.startswith("DNS:") for text in it.facts.permitted):
        yield _W, "it is not constrained to DNS domains: where a browser trusts it, its key could be any web site"
    if any(text.startswith("IP:") for text in (*it.facts.permitted, *it.facts.excluded)):
        yield _E, "it has an address constraint, for which BoringSSL (gRPC) refuses every certificate with an address"
    if not _is_critical(it.certificate, x509.BasicConstraints):
        yield _E, "its basic constraints are not critical"


def _serial(it: _Subject) -> Iterator[Found]:
    if it.certificate.serial_number.bit_length() < 64:
        yield _W, "its serial number has fewer than 64 bits, so it can be guessed"


def _labels(it: _Subject) -> Iterator[Found]:
    if it.facts.labels and it.profile is not None and not it.profile.labels:
        yield _W, f"it grants labels, which mean nothing for a {it.profile.role.value}"


def _readable(it: _Subject) -> Iterator[Found]:
    for problem in it.facts.problems:
        yield _E, problem


RULES: dict[str, Rule] = {
    "readable": _readable,
    "key": _key,
    "signature": _signature,
    "lifetime": _lifetime,
    "identity": _identity,
    "names": _names,
    "usage": _usage,
    "constraints": _constraints,
    "serial": _serial,
    "labels": _labels,
}


def lint_file(file: Path, profiles: Profiles, now: datetime) -> list[Finding]:
    """Return what the rules find in each certificate of a file; ConfigError when it holds none."""
    found = []
    for certificate in read_certificates(file):
        facts = facts_of(certificate)
        subject = _Subject(facts, certificate, _profile(facts, profiles), profiles, now)
        for name, rule in RULES.items():
            found += [Finding(file=str(file), rule=name, level=level, what=what) for level, what in rule(subject)]
    return found


def lint_directory(directory: Path, profiles: Profiles, now: datetime) -> list[Finding]:
    """Return what is wrong in the standard place: its certificates, its keys and who may read them.

    Raises:
        ConfigError: there is no such directory.
    """
    if not directory.is_dir():
        raise ConfigError(f"there is no {directory}", fix="make a CA with `secure-dagu pki init`, or name a file")
    found: list[Finding] = []
    for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir() and not path.is_symlink())):
        if (mode := stat.S_IMODE(folder.stat().st_mode)) & 0o022:
            found.append(_finding(folder, "mode", _E, f"others may put files there (mode {mode:04o}): chmod 700"))
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        if file.suffix == ".key":
            found += _lint_key(file)
        elif file.suffix == ".crt":
            try:
                found += lint_file(file, profiles, now)
            except ConfigError as problem:
                found.append(_finding(file, "readable", _E, problem.why))
        elif file.suffix == ".jsonl" and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            found.append(_finding(file, "mode", _W, f"others may read it (mode {mode:04o}): chmod 600"))
    return found


def _lint_key(file: Path) -> Iterator[Finding]:
    if (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        yield _finding(file, "mode", _E, f"others may use this key (mode {mode:04o}): chmod 600")
    text = file.read_bytes()
    is_ca = file.name in ("ca.key", "issuing.key")
    if text.startswith(b"pkcs11:") or (is_ca and keys.is_encrypted(text)):
        return
    if is_ca:
        yield _finding(file, "at-rest", _W, "the CA's key is not under a passphrase: `secure-dagu pki passphrase`")
    try:
        private = keys.load_private(text)
    except (ValueError, TypeError) as problem:
        yield _finding(file, "readable", _E, f"it is no private key that a service can use: {problem}")
        return
    if not isinstance(private, keys.PrivateKey) or not file.with_suffix(".crt").exists():
        return
    certificates = read_certificates(file.with_suffix(".crt"))
    if not any(keys.fingerprint(one.public_key()) == keys.fingerprint(private.public_key()) for one in certificates):
        yield _finding(file, "pair", _E, f"it is not the key of {file.with_suffix('.crt').name}")


def _finding(file: Path, rule: str, level: Level, what: str) -> Finding:
    return Finding(file=str(file), rule=rule, level=level, what=what)


def _profile(facts: Facts, profiles: Profiles) -> Profile | None:
    try:
        return None if facts.is_ca else profiles.roles[parse_identity(facts.identity).role]
    except InvalidRequest:
        return None


def _dns(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return names.get_values_for_type(x509.DNSName)


def _is_critical(certificate: x509.Certificate, kind: type[x509.BasicConstraints]) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(kind).critical
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
