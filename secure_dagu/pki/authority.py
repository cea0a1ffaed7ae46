"""Sign certificates and revocation lists: the only place that uses a CA key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, InvalidRequest
from secure_dagu.pki import certificates, keys, requests
from secure_dagu.pki.keys import KeyKind, PublicKey
from secure_dagu.pki.ledger import Ledger, LedgerEntry, Status
from secure_dagu.pki.names import IpAddress
from secure_dagu.pki.profiles import MIN_LIFETIME, CaProfile, Profile
from secure_dagu.security.grants import NOTHING, Grants
from secure_dagu.security.identity import NAME, Identity, parse_identity


class Issued(Struct, frozen=True, kw_only=True):
    """A new certificate, in memory."""

    identity: Identity
    certificate: bytes
    """PEM: the certificate, then the issuing CA's if that is not itself the trust anchor. What its holder presents."""
    key: bytes
    """PEM; empty where the holder made the key and sent a signing request."""
    entry: LedgerEntry


class Authority:
    """One CA: its key, its certificate and its ledger."""

    def __init__(
        self,
        *,
        signer: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        ledger: Ledger,
        trust: bytes = b"",
    ) -> None:
        """Take a CA's parts.

        Args:
            signer: its key: in memory, or one that a token signs for (`pki.hsm`).
            certificate: its certificate.
            ledger: where each certificate is entered before it is handed out.
            trust: PEM of what peers must trust; empty: this CA itself, which then is its own root.
        """
        self._signer = signer
        self._certificate = certificate
        self._trust_domain = trust_domain_of(certificate)
        self.ledger = ledger
        self._trust = trust or certificate.public_bytes(Encoding.PEM)
        self._is_anchor = certificate.issuer == certificate.subject

    @property
    def certificate(self) -> x509.Certificate:
        """Return the CA's own certificate."""
        return self._certificate

    @property
    def trust_pem(self) -> bytes:
        """Return what every peer must trust."""
        return self._trust

    @property
    def chain_pem(self) -> bytes:
        """Return what follows a certificate of this CA in its holder's file: the CA's own, unless it is the root."""
        return b"" if self._is_anchor else self._certificate.public_bytes(Encoding.PEM)

    @property
    def trust_domain(self) -> str:
        """Return the trust domain of every identity that this CA issues."""
        return self._trust_domain

    @property
    def not_after(self) -> datetime:
        """Return the end of the CA itself."""
        return self._certificate.not_valid_after_utc

    def issue(
        self,
        profile: Profile,
        name: str,
        *,
        now: datetime,
        names: Sequence[str | IpAddress] = (),
        labels: Grants = NOTHING,
        lifetime: timedelta | None = None,
        kind: KeyKind | None = None,
        actor: str = "",
    ) -> Issued:
        """Make a key and a certificate for it, and enter it in the ledger before handing it out.

        Args:
            profile: of the role.
            name: whose it is.
            now: aware UTC.
            names: under which it is dialled, for a role that carries them.
            labels: that it grants, for a role that may.
            lifetime: None means the profile's. It never outlives the CA.
            kind: of key; None means the profile's first.
            actor: who asks, for the ledger.

        Raises:
            ConfigError: a request outside the profile or outside the CA's own constraints, or a CA that has ended.
        """
        key = keys.new_key(kind or profile.keys[0])
        if kind is not None and kind not in profile.keys:
            raise ConfigError(
                f"a {profile.role.value} certificate has no {kind} key", fix=f"choose one of {', '.join(profile.keys)}"
            )
        return self._certify(
            key.public_key(), profile, name, now, names, labels, lifetime, actor, key_pem=keys.private_pem(key)
        )

    def sign(
        self,
        request: bytes,
        profile: Profile,
        name: str,
        *,
        now: datetime,
        names: Sequence[str | IpAddress] = (),
        labels: Grants = NOTHING,
        lifetime: timedelta | None = None,
        actor: str = "",
    ) -> Issued:
        """Certify the key of a PKCS#10 request (PEM or DER), of which only that key and its proof are taken.

        Raises:
            InvalidRequest: the request is malformed, or its key is weak, revoked, or somebody else's.
            ConfigError: as `issue`.
        """
        key = requests.key_of(request, profile.keys)
        self._check_key(key, profile.role, name)
        return self._certify(key, profile, name, now, names, labels, lifetime, actor, key_pem=b"")

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """Sign a revocation list, with this CA as its issuer."""
        issuer = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            builder.issuer_name(self._certificate.subject)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._signer, keys.hash_for(self._signer.public_key()))
        )

    def sign_issuing_ca(
        self, key: ec.EllipticCurvePublicKey, profile: CaProfile, *, day: str, now: datetime
    ) -> x509.Certificate:
        """Sign the CA that issues under this root, with this root's own constraints. `day`: by which it is named.

        Raises:
            ConfigError: this CA is no root for others, or has ended.
        """
        if not self._is_root:
            raise ConfigError(
                "this CA cannot sign another CA",
                why="its path length is 0",
                fix="make an offline root with `secure-dagu pki init --offline-root` in a directory of its own",
            )
        self._check_end(now)
        return certificates.sign_ca(
            self._signer,
            self._certificate,
            trust_domain=self._trust_domain,
            label=f"secure-dagu issuing CA {day}",
            key=key,
            path_length=profile.path_length,
            permitted=certificates.permitted_domains(self._certificate) or (),
            now=now,
            until=min(now + timedelta(days=profile.days), self.not_after),
        )

    def _certify(
        self,
        key: PublicKey,
        profile: Profile,
        name: str,
        now: datetime,
        names: Sequence[str | IpAddress],
        labels: Grants,
        lifetime: timedelta | None,
        actor: str,
        *,
        key_pem: bytes,
    ) -> Issued:
        self._check_end(now)
        self._check_is_issuer()
        check_request(profile, name, names, labels, lifetime)
        self._check_names(names)
        identity = Identity(self._trust_domain, profile.role, name)
        until = min(now + (lifetime or profile.lifetime), self.not_after)
        made = certificates.sign_leaf(
            self._signer, self._certificate, identity=identity, key=key, usage=profile.usage, names=names,
            labels=labels, now=now, until=until,
        )  # fmt: skip
        entry = LedgerEntry(
            serial=f"{made.serial_number:x}",
            name=name,
            role=profile.role.value,
            identity=identity.uri,
            issued_at=iso(now),
            not_before=iso(made.not_valid_before_utc),
            not_after=iso(until),
            names=tuple(str(item) for item in names),
            labels=tuple(f"{label}={value}" for label, value in sorted(labels.pairs)),
            fingerprint=made.fingerprint(hashes.SHA256()).hex(),
            key=keys.kind_of(key),
            key_fingerprint=keys.fingerprint(key),
            issuer=self._certificate.fingerprint(hashes.SHA256()).hex(),
            actor=actor,
        )
        self.ledger.append(entry)
        presented = made.public_bytes(Encoding.PEM) + self.chain_pem
        return Issued(identity=identity, certificate=presented, key=key_pem, entry=entry)

    def _check_end(self, now: datetime) -> None:
        if now >= self.not_after:
            raise ConfigError(
                "the CA itself has ended",
                why=f"on {self.not_after:%Y-%m-%d %H:%M}Z",
                fix="make a new CA in another directory with `secure-dagu pki init` and re-issue every certificate",
            )

    @property
    def _is_root(self) -> bool:
        """Tell whether this CA signs CAs."""
        return self._certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length != 0

    def _check_is_issuer(self) -> None:
        if self._is_root:
            raise ConfigError(
                "this is an offline root",
                why="it signs issuing CAs, and they sign everything else",
                fix="issue on the host of the issuing CA (`secure-dagu pki init --issuing-ca`)",
            )

    def _check_names(self, names: Sequence[str | IpAddress]) -> None:
        permitted = certificates.permitted_domains(self._certificate)
        if permitted is None:
            return
        for name in names:
            if isinstance(name, str) and not any(name == one or name.endswith(f".{one}") for one in permitted):
                raise ConfigError(
                    f"this CA cannot name {name}",
                    why=f"its own certificate limits it to {', '.join(permitted)}, with what is below",
                    fix="rotate to a CA that may (`secure-dagu pki rotate prepare`), or make one with "
                    f"`secure-dagu pki init --permit {name}` in another directory",
                )

    def _check_key(self, key: PublicKey, role: Role, name: str) -> None:
        """Refuse a key that was revoked, or that somebody else holds (threats T06, T17)."""
        if key == self._signer.public_key():
            raise InvalidRequest("the signing request is refused", why="its key is the CA's own")
        for entry in self.ledger.with_key(keys.fingerprint(key)):
            if entry.status is Status.REVOKED or (entry.role, entry.name) != (role.value, name):
                what = "was revoked" if entry.status is Status.REVOKED else f"belongs to {entry.role}/{entry.name}"
                raise InvalidRequest(
                    "the signing request is refused", why=f"its key {what}", fix="make a new key on the machine itself"
                )


