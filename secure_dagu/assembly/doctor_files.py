"""The doctor's checks on this host: configuration, key, certificate and revocation list, before anything is dialled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from secure_dagu.assembly import exceptions, reload
from secure_dagu.assembly.edge import client_policy
from secure_dagu.config.load import Loaded, peer_files
from secure_dagu.config.peers import Insecure, PeerFiles, Purpose
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, SecureDaguError
from secure_dagu.link import judgement, material
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from secure_dagu.pki.term import LATEST, read_term
from secure_dagu.security.checkup import Check, Name, State, Told, failed, ok, own_fault, warn
from secure_dagu.security.grants import is_reserved
from secure_dagu.security.mapping import Holder
from secure_dagu.security.verdict import Reason, Side

_ROLES: Final = {
    Purpose.WORKER: frozenset({Role.WORKER}),
    Purpose.OPERATOR: frozenset({Role.ADMIN, Role.DISPATCHER}),
}
_STALE_SOON: Final = timedelta(hours=12)


def examine(loaded: Loaded, purpose: Purpose, told: Told) -> ClientPolicy | UnsafePlaintext | None:
    """Check what lies on this host; return what to dial with, None when that cannot be done."""
    try:
        files = peer_files(loaded, purpose)
    except ConfigError as error:
        told(failed(Name.FILES, error, code="no_certificate_files"))
        return None
    if isinstance(files, Insecure):
        told(
            warn(
                Name.FILES, "plaintext", "PLAINTEXT: peer.insecure is on, no certificate is used",
                why="nobody is proven and everything can be read on the way",
                fix="turn it off on both ends and issue certificates with `secure-dagu pki issue ROLE NAME`",
            )
        )  # fmt: skip
    else:
        told(ok(Name.FILES, f"certificate files from {files.source}", target=str(files.cert.parent)))
        if any(check.state is State.FAIL for check in _certificate(loaded, purpose, files, told)):
            return None
    try:
        policy = _policy(loaded, purpose)
    except SecureDaguError as error:
        told(failed(Name.REVOCATION if "revocation" in error.why else Name.FILES, error))
        return None
    if isinstance(policy, ClientPolicy):
        check = _revocation(policy, datetime.now(UTC))
        told(check)
        if check.state is State.FAIL:
            return None
    return policy


def _policy(loaded: Loaded, purpose: Purpose) -> ClientPolicy | UnsafePlaintext:
    """Make the policy as the process itself does."""
    if purpose is not Purpose.WORKER:
        return client_policy(loaded, purpose)
    held = exceptions.admitted(loaded, purpose)
    found = reload.worker_files(loaded, held, check=lambda _: None)
    return found.policy if found is not None else UnsafePlaintext()


def _certificate(loaded: Loaded, purpose: Purpose, files: PeerFiles, told: Told) -> list[Check]:
    """Check key and certificate; every finding is told."""
    found: list[Check] = []

    def tell(check: Check) -> None:
        found.append(check)
        told(check)

    try:
        own = material.read_key(files.key)
        tell(ok(Name.KEY, "readable by nobody else", target=str(files.key)))
        presented = x509.load_pem_x509_certificates(material.read_file(files.cert, "certificate"))
        trusted = material.read_trust(files.ca)
    except ConfigError as error:
        is_key = not found and error.what.startswith(str(files.key))
        tell(failed(Name.KEY if is_key else Name.CERTIFICATE, error, code="key_file" if is_key else "certificate_file"))
        return found
    except ValueError as error:
        unreadable = ConfigError(f"{files.cert} cannot be used", why=f"it holds no readable PEM certificate: {error}")
        tell(failed(Name.CERTIFICATE, unreadable, code="certificate_file", target=str(files.cert)))
        return found
    leaf = presented[0]
    if not material.is_pair(own, leaf):
        unpaired = ConfigError(
            f"{files.key} is not the key of {files.cert}",
            why="their public keys differ",
            fix="point both settings at one pair",
        )
        tell(failed(Name.KEY, unpaired, code="key_mismatch", target=str(files.key)))
        return found
    judged = judgement.judge(presented, trusted, side=Side.SERVER, rules=loaded.settings.peer.identity_rules)
    if isinstance(judged, judgement.Objection) and judged.reason is Reason.UNTRUSTED_CA:
        tell(
            warn(
                Name.CERTIFICATE, judged.reason.value, f"no CA of {files.ca} stands behind it", target=str(files.cert),
                why="that is right only where the coordinator's certificate comes from another CA than ours",
                fix="compare the CA of our certificate with the coordinator's peer.client_ca_file",
            )
        )  # fmt: skip
        return found
    if isinstance(judged, judgement.Objection):
        detail, fix = judged.detail, ""
        if judged.reason is Reason.CERT_EXPIRED:
            detail, fix = f"it ended on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M}Z", material.way_back(leaf)
        tell(own_fault(Name.CERTIFICATE, judged.reason, detail, target=str(files.cert), fix=fix))
        return found
    facts = material.facts_of(files.cert, leaf)
    authority = material.subject_of(trusted[0])
    tell(
        ok(
            Name.CERTIFICATE, target=str(files.cert),
            what=f"{facts.key_type}, for clients, signed by {authority!r}, serial {facts.serial:x}",
        )
    )  # fmt: skip
    tell(_identity(loaded, purpose, judged, files.cert))
    if purpose is Purpose.WORKER and loaded.settings.worker.labels:
        tell(_labels(loaded, judged, files.cert))
    tell(_renewal(files.cert, datetime.now(UTC)))
    return found


def _identity(loaded: Loaded, purpose: Purpose, holder: Holder, cert: Path) -> Check:
    identity, worker = holder.identity, loaded.settings.worker.id
    if identity.role not in _ROLES[purpose]:
        wanted = " or ".join(sorted(role.value for role in _ROLES[purpose]))
        return Check(
            check=Name.IDENTITY, state=State.FAIL, code="role_not_allowed", target=str(cert), exit_code=4,
            what=f"the certificate names {identity.uri}, and this wants the role {wanted}",
            why="the role in the certificate decides what its holder may call",
            fix=f"issue one with `secure-dagu pki issue {sorted(role.value for role in _ROLES[purpose])[0]} NAME`",
        )  # fmt: skip
    said = loaded.sources.get("worker.id", "default") != "default"
    if purpose is Purpose.WORKER and said and worker.partition("@")[0] != identity.name:
        return Check(
            check=Name.IDENTITY, state=State.FAIL, code="worker_id_mismatch", target=str(cert), exit_code=3,
            what=f"worker.id is {worker!r} and the certificate names {identity.uri}",
            why="a worker acts only as itself",
            fix=f"say --worker.id={identity.name}, or issue a certificate with `secure-dagu pki issue worker NAME`",
        )  # fmt: skip
    granted = f", granted {holder.grants}" if holder.grants else ""
    return ok(Name.IDENTITY, f"{identity.uri}{granted}", target=str(cert))


def _labels(loaded: Loaded, holder: Holder, cert: Path) -> Check:
    missing = holder.grants.missing(loaded.settings.worker.labels)
    if not missing:
        return ok(Name.LABELS, "every label of worker.labels is granted", target=str(cert))
    shown = ",".join(missing)
    fix = f"`secure-dagu pki issue worker {holder.identity.name} --force --labels {shown}` on the host of the CA"
    check = warn(
        Name.LABELS, "label_not_granted", f"not granted: {shown}", target=str(cert), fix=fix,
        why=f"the certificate grants {holder.grants or 'no labels'}; whether the coordinator takes them shows below",
    )  # fmt: skip
    if not any(is_reserved(label) for label in missing):
        return check
    return Check(
        check=check.check, state=State.FAIL, code=check.code, target=check.target, what=check.what,
        why=f"the certificate grants {holder.grants or 'no labels'}, and security labels always need a grant",
        fix=fix, exit_code=4,
    )  # fmt: skip


def _renewal(cert: Path, now: datetime) -> Check:
    term = read_term(cert)
    left, whole = term.not_after - now, term.not_after - term.begins_at
    said = f"{span(left)} left of {span(whole)}, until {term.not_after:%Y-%m-%d %H:%M}Z"
    if now - term.begins_at > whole * LATEST:
        return warn(
            Name.RENEWAL, "renewal_overdue", said, target=str(cert),
            why=f"it was due on {term.due_at:%Y-%m-%d %H:%M}Z and nobody has renewed it",
            fix="look for renewal errors in the log, or issue one with `secure-dagu pki issue ROLE NAME --force`",
        )  # fmt: skip
    return ok(Name.RENEWAL, f"{said}; renewal is due on {term.due_at:%Y-%m-%d %H:%M}Z", target=str(cert))


def _revocation(policy: ClientPolicy, now: datetime) -> Check:
    revocation = policy.standing.revocation
    if revocation is None:
        return ok(Name.REVOCATION, "no revocation list is read here; the coordinator reads its own")
    if revocation.is_revoked(policy.own.serial):
        return own_fault(
            Name.REVOCATION, Reason.CERT_REVOKED, f"by list number {revocation.number} on this host",
            target=str(policy.own.file),
        )  # fmt: skip
    due = f"{revocation.next_update:%Y-%m-%d %H:%M}Z"
    said = f"list number {revocation.number}, {revocation.entries} revoked, the next one due on {due}"
    if policy.standing.is_closed(now):
        return own_fault(Name.REVOCATION, Reason.CLIENT_CRL_UNUSABLE, said, target=str(policy.own.file))
    if revocation.next_update - now < _STALE_SOON:
        return warn(
            Name.REVOCATION, "crl_stale", said, why="past its grace nothing is dialled any more",
            fix="bring a fresh ca.crl here: `secure-dagu pki crl --renew` on the host of the CA makes it",
        )  # fmt: skip
    return ok(Name.REVOCATION, said)


def span(length: timedelta) -> str:
    """Return a length of time for people."""
    seconds = int(length.total_seconds())
    if seconds >= 2 * 86400:
        return f"{seconds // 86400} days"
    return (
        f"{seconds // 3600} h {seconds % 3600 // 60} min"
        if seconds >= 3600
        else f"{seconds // 60} min {seconds % 60} s"
    )
