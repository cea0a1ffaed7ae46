"""The doctor: dial as a worker or an operator does, and name the layer at fault.

From this host outwards: configuration, files, name, route, TLS, gRPC, clock, admission, advertised addresses. A layer
that fails ends the way to that coordinator, because everything behind it would only fail with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.backends.openssl import backend

from secure_dagu.assembly import doctor_files
from secure_dagu.assembly.edge import proxy_of
from secure_dagu.config.load import Loaded
from secure_dagu.config.peers import Purpose
from secure_dagu.config.values import Address, address
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, SecureDaguError
from secure_dagu.link import dialer, private, probe
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from secure_dagu.link.dialer import Dialer, Dialers
from secure_dagu.link.proxying import Proxy
from secure_dagu.security.checkup import Check, Name, Told, failed, ok, warn
from secure_dagu.security.verdict import LinkMisconfigured, LinkRefused, LinkUnavailable, Reason, Side, Verdict
from secure_dagu.security.verdict import error_of as link_error
from secure_dagu.telemetry import metrics
from secure_dagu.wire import process

if TYPE_CHECKING:
    from secure_dagu.wire.channel import Channel

SKEW_WARNS_S: Final = 30.0
"""Certificates are dated back by minutes; a clock that is off by more than this will be off by more."""
_LINK_ERRORS: Final = (LinkMisconfigured, LinkRefused, LinkUnavailable)


async def examine(loaded: Loaded, purpose: Purpose, *, idle_s: float, told: Told) -> list[Check]:
    """Make every check and return the results; `told` gets each one as it is known.

    `idle_s`: how long a connection is left idle to see whether something cuts it; 0 leaves that out.
    """
    process.prepare()
    found: list[Check] = []

    def tell(check: Check) -> None:
        found.append(check)
        told(check)

    own = loaded.settings
    targets = own.worker.coordinators if purpose is Purpose.WORKER else own.client.coordinators
    if not targets:
        missing = ConfigError(
            "worker.coordinators is required",
            why="a worker polls the coordinators that it is told",
            fix="say --worker.coordinators=HOST:PORT, or set DAGU_WORKER_COORDINATORS",
        )
        tell(failed(Name.CONFIG, missing, code="no_coordinators"))
        return found
    tell(_configuration(loaded, purpose, targets))
    tell(_library())
    proxy = proxy_of(loaded)
    tell(_proxies(loaded, proxy, targets))
    policy = doctor_files.examine(loaded, purpose, tell)
    if policy is None:
        return found
    with private.folder() as folder:
        async with dialer.dialers(policy=policy, directory=folder, proxy=proxy) as way_out:
            for target in targets:
                through = proxy if proxy is not None and proxy.serves(target.host, target.port) else None
                await _Way(loaded, purpose, policy, way_out, target, tell, through).walk(idle_s)
    return found


def _configuration(loaded: Loaded, purpose: Purpose, targets: Sequence[Address]) -> Check:
    key = "worker.coordinators" if purpose is Purpose.WORKER else "client.coordinators"
    source = loaded.sources.get(key, "default")
    file = f"; settings of {loaded.config_file}" if loaded.config_file else ""
    said = f"as {purpose.value}, dialling {', '.join(map(str, targets))} ({key}: {source}{file})"
    return ok(Name.CONFIG, said, target=str(loaded.home.config_dir))


def _library() -> Check:
    mode = "FIPS mode on" if backend._fips_enabled else "FIPS mode off"
    return ok(Name.LIBRARY, f"{probe.library()}, {mode} (not a statement about validation)")


def _proxies(loaded: Loaded, proxy: Proxy | None, targets: Sequence[Address]) -> Check:
    if proxy is None:
        return ok(Name.PROXY, "no HTTP proxy is configured")
    through = [str(target) for target in targets if proxy.serves(target.host, target.port)]
    source = loaded.sources["peer.proxy"]
    if not through:
        return ok(Name.PROXY, f"{proxy.address} ({source}) is passed over: loopback, or listed in peer.no_proxy")
    return ok(Name.PROXY, f"{proxy.address} ({source}) is asked for the way to {', '.join(through)}")


class _Way:
    """The way to one coordinator."""

    def __init__(
        self,
        loaded: Loaded,
        purpose: Purpose,
        policy: ClientPolicy | UnsafePlaintext,
        way_out: Dialers,
        target: Address,
        tell: Told,
        proxy: Proxy | None,
    ) -> None:
        self._proxy = proxy
        self._loaded, self._purpose, self._policy, self._way_out = loaded, purpose, policy, way_out
        self._host, self._port, self._target, self._tell = target.host, target.port, str(target), tell

    async def walk(self, idle_s: float) -> None:
        """Go as far as it goes."""
        from secure_dagu.wire.channel import Channel

        if self._proxy is None and not await self._name_and_route():
            return
        link = await self._way_out.connect(self._host, self._port)
        if isinstance(self._policy, ClientPolicy) and not await self._tls(link):
            return
        channel = Channel(self._host, self._port, connect=self._way_out.connect, recorder=metrics.RPC_CLIENT)
        try:
            advertised = await self._grpc(channel)
            if advertised is None or not await self._admission(channel):
                return
            for word in advertised:
                await self._advertised(word)
            if idle_s:
                await self._idle(channel, idle_s)
        finally:
            await channel.close()

    async def _name_and_route(self) -> bool:
        found = await probe.resolve(self._host, self._port)
        if isinstance(found, Verdict):
            self._tell(failed(Name.NAME, link_error(found), target=self._target))
            return False
        self._tell(ok(Name.NAME, ", ".join(dict.fromkeys(at[0] for _, at in found)), target=self._target))
        attempts = await probe.connect(found)
        said = ", ".join(
            f"{one.address} {one.refusal.value if one.refusal else f'{one.seconds * 1000:.1f} ms'}" for one in attempts
        )
        good = [one for one in attempts if one.refusal is None]
        if not good:
            last = attempts[-1]
            assert last.refusal is not None, "it was not good"
            verdict = Verdict(side=Side.CLIENT, reason=last.refusal, address=self._target, detail=last.detail)
            self._tell(failed(Name.ROUTE, link_error(verdict), target=self._target, more=said))
            return False
        if len(good) < len(attempts):
            self._tell(
                warn(
                    Name.ROUTE, "address_unreachable", said, target=self._target,
                    why="each dial tries the addresses in this order and loses time on those that do not answer",
                    fix="correct the DNS records, or dial an address that answers",
                )
            )  # fmt: skip
        else:
            self._tell(ok(Name.ROUTE, said, target=self._target))
        return True

    async def _tls(self, link: Dialer) -> bool:
        try:
            peer = await link.check()
        except _LINK_ERRORS as error:
            self._tell(failed(Name.TLS, error, target=self._target, more=await self._what_is_there(error.verdict)))
            return False
        end = f", certificate until {peer.not_after:%Y-%m-%d %H:%M}Z" if peer.not_after else ""
        said = f"{peer.tls_version}, {peer.group or 'unknown group'}, {peer.identity}{end}"
        if peer.tls_version == "TLSv1.3":
            self._tell(ok(Name.TLS, said, target=self._target))
        else:
            self._tell(warn(Name.TLS, "old_tls", said, target=self._target, fix="update the coordinator to TLS 1.3"))
        return True

    async def _what_is_there(self, verdict: Verdict) -> str:
        """Return what a second look tells beyond the verdict; nobody looks around a proxy."""
        if self._proxy is not None:
            return ""
        if verdict.reason is Reason.HTTP_SERVER:
            ours = await probe.is_health_port(self._host, self._port)
            return "it is the health port of a secure-dagu process" if ours else ""
        if verdict.reason not in (
            Reason.UNTRUSTED_SERVER, Reason.SERVER_EXPIRED, Reason.SERVER_NOT_YET_VALID, Reason.ALPN,
            Reason.SERVER_BAD_CERTIFICATE, Reason.NOT_A_COORDINATOR, Reason.SERVER_WRONG_PURPOSE,
        ):  # fmt: skip
            return ""
        seen = await probe.presented(self._host, self._port)
        if seen is None or not isinstance(self._policy, ClientPolicy):
            return ""
        said = f"it presents {seen.subject!r}, issued by {seen.issuer!r}, for {seen.names}"
        if verdict.reason is Reason.UNTRUSTED_SERVER:
            trusted = ", ".join(repr(ca.subject) for ca in self._policy.trust)
            return (
                f"{said}; trusted here: {trusted} ({self._policy.trust[0].file}). If the issuer is a firewall or "
                "proxy, it intercepts TLS"
            )
        if verdict.reason in (Reason.SERVER_EXPIRED, Reason.SERVER_NOT_YET_VALID):
            now = datetime.now(UTC)
            return f"it is valid from {seen.not_before} to {seen.not_after}, and our clock says {now:%Y-%m-%d %H:%M}Z"
        return said

    async def _grpc(self, channel: Channel) -> tuple[str, ...] | None:
        """Ask for health and clock; return what the coordinator advertises, None when gRPC does not work."""
        from secure_dagu.wire import checkup

        asked = datetime.now(UTC)
        try:
            health = await checkup.health(channel)
        except SecureDaguError as error:
            self._tell(failed(Name.GRPC, error, target=self._target))
            return None
        answered = datetime.now(UTC)
        if health.is_serving:
            took = (answered - asked).total_seconds() * 1000
            self._tell(ok(Name.GRPC, f"serving, health call in {took:.1f} ms", target=self._target))
        else:
            self._tell(warn(Name.GRPC, "draining", "the coordinator is shutting down", target=self._target, fix="wait"))
        if health.clock is not None:
            middle = asked + (answered - asked) / 2
            skew = (middle - health.clock).total_seconds()
            said = f"ours is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the coordinator's"
            if abs(skew) < SKEW_WARNS_S:
                self._tell(ok(Name.CLOCK, said, target=self._target))
            else:
                self._tell(
                    warn(
                        Name.CLOCK, "clock_skew", said, target=self._target, fix="set both clocks by NTP",
                        why="certificates look expired or not yet valid to the end whose clock is wrong",
                    )
                )  # fmt: skip
        return health.advertised

    async def _admission(self, channel: Channel) -> bool:
        from secure_dagu.wire import checkup

        policy, own = self._policy, self._loaded.settings.worker
        name = policy.identity.name if isinstance(policy, ClientPolicy) else own.id
        if self._purpose is Purpose.WORKER:
            proven = isinstance(policy, ClientPolicy) and policy.identity.role is Role.WORKER
            error = await checkup.admission(channel, name=name if proven else own.id, labels=own.labels)
            labels = ", ".join(f"{key}={value}" for key, value in sorted(own.labels.items())) or "no labels"
            said = f"admitted as {name} with {labels}"
        else:
            error = await checkup.operation(channel, name=name)
            said = f"admitted as operator {name}"
        if error is None:
            self._tell(ok(Name.ADMISSION, said, target=self._target))
            return True
        self._tell(failed(Name.ADMISSION, error, target=self._target))
        return False

    async def _advertised(self, word: str) -> None:
        """Check an address that tasks name: there the worker reports, wherever it polled."""
        try:
            at = address(word)
        except ValueError:
            self._tell(warn(Name.ADVERTISED, "bad_address", f"{word!r} is no address", target=self._target))
            return
        if str(at) == self._target:
            self._tell(ok(Name.ADVERTISED, "tasks name the address that was dialled", target=word))
            return
        if isinstance(self._policy, UnsafePlaintext):
            return
        link = await self._way_out.connect(at.host, at.port)
        try:
            await link.check()
        except _LINK_ERRORS as error:
            self._tell(
                warn(
                    Name.ADVERTISED, error.verdict.label, f"tasks name {word}, which cannot be used from here",
                    target=word, why=error.why,
                    fix="advertise a name that workers reach (coordinator.advertise); reports go to "
                    f"{self._target} meanwhile",
                )
            )  # fmt: skip
        else:
            self._tell(ok(Name.ADVERTISED, "tasks name it, and it answers", target=word))

    async def _idle(self, channel: Channel, idle_s: float) -> None:
        """Leave a connection idle and see whether it is still there."""
        from secure_dagu.wire import checkup

        broken = await channel.breaks_within(idle_s)
        try:
            await checkup.health(channel)
        except SecureDaguError:  # cut without a word: only the next call notices
            broken = True
        if not broken:
            self._tell(ok(Name.IDLE, f"a connection stands {idle_s:.0f} s without traffic", target=self._target))
            return
        self._tell(
            warn(
                Name.IDLE, "idle_cut", f"a connection without traffic was cut within {idle_s:.0f} s",
                target=self._target, why="a firewall, NAT or load balancer on the way forgets idle connections",
                fix="raise its idle limit above the polls of workers, or let it pass keepalives",
            )
        )  # fmt: skip