def check_request(
    profile: Profile, name: str, names: Sequence[str | IpAddress], labels: Grants, lifetime: timedelta | None
) -> None:
    """Check what a certificate is asked to be against the profile of its role.

    Raises:
        ConfigError: name, names, labels or lifetime are not what that role may have.
    """
    role = profile.role.value
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:200]!r} cannot be the name in a certificate",
            why="names are 1 to 64 letters, digits, '.', '_' and '-', with a letter or digit at both ends",
        )
    if profile.names and not names:
        raise ConfigError(
            f"a {role} certificate needs the names under which it is dialled", fix="add --advertise NAME[,NAME…]"
        )
    if names and not profile.names:
        raise ConfigError(
            f"a {role} certificate carries no DNS names or addresses",
            why="nobody dials it; its name is its identity",
            fix="leave --advertise out",
        )
    if labels and not profile.labels:
        raise ConfigError(
            f"a {role} certificate grants no labels",
            why="tasks are selected by the labels of workers",
            fix="leave --labels out",
        )
    if lifetime is not None and not MIN_LIFETIME <= lifetime <= profile.longest:
        raise ConfigError(
            f"a lifetime of {lifetime} is not issued to a {role}",
            why=f"1 minute to {profile.max_days} days are",
            fix="change --days",
        )


