"""The health port of a process: what it says, whether it is ready, and who may scrape it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog

from secure_dagu.assembly.exceptions import InForce, is_loopback
from secure_dagu.config.load import Loaded, peer_files
from secure_dagu.config.peers import Insecure, Purpose
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, SecureDaguError, Unauthenticated, Unavailable
from secure_dagu.link import context, listener, private
from secure_dagu.link.context import ClientPolicy, ServerPolicy, UnsafePlaintext
from secure_dagu.link.listener import Limits
from secure_dagu.link.register import Happening, OnEvent, Register
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.exceptions import Kind
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import health, metrics

if TYPE_CHECKING:
    from secure_dagu.wire.interceptors import Denial

log = structlog.get_logger()

Policy = ServerPolicy | ClientPolicy | UnsafePlaintext
SCRAPERS = frozenset({Role.METRICS, Role.ADMIN})
"""Roles whose certificates open `/metrics`."""
LIMITS = Limits(connections=health.MAX_CONNECTIONS, per_address=health.MAX_CONNECTIONS, handshakes=32)
MIN_TOKEN = 16
MAX_TOKEN = 1024


@contextlib.asynccontextmanager
async def serve_health(
    loaded: Loaded,
    section: str,
    *,
    facts: Callable[[], dict[str, object]],
    objections: Callable[[], Sequence[SecureDaguError]],
    policy: Callable[[], Policy],
    registries: Sequence[metrics.CollectorRegistry],
    held: InForce,
    on_event: OnEvent,
    denied: Callable[[Denial], None],
) -> AsyncIterator[None]:
    """Serve `/health`, `/ready` and `/metrics` unless the port is 0.

    Args:
        loaded: the configuration.
        section: `coordinator`, `worker` or `scheduler`.
        facts: what `/health` says.
        objections: why the process cannot work now, beside what is wrong with its certificate.
        policy: the one in use.
        registries: what `/metrics` shows.
        held: the exceptions in force; without one for it, public metrics stop at the host's edge.
        on_event: told of refused handshakes, where the port speaks HTTPS.
        denied: told of refused scrapes.

    Raises:
        ConfigError: the port cannot be had, or what protects `/metrics` is missing.
    """
    access, address = _where(loaded, section)
    if not address[1]:
        yield
        return

    def site(guard: health.Guard) -> health.Site:
        return health.Site(
            facts=lambda: {**facts(), **certificate_facts(policy())},
            objections=lambda: [*certificate_objections(policy(), datetime.now(UTC)), *objections()],
            exposition=lambda accept: metrics.exposition(accept, *registries),
            guard=guard,
        )

    is_local = is_loopback(address[0])
    if access == "tls" or (access == "token" and not is_local):
        register = Register(lambda event: on_event(event) if event.happening is Happening.REFUSED else None)
        guard = _by_certificate(register, policy, denied) if access == "tls" else _by_token(loaded)
        async with _https(loaded, section, address, site(guard), register, policy):
            yield
        return
    if access == "token":
        guard = _by_token(loaded)
    elif is_local:
        guard = health.anybody
    elif access == "public" or loaded.settings.core.metrics == "public":
        guard = _while_excepted(held)
    else:
        guard = health.nobody
    async with health.serve(
        site(guard),
        host=address[0],
        port=address[1],
        key=f"{section}.{'port' if section == 'scheduler' else 'health_port'}",
    ):
        yield


_PURPOSES = {"coordinator": Purpose.COORDINATOR, "worker": Purpose.WORKER, "scheduler": Purpose.OPERATOR}


def _where(loaded: Loaded, section: str) -> tuple[str, tuple[str, int]]:
    """Return who may scrape, and the address."""
    settings = loaded.settings
    if section == "scheduler":
        return settings.scheduler.metrics_access, (settings.scheduler.host, settings.scheduler.port)
    own = settings.coordinator if section == "coordinator" else settings.worker
    return own.metrics_access, (own.health_host, own.health_port)


@contextlib.asynccontextmanager
async def _https(
    loaded: Loaded,
    section: str,
    address: tuple[str, int],
    site: health.Site,
    register: Register,
    policy: Callable[[], Policy],
) -> AsyncIterator[None]:
    https = _https_policy(loaded, section, policy)
    with private.folder() as folder:
        backend = f"{folder}/http"
        async with (
            health.serve_behind(site, path=backend),
            listener.listen(
                bind=[address], policy=https(), https=https, backends=[backend], directory=folder, register=register,
                limits=LIMITS,
            ),
        ):  # fmt: skip
            yield


def _https_policy(loaded: Loaded, section: str, policy: Callable[[], Policy]) -> Callable[[], ServerPolicy]:
    """Return what says, for each connection, with which certificate the health port speaks HTTPS.

    Raises:
        ConfigError: there is no certificate that a server may use.
    """
    core = loaded.settings.core
    if (core.health_cert_file is None) != (core.health_key_file is None):
        raise ConfigError("health_cert_file and health_key_file belong together", why="one is given", fix="give both")
    files = peer_files(loaded, _PURPOSES[section])
    if isinstance(files, Insecure):
        raise ConfigError(
            f"{section}.metrics_access needs HTTPS", why="and peer.insecure uses no certificates",
            fix=f"turn peer.insecure off, or set {section}.metrics_access to private or, on loopback, to token",
        )  # fmt: skip
    if core.health_cert_file is not None and core.health_key_file is not None:
        return _OwnPair(core.health_cert_file, core.health_key_file, files.ca, policy)
    if isinstance(policy(), ServerPolicy):
        return cast(Callable[[], ServerPolicy], policy)
    raise ConfigError(
        f"{section}.metrics_access needs HTTPS, and there is no certificate for it",
        why=f"the certificate of a {section} is for clients only",
        fix="name a server certificate for this host in health_cert_file and health_key_file, or serve on loopback",
    )


class _OwnPair:
    """A certificate for the health port alone; changed files are taken over at the next connection."""

    def __init__(self, cert: Path, key: Path, ca: Path, like: Callable[[], Policy]) -> None:
        self._cert, self._key, self._ca, self._like = cert, key, ca, like
        self._seen: object = None
        self._policy = self._make()

    def __call__(self) -> ServerPolicy:
        if self._signs() != self._seen:
            try:
                self._policy = self._make()
            except ConfigError as error:
                log.warning("health.certificate_refused", used="the last good one", **error.as_dict())
        return self._policy

    def _make(self) -> ServerPolicy:
        self._seen = self._signs()
        like = self._like()
        assert not isinstance(like, UnsafePlaintext), "asked only where certificates are used"
        made = context.https_policy(cert=self._cert, key=self._key, ca=self._ca, like=like)
        own = made.own
        metrics.certificate_loaded(
            "https", "health_cert_file", serial=own.serial, not_before=own.not_before, not_after=own.not_after,
            key_type=own.key_type,
        )  # fmt: skip
        return made

    def _signs(self) -> object:
        with contextlib.suppress(OSError):
            stats = [file.stat() for file in (self._cert, self._key, self._ca)]
            return [*((found.st_ino, found.st_mtime_ns, found.st_size) for found in stats), id(self._like())]
        return None


# -- who may scrape ----------------------------------------------------------------------------------------------------


def _by_certificate(register: Register, policy: Callable[[], Policy], denied: Callable[[Denial], None]) -> health.Guard:
    from secure_dagu.wire.interceptors import Denial

    def guard(connection: str, _authorization: bytes) -> health.Refusal | None:
        peer = register.peer_of(connection)
        reason = _objection(peer, policy())
        if reason is None:
            return None
        text = f"a certificate of role {' or '.join(sorted(SCRAPERS))} is required ({reason.value})"
        denied(
            Denial(method="/metrics", reason=reason.value, peer=peer, claimed_worker="", error=Unauthenticated(text))
        )
        return health.Refusal(status=HTTPStatus.FORBIDDEN, text=text)

    return guard


def _objection(peer: Peer | None, policy: Policy) -> DenyReason | None:
    """Return why this peer may not scrape now: a connection may outlive the rights that it was opened with."""
    if peer is None or peer.identity is None or peer.not_after is None:
        return DenyReason.UNKNOWN_IDENTITY
    now = datetime.now(UTC)
    if now >= peer.not_after:
        return DenyReason.CERT_EXPIRED
    if not isinstance(policy, UnsafePlaintext) and (reason := policy.standing.objection(peer, now)) is not None:
        return reason
    return None if peer.identity.role in SCRAPERS else DenyReason.ROLE_NOT_ALLOWED


def _by_token(loaded: Loaded) -> health.Guard:
    return health.bearer(_token(loaded.settings.core.metrics_token_file))


def _while_excepted(held: InForce) -> health.Guard:
    def guard(connection: str, authorization: bytes) -> health.Refusal | None:
        return None if held.permits(Kind.METRICS_PUBLIC) else health.nobody(connection, authorization)

    return guard


def _token(file: Path | None) -> bytes:
    """Read the bearer token.

    Raises:
        ConfigError: there is none, others may read it, or it is too short to be a secret.
    """
    make = "make one: (umask 077; openssl rand -hex 32 > FILE), and name it in metrics_token_file"
    if file is None:
        raise ConfigError("metrics_token_file is required", why="metrics_access is `token`", fix=make)
    try:
        with file.open("rb") as opened:
            facts = os.fstat(opened.fileno())
            token = opened.read(MAX_TOKEN + 1).strip()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read", why=error.strerror or str(error), fix=make) from error
    forbidden = 0o037 if facts.st_uid == 0 else 0o077  # a mounted secret is root's and readable by one group
    if not stat.S_ISREG(facts.st_mode) or facts.st_mode & forbidden:
        raise ConfigError(
            f"{file} cannot be used", why="others may read this token", fix=f"chmod 600 {file}, or make a new one"
        )
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not token.isascii() or b" " in token:
        raise ConfigError(
            f"{file} cannot be used", why=f"a token has {MIN_TOKEN} to {MAX_TOKEN} characters without spaces", fix=make
        )
    return token


# -- what it says ------------------------------------------------------------------------------------------------------


def certificate_facts(policy: Policy) -> dict[str, Any]:
    """Return what `/health` says of our own certificate: when it ends, and which part of its life is over (0 to 1)."""
    if isinstance(policy, UnsafePlaintext):
        return {}
    own, now = policy.own, datetime.now(UTC)
    lived = (now - own.not_before) / (own.not_after - own.not_before)
    return {"certificate": {"not_after": f"{own.not_after:%Y-%m-%dT%H:%M:%SZ}", "lived": round(lived, 3)}}


def certificate_objections(policy: Policy, now: datetime) -> list[SecureDaguError]:
    """Return why nobody can be spoken to with what this process holds: its own certificate, its revocation list."""
    if isinstance(policy, UnsafePlaintext):
        return []
    own = policy.own
    found: list[SecureDaguError] = []
    again = "issue it again with `secure-dagu pki issue ROLE NAME --force`"
    if now >= own.not_after:
        found.append(
            Unauthenticated("our certificate has expired", why=f"on {own.not_after:%Y-%m-%d %H:%M}Z", fix=again)
        )
    elif now < own.not_before:
        found.append(
            Unauthenticated(
                "our certificate is not yet valid", why=f"before {own.not_before:%Y-%m-%d %H:%M}Z",
                fix="set the clock by NTP",
            )
        )  # fmt: skip
    if policy.standing.is_closed(now):
        found.append(
            Unavailable(
                "nobody is admitted", why="the revocation list is past its next update and the grace after it",
                fix="run `secure-dagu pki crl --renew` on the host of the CA and bring ca.crl here",
            )
        )  # fmt: skip
    return found
