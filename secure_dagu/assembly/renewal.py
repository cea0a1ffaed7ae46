"""Certificates renew themselves: a worker's and an operator's over the network.

A certificate is renewed at a point between a half and two thirds of its lifetime that comes from itself
(`pki.term`), so machines that started together do not ask together. Time is the wall clock, looked at every minute,
because a machine that slept has a monotonic clock that slept too. The new pair is written, and whoever watches the
files takes it into use (`assembly.reload`). What lies on the CA's own host is renewed by `assembly.own_renewal`: a
process that cannot sign holds nothing that could.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from secure_dagu.assembly.edge import proxy_of
from secure_dagu.config.load import Loaded, peer_files
from secure_dagu.config.peers import STANDARD, Insecure, Purpose
from secure_dagu.config.values import Address
from secure_dagu.errors import SecureDaguError
from secure_dagu.link import context, enrol
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from secure_dagu.link.proxying import Proxy
from secure_dagu.pki import holder, pair
from secure_dagu.pki.holder import Granted, Wish
from secure_dagu.pki.term import Term, read_term
from secure_dagu.security.identity import NAME

log = structlog.get_logger()

LOOK: Final = timedelta(minutes=1)
FIRST_RETRY: Final = timedelta(minutes=1)
LAST_RETRY: Final = timedelta(hours=1)
TRUST_EVERY: Final = timedelta(minutes=10)
"""How often a worker asks what to trust: in a rotation it must know the new CA before the coordinator presents it."""

Now = Callable[[], datetime]
Renew = Callable[[], Awaitable[Granted]]


def _utc() -> datetime:
    return datetime.now(UTC)


class Renewal:
    """One certificate that is renewed in time. `look` does what is due; it is called again after `pause`."""

    def __init__(
        self, certificate: Path, renew: Renew, *, rejoin: str, now: Now = _utc, ca: Path | None = None
    ) -> None:
        """`renew` gets the new pair; `rejoin` is the way back once it is too late, for the log. `ca`: the bundle, whose
        first CA signs now: a certificate of another one is renewed at once, which ends a rotation of the CA."""
        self._certificate, self._renew, self._rejoin, self._now, self._ca = certificate, renew, rejoin, now, ca
        self._moved_to: set[bytes] = set()
        self._failures = 0
        self._retry_at: datetime | None = None
        self._told: datetime | None = None

    async def look(self) -> Granted | None:
        """Renew if it is due; return the new pair, which is in place. Whatever goes wrong is logged and tried again."""
        try:
            term, now = read_term(self._certificate), self._now()
        except SecureDaguError as problem:
            log.warning("renewal.failed", **problem.as_dict())
            return None
        signer = self._other_signer() if now < term.due_at else None
        if (now < term.due_at and signer is None) or (self._retry_at is not None and now < self._retry_at):
            return None
        if now >= term.not_after:
            self._say_too_late(term)
            return None
        try:
            granted = await self._renew()
            await asyncio.to_thread(
                holder.keep, self._certificate.parent, granted, stem=self._certificate.name.removesuffix(".crt")
            )
        except SecureDaguError as problem:
            self._put_off(term, now, problem)
            return None
        self._failures, self._retry_at = 0, None
        if signer is not None:
            self._moved_to.add(signer)  # once for each: a bundle may be in an order of its own
        log.info("renewal.done", identity=granted.identity.uri, until=f"{granted.not_after:%Y-%m-%d %H:%M}Z")
        return granted

    @property
    def pause(self) -> float:
        """Return the seconds until the next look: a minute, less for certificates that live for minutes."""
        with contextlib.suppress(SecureDaguError):
            term = read_term(self._certificate)
            return max(1.0, min(LOOK.total_seconds(), (term.not_after - term.begins_at).total_seconds() / 60))
        return LOOK.total_seconds()

    def _other_signer(self) -> bytes | None:
        """Return the CA that signs now if it is another than ours and was not moved to before."""
        if self._ca is None:
            return None
        try:
            leaf = x509.load_pem_x509_certificate(self._certificate.read_bytes())
            first, *others = x509.load_pem_x509_certificates(self._ca.read_bytes())
        except (OSError, ValueError):
            return None
        signer = first.fingerprint(hashes.SHA256())
        if not others or signer in self._moved_to:
            return None
        try:
            leaf.verify_directly_issued_by(first)
        except (ValueError, TypeError, InvalidSignature):
            return signer
        return None

    def _put_off(self, term: Term, now: datetime, problem: SecureDaguError) -> None:
        self._failures += 1
        left = term.not_after - now
        wait = min(FIRST_RETRY * 2 ** min(self._failures - 1, 10), LAST_RETRY, left / 10)
        self._retry_at = now + wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, protects nothing
        log.warning(
            "renewal.failed",
            identity=term.identity,
            until=f"{term.not_after:%Y-%m-%d %H:%M}Z",
            retry_at=f"{self._retry_at:%Y-%m-%d %H:%M:%S}Z",
            **problem.as_dict(),
        )

    def _say_too_late(self, term: Term) -> None:
        if self._told == term.not_after:
            return
        self._told = term.not_after
        log.error(
            "renewal.too_late",
            identity=term.identity,
            why=f"the certificate ended on {term.not_after:%Y-%m-%d %H:%M}Z, and only a valid one can be renewed",
            fix=self._rejoin,
        )


async def ask(policy: ClientPolicy, coordinators: Sequence[Address], proxy: Proxy | None) -> Granted:
    """Renew the certificate of a policy at the first coordinator that does it.

    Raises:
        SecureDaguError: of the last one that was asked.
    """
    wish, last = Wish(), None
    for address in coordinators:
        try:
            return wish.granted(await enrol.ask(policy, address.host, address.port, wish.to_renew(), proxy=proxy))
        except SecureDaguError as problem:
            last = problem
    assert last is not None, "there is a coordinator"
    raise last


async def ask_trust(policy: ClientPolicy, coordinators: Sequence[Address], ca: Path, proxy: Proxy | None) -> None:
    """Bring a CA bundle up to date; says nothing when no coordinator answers, for the next time will do."""
    for address in coordinators:
        try:
            answer = await enrol.ask(policy, address.host, address.port, holder.TRUST_REQUEST, proxy=proxy)
            said = holder.read_answer(answer)
            is_new = bool(said.ca) and holder.keep_trust(ca, said.ca.encode())
            if is_new:
                log.info("trust.updated", file=str(ca), coordinator=str(address))
        except SecureDaguError as problem:
            log.debug("trust.not_asked", coordinator=str(address), why=str(problem))
        else:
            return


def rejoin_words(name: str) -> str:
    """Return how a worker comes back whose certificate has ended."""
    token = f"secure-dagu pki token --worker {name}"
    return f"`secure-dagu join LINE`, LINE being what `{token}` prints on the coordinator's host"


@contextlib.asynccontextmanager
async def worker_kept_renewed(
    loaded: Loaded, policy: Callable[[], ClientPolicy | UnsafePlaintext]
) -> AsyncIterator[None]:
    """Renew a worker's certificate for the time of the context.

    Only where it lies in the standard place: files that `peer.*` names are somebody else's to renew.
    """
    files = peer_files(loaded, Purpose.WORKER)
    if isinstance(files, Insecure) or files.source != STANDARD:
        yield
        return
    coordinators, proxy = loaded.settings.worker.coordinators, proxy_of(loaded)

    def current() -> ClientPolicy:
        now = policy()
        assert isinstance(now, ClientPolicy), "a process does not change to plaintext"
        return now

    renewal = Renewal(
        files.cert,
        lambda: ask(current(), coordinators, proxy),
        rejoin=rejoin_words(loaded.settings.worker.id.partition("@")[0]),
        ca=files.ca,
    )
    async with kept(renewal, lambda: ask_trust(current(), coordinators, files.ca, proxy)):
        yield


async def operator_renewed(loaded: Loaded) -> None:
    """Renew an operator's certificate before a command if it is due; a command does not fail for want of it."""
    from secure_dagu.pki import directory  # a worker has no part in it

    files = peer_files(loaded, Purpose.OPERATOR)
    if isinstance(files, Insecure) or files.source != STANDARD or directory.ca_key_file(loaded.home.pki_dir).exists():
        return  # where the CA is, the coordinator renews it
    try:
        term = read_term(files.cert)
        if not term.due_at <= _utc() < term.not_after:
            return
        policy = context.client_policy(cert=files.cert, key=files.key, ca=files.ca)
        granted = await ask(policy, loaded.settings.client.coordinators[:1], proxy_of(loaded))
        holder.keep(files.cert.parent, granted, stem=files.cert.stem)
    except SecureDaguError as problem:
        log.debug("renewal.failed", **problem.as_dict())


def finish_interrupted(loaded: Loaded, stem: str) -> None:
    """Complete a renewal that a crash interrupted between its two files (`pki.pair`), before they are read."""
    if NAME.fullmatch(stem):
        pair.finish(loaded.home.pki_dir, stem)


@contextlib.asynccontextmanager
async def kept(renewal: Renewal, ask_trust_too: Callable[[], Awaitable[None]] | None) -> AsyncIterator[None]:
    """Look again and again for the time of the context; `ask_trust_too`: done every `TRUST_EVERY`."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_keep(renewal, ask_trust_too), name="renew certificates")
        try:
            yield
        finally:
            task.cancel()


async def _keep(renewal: Renewal, ask_trust_too: Callable[[], Awaitable[None]] | None) -> None:
    asked_at = _utc()
    while True:
        await renewal.look()
        if ask_trust_too is not None and not timedelta() <= _utc() - asked_at < TRUST_EVERY:
            asked_at = _utc()
            await ask_trust_too()
        await asyncio.sleep(renewal.pause * random.uniform(0.8, 1.0))  # noqa: S311 - as above