def make_authority(
    profile: CaProfile,
    signer: ec.EllipticCurvePrivateKey,
    *,
    trust_domain: str,
    permitted: Sequence[str],
    ledger: Path,
    now: datetime,
) -> Authority:
    """Make a new self-signed CA in memory.

    Args:
        profile: `Profiles.ca`, or `Profiles.root` for one that signs issuing CAs.
        signer: its key, from `keys.new_ca_key` or inside a token.
        trust_domain: first part of every identity.
        permitted: DNS domains in which it may name coordinators; those of a CA that it follows: `permitted_domains`.
        ledger: file of what it issues.
        now: aware UTC.

    Raises:
        ConfigError: the trust domain cannot be part of an identity.
    """
    try:
        parse_identity(f"spiffe://{trust_domain}/{Role.ADMIN.value}/x")
    except InvalidRequest as problem:
        raise ConfigError(
            f"{trust_domain[:200]!r} is no trust domain", why="it is lower-case letters, digits, '.' and '-'"
        ) from problem
    certificate = certificates.sign_ca(
        signer,
        None,
        trust_domain=trust_domain,
        label="secure-dagu root CA" if profile.path_length else "secure-dagu CA",
        key=signer.public_key(),
        path_length=profile.path_length,
        permitted=permitted,
        now=now,
        until=now + timedelta(days=profile.days),
    )
    return Authority(signer=signer, certificate=certificate, ledger=Ledger(ledger))


def trust_domain_of(ca: x509.Certificate) -> str:
    """Return the trust domain that a CA certificate of ours carries.

    Raises:
        ValueError: it carries none, so it is no CA of ours.
    """
    try:
        alternatives = ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as problem:
        raise ValueError("it names no trust domain, so it is no CA of ours") from problem
    return str(uri).removeprefix("spiffe://")


def utc_now() -> datetime:
    """Return the time for certificates: UTC, whole seconds, as X.509 keeps it."""
    return datetime.now(UTC).replace(microsecond=0)


def iso(moment: datetime) -> str:
    """Return a time as the ledger keeps it."""
    return moment.isoformat(timespec="seconds")
