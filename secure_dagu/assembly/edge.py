"""The TLS edge of a process: its policy from the settings, and what is said of each link and call."""

from __future__ import annotations

import platform

import structlog

from secure_dagu import __version__
from secure_dagu.assembly.exceptions import InForce, admitted
from secure_dagu.config.load import Loaded, peer_files
from secure_dagu.config.peers import Insecure, Purpose
from secure_dagu.errors import ConfigError
from secure_dagu.link import context, proxying
from secure_dagu.link.context import ClientPolicy, MinimumTls, ServerPolicy, UnsafePlaintext
from secure_dagu.link.proxying import Proxy
from secure_dagu.link.register import Happening, LinkEvent
from secure_dagu.security.exceptions import Kind
from secure_dagu.telemetry import metrics

log = structlog.get_logger()

PLAINTEXT_BANNER = (
    "PLAINTEXT: peer.insecure=true. Nobody on this port is proven, everything can be read and changed on the way; "
    "managed secrets are refused. Use it only inside an isolated network."
)


def minimum(loaded: Loaded, held: InForce) -> MinimumTls:
    """Return the oldest TLS version: 1.2 only as long as an exception holds for it."""
    is_1_2 = loaded.settings.peer.min_tls_version == "1.2" and held.permits(Kind.TLS_1_2)
    return MinimumTls.V1_2 if is_1_2 else MinimumTls.V1_3


def client_policy(loaded: Loaded, purpose: Purpose) -> ClientPolicy | UnsafePlaintext:
    """Return the policy of who dials, by what the exception ledger says now.

    Raises:
        ConfigError: certificate files are unfit, or the configuration needs an exception that does not hold.
    """
    held = admitted(loaded, purpose)
    files = peer_files(loaded, purpose)
    if isinstance(files, Insecure):
        return UnsafePlaintext()
    return context.client_policy(
        cert=files.cert,
        key=files.key,
        ca=files.ca,
        rules=loaded.settings.peer.identity_rules,
        minimum=minimum(loaded, held),
    )


def proxy_of(loaded: Loaded) -> Proxy | None:
    """Return the HTTP proxy on the way to coordinators; None: there is none.

    Raises:
        ConfigError: `peer.proxy` is no address of one.
    """
    said = loaded.settings.peer.proxy
    if said is None or not said.reveal():
        return None
    try:
        return proxying.parse(said.reveal(), loaded.settings.peer.no_proxy)
    except ValueError as problem:
        raise ConfigError(
            f"peer.proxy ({loaded.sources['peer.proxy']}) cannot be used", why=str(problem),
            fix="say http://HOST:PORT, or list the coordinators in peer.no_proxy and unset it",
        ) from problem  # fmt: skip


def mode_of(policy: ServerPolicy | ClientPolicy | UnsafePlaintext) -> str:
    """Return the word for a transport: `mtls` or `insecure`."""
    return "insecure" if isinstance(policy, UnsafePlaintext) else "mtls"


def describe(policy: ServerPolicy | ClientPolicy | UnsafePlaintext, *, side: str) -> None:
    """Set the metrics that say what this process is and holds; be loud about plaintext."""
    import grpc

    metrics.BUILD_INFO.info(
        {
            "version": __version__,
            "revision": "",
            "python_version": platform.python_version(),
            "grpc_version": grpc.__version__,
        }
    )
    minimum = "none" if isinstance(policy, UnsafePlaintext) else "1.2" if policy.minimum is MinimumTls.V1_2 else "1.3"
    metrics.SECURITY_INFO.info(
        {
            "peer_mode": mode_of(policy),
            "min_tls_version": minimum,
            "cipher_policy": "default",
            "fips": "false",
            "crl": "off" if isinstance(policy, UnsafePlaintext) or policy.standing.revocation is None else "on",
        }
    )
    if isinstance(policy, UnsafePlaintext):
        log.warning("peer.insecure", banner=PLAINTEXT_BANNER)
        return
    metrics.revocation_loaded(policy.standing.revocation)
    slots = [(policy.own, side, "peer.cert_file"), *((ca, "ca", "peer.client_ca_file") for ca in policy.trust[:1])]
    for facts, role, source in slots:
        metrics.certificate_loaded(
            role, source, serial=facts.serial, not_before=facts.not_before, not_after=facts.not_after,
            key_type=facts.key_type,
        )  # fmt: skip


def server_events(event: LinkEvent) -> None:
    """Count and log what happens at the coordinator's edge."""
    if event.happening is Happening.REFUSED and event.verdict is not None:
        verdict = event.verdict
        metrics.handshake_failed(verdict.side, verdict.reason)
        log.warning(
            "link.refused",
            address=verdict.address,
            reason=verdict.label,
            why=verdict.why,
            fix=verdict.fix,
            subject=verdict.subject,
        )
    elif event.happening is Happening.OPENED and event.peer is not None:
        metrics.connection_opened(event.peer)
        log.debug("link.opened", peer=str(event.peer))


def client_events(event: LinkEvent) -> None:
    """Count what happens to a worker's dials; the worker logs their errors with what they cost it."""
    if event.happening is Happening.REFUSED and event.verdict is not None:
        if event.verdict.result == "tls":
            metrics.handshake_failed(event.verdict.side, event.verdict.reason)
        metrics.CONNECT_ATTEMPTS.labels(event.verdict.result).inc()
    elif event.happening is Happening.OPENED:
        metrics.CONNECT_ATTEMPTS.labels("ok").inc()


def would_deny(denial: object) -> None:
    """Count and log a call that only the dry-run lets through; it comes with every heartbeat, so it is logged once."""
    from secure_dagu.wire.interceptors import Denial

    assert isinstance(denial, Denial)
    metrics.call_would_be_denied(denial.reason, denial.method)
    seen = (denial.reason, denial.method, denial.claimed_worker, denial.error.what)
    if seen in _told:
        return
    if len(_told) >= _MAX_TOLD:
        _told.clear()
    _told.add(seen)
    log.warning(
        "call.would_be_refused",
        reason=denial.reason,
        method=denial.method,
        peer=str(denial.peer),
        claimed_worker=denial.claimed_worker,
        what=denial.error.what,
        why=denial.error.why,
        fix=denial.error.fix,
    )


_told: set[tuple[str, str, str, str]] = set()
_MAX_TOLD = 1000


def denied(denial: object) -> None:
    """Count and log a call that the wall refused."""
    from secure_dagu.wire.interceptors import Denial

    assert isinstance(denial, Denial)
    metrics.call_denied(denial.reason, denial.method)
    log.warning(
        "call.refused",
        reason=denial.reason,
        method=denial.method,
        peer=str(denial.peer),
        claimed_worker=denial.claimed_worker,
        why=denial.error.why or denial.error.what,
    )
