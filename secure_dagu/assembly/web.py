"""The web server of a process: who may come in, which way, and what it shows."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn
from msgspec import Struct

from secure_dagu import __version__
from secure_dagu.assembly import compliance, exceptions, recording, web_health
from secure_dagu.assembly.disk import Disk
from secure_dagu.assembly.edge import client_policy
from secure_dagu.assembly.exceptions import is_loopback
from secure_dagu.assembly.web_protocol import Protocol
from secure_dagu.audit.log import AuditLog
from secure_dagu.config.load import Loaded
from secure_dagu.config.peers import Purpose
from secure_dagu.dag.load import load_definition
from secure_dagu.dispatch.operating import Fleet, Launching, QueueBook, RunFilter, Runs, Workflows
from secure_dagu.errors import ConfigError, SecureDaguError
from secure_dagu.link import context, listener, private
from secure_dagu.link.context import ServerPolicy, UnsafePlaintext
from secure_dagu.link.listener import Limits
from secure_dagu.link.register import OnEvent, Register
from secure_dagu.run.model import RunStatus
from secure_dagu.security.exceptions import Kind
from secure_dagu.security.peer import Peer
from secure_dagu.store.accounts import AccountFolder
from secure_dagu.store.secret_files import SecretFiles
from secure_dagu.telemetry import metrics, web_series
from secure_dagu.web import app as web_app
from secure_dagu.web.accounts import Accounts
from secure_dagu.web.api.deps import Parts
from secure_dagu.web.api.host import HostLoad
from secure_dagu.web.api.live import Hub
from secure_dagu.web.api.run_events import EventLog
from secure_dagu.web.api.run_events import now as event_time
from secure_dagu.web.api.tickets import Tickets
from secure_dagu.web.api.views_compliance import Evidence
from secure_dagu.web.context import Options, Services
from secure_dagu.web.gate import Doorkeeper, Rules
from secure_dagu.web.people import Role
from secure_dagu.web.sessions import Sessions, secret_of
from secure_dagu.web.walls import Outside

log = structlog.get_logger()

SETUP_FILE: Final = "setup_token"
"""In {data_dir}/auth, made anew at each start until there is an account."""
STOPPING_S: Final = 5
"""How long requests that are being answered may go on when the server stops."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
LIMITS: Final = Limits(connections=2_000, per_address=1_000, handshakes=200)


class Operating(Struct, frozen=True, kw_only=True):
    """The installation that a web server shows (`dispatch.operating`)."""

    runs: Runs
    launching: Launching
    queues: QueueBook
    workflows: Workflows
    fleet: Fleet
    trail: AuditLog
    has_coordinator: Callable[[], bool]
    is_stopping: Callable[[], bool]
    scheduler_ok: Callable[[], str] | None = None
    """Why the scheduler of this process does not work; empty: it does. None: it has none."""
    registries: tuple[metrics.CollectorRegistry, ...] = (metrics.COMMON,)
    """What `/metrics` shows beside the web server's own."""


# ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def open_accounts(loaded: Loaded) -> Accounts:
    """Return the accounts of this installation; makes the first admin of the configuration while there is no user.

    Raises:
        ConfigError: the settings contradict each other, or the folders cannot be used.
    """
    auth, paths = loaded.settings.auth, loaded.settings.paths
    password = auth.initial_admin_password.reveal() if auth.initial_admin_password else ""
    if bool(auth.initial_admin_username) != bool(password):
        raise ConfigError(
            "auth.builtin.initial_admin needs a username and a password", why="one of them is given", fix="give both"
        )
    basic = auth.basic_username, auth.basic_password
    if auth.mode == "basic" and not all(basic):
        raise ConfigError("auth.basic.username and auth.basic.password are required", why="auth.mode is basic")
    if auth.mode != "basic" and any(basic):
        raise ConfigError(
            "auth.basic is set, and auth.mode is not basic", why=f"auth.mode is {auth.mode}",
            fix="remove auth.basic, or set auth.mode to basic",
        )  # fmt: skip
    folder = paths.data_dir / "auth"
    given = auth.token_secret.reveal() if auth.token_secret else ""
    sessions = Sessions(secret_of(folder, given), auth.token_ttl, folder / "ended_sessions.json")
    users = AccountFolder(paths.users_dir)
    is_open = auth.mode == "builtin" and not users.all() and not password
    token = setup_token(folder) if is_open and not is_loopback(loaded.settings.core.host) else ""
    accounts = Accounts(users, AccountFolder(paths.api_keys_dir), sessions, setup_token=token)
    if auth.mode == "builtin" and password and not accounts.is_set_up:
        try:
            await accounts.create(auth.initial_admin_username, password, Role.ADMIN)
        except SecureDaguError as problem:
            raise ConfigError("auth.builtin.initial_admin cannot be used", why=str(problem)) from problem
    if token:
        log.warning("web.needs_setup", why="the first admin says what is in this file", file=str(folder / SETUP_FILE))
    return accounts


def setup_token(folder: Path) -> str:
    """Return what the first admin must know where others reach the server; it is in a private file, not in the log.

    Raises:
        ConfigError: it cannot be kept.
    """
    path = folder / SETUP_FILE
    try:
        token = secrets.token_urlsafe(18)
        handle = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(token + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be kept", why=os.strerror(error.errno or 0)) from error
    return token


# ── serving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def serving_web(
    loaded: Loaded,
    operating: Operating,
    accounts: Accounts,
    *,
    names: Sequence[str] = (),
    trusts_loopback: bool = False,
    on_event: OnEvent = lambda _event: None,
) -> AsyncIterator[str]:
    """Serve Web UI and REST API for the time of the context; yield the URL.

    Args:
        loaded: the configuration.
        operating: what is shown.
        accounts: who may come in.
        names: by which it is called beside those of the configuration, such as a tunnel's.
        trusts_loopback: a proxy of this host, such as a tunnel's, says for whom it comes.
        on_event: told of refused handshakes, where the port speaks HTTPS.

    Raises:
        ConfigError: the port cannot be had, or what protects it is missing; nothing was served.
    """
    settings = loaded.settings
    held = exceptions.held_for(loaded, exceptions.wanted_by_web(loaded))
    https = _https(loaded)
    metrics.DAG_LABELS.is_wanted = settings.core.metrics_per_dag
    async with contextlib.AsyncExitStack() as stack:
        hub = Hub(operating.runs, max_clients=settings.sse.max_clients)
        await stack.enter_async_context(hub.serving())
        door = Doorkeeper(accounts, operating.trail, _rules(loaded), standing=_standing(https))
        disk = Disk(settings.paths.data_dir)
        await stack.enter_async_context(disk.watched())
        api = compliance.api_of(loaded, is_https=https is not None)
        judged = compliance.controls(loaded, operating.trail, api)
        await stack.enter_async_context(compliance.shown(judged))
        parts = _parts(loaded, operating, door, hub, disk, lambda: compliance.evidence(loaded, operating.trail, judged))
        register = Register(on_event)
        app = web_app.surround(
            _inside(_options(loaded)),
            Services(parts=parts, door=door, options=_options(loaded)),
            _outside(loaded, names, trusts_loopback=trusts_loopback),
            peer_of=register.peer_of,
            origins=_origins(loaded),
        )
        await stack.enter_async_context(_background(parts, operating.runs))
        scheme = "http" if https is None else "https"
        port, end = await stack.enter_async_context(_serve(loaded, app, https, register))

        def ended(kind: Kind) -> None:
            log.error("web.stopped", why=f"the exception {kind.value} ended")
            hub.end()
            end()

        await stack.enter_async_context(exceptions.watching(held, ended, operating.trail))
        host = settings.core.host
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{settings.core.base_path}/"
        log.info("web.ready", url=url, login=settings.auth.mode)
        try:
            yield url
        finally:
            hub.end()


@contextlib.asynccontextmanager
async def _serve(
    loaded: Loaded, app: Any, https: Callable[[], ServerPolicy] | None, register: Register
) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Serve; yield the port, and what ends it before the process ends."""
    core = loaded.settings.core
    if https is None:
        with _bound(core.host, core.port) as listening:
            port = listening.getsockname()[1]
            async with _running(uvicorn.Config(app, **_COMMON), [listening]) as end:
                yield port, end
        return
    with private.folder() as folder:
        backend = f"{folder}/web"
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as inner:
            inner.bind(backend)
            inner.listen(1024)
            inner.setblocking(False)
            async with (
                _running(uvicorn.Config(app, **_COMMON), [inner]) as end,
                listener.listen(
                    bind=[(core.host, core.port)], policy=https(), https=https, backends=[backend], directory=folder,
                    register=register, limits=LIMITS,
                ) as edge,
            ):  # fmt: skip
                yield edge.addresses[0][1], end


_COMMON: Final[dict[str, Any]] = {
    "http": Protocol, "ws": "none", "lifespan": "off", "log_config": None, "access_log": False,
    "proxy_headers": False, "server_header": False, "date_header": True, "timeout_keep_alive": 120,
    "timeout_graceful_shutdown": STOPPING_S, "h11_max_incomplete_event_size": 65_536,
}  # fmt: skip


@contextlib.asynccontextmanager
async def _running(config: uvicorn.Config, sockets: list[socket.socket]) -> AsyncIterator[Callable[[], None]]:
    """Run uvicorn without its own signal handlers: the process decides when it stops. Yield what stops it earlier."""
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=sockets)

    async def serve() -> None:
        await server.main_loop()
        await server.shutdown(sockets=sockets)

    def end() -> None:
        server.should_exit = True

    async with asyncio.TaskGroup() as group:
        serving = group.create_task(serve(), name="web server")
        try:
            yield end
        finally:
            end()
            await serving  # within: whatever went wrong, what is being answered is answered to its end


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    made = listener.bind_one(host, port)
    try:
        yield made
    finally:
        made.close()


# ── what is decided ──────────────────────────────────────────────────────────────────────────────────────────────────


def _https(loaded: Loaded) -> Callable[[], ServerPolicy] | None:
    """Return what says with which certificate the server speaks HTTPS; None: it speaks HTTP.

    HTTPS wherever a certificate is named, and everywhere beyond loopback unless `tls.insecure` was chosen.

    Raises:
        ConfigError: there is no certificate, or it cannot be used.
    """
    tls, core = loaded.settings.tls, loaded.settings.core
    if (tls.cert_file is None) != (tls.key_file is None):
        raise ConfigError(
            "TLS configuration incomplete: both cert and key files are required",
            fix="give both tls.cert_file and tls.key_file",
        )
    if tls.insecure and tls.cert_file is not None:
        raise ConfigError("tls.insecure and tls.cert_file contradict each other", fix="remove one of them")
    if tls.cert_file is not None and tls.key_file is not None:
        return _Pair(tls.cert_file, tls.key_file, tls.ca_file, loaded)
    if tls.insecure or is_loopback(core.host):
        return None
    place = loaded.home.pki_dir
    files = [place / name for name in ("coordinator.crt", "coordinator.key", "ca.crt")]
    if missing := [file for file in files if not file.exists()]:
        raise ConfigError(
            f"the web server on {core.host} needs a certificate", why=f"{missing[0]} is not there",
            fix="make one with `secure-dagu pki init --advertise NAME`, name your own in tls.cert_file and "
            "tls.key_file, or serve on loopback (--host 127.0.0.1)",
        )  # fmt: skip
    return _Pair(files[0], files[1], tls.ca_file or files[2], loaded)


class _Pair:
    """A certificate of the web server; changed files are taken over at the next connection."""

    def __init__(self, cert: Path, key: Path, ca: Path | None, loaded: Loaded) -> None:
        self._cert, self._key, self._ca, self._loaded = cert, key, ca, loaded
        self._seen: object = None
        self._looked_at = 0.0
        self._policy = self._make()

    def __call__(self) -> ServerPolicy:
        if time.monotonic() - self._looked_at > 1.0:
            self._looked_at = time.monotonic()
            if self._signs() != self._seen:
                try:
                    self._policy = self._make()
                except ConfigError as error:
                    log.warning("web.certificate_refused", used="the last good one", **error.as_dict())
        return self._policy

    def _make(self) -> ServerPolicy:
        self._seen = self._signs()
        made = self._policy_of_files()
        own = made.own
        metrics.certificate_loaded(
            "https", "tls.cert_file", serial=own.serial, not_before=own.not_before, not_after=own.not_after,
            key_type=own.key_type,
        )  # fmt: skip
        return made

    def _policy_of_files(self) -> ServerPolicy:
        rules = self._loaded.settings.peer.identity_rules
        if self._ca is None:
            return context.web_policy(cert=self._cert, key=self._key)
        with contextlib.suppress(ConfigError):  # it may be a coordinator's own, which says by itself whose peers it has
            return context.server_policy(cert=self._cert, key=self._key, client_ca=self._ca, rules=rules)
        like = client_policy(self._loaded, Purpose.OPERATOR)
        if isinstance(like, UnsafePlaintext):
            return context.web_policy(cert=self._cert, key=self._key)
        return context.https_policy(cert=self._cert, key=self._key, ca=self._ca, like=like)

    def _signs(self) -> object:
        files = [self._cert, self._key, *([self._ca] if self._ca else [])]
        with contextlib.suppress(OSError):
            return [(found.st_ino, found.st_mtime_ns, found.st_size) for found in (file.stat() for file in files)]
        return None


def _standing(https: Callable[[], ServerPolicy] | None) -> Callable[[Peer], str]:
    def objection(peer: Peer) -> str:
        now = datetime.now(UTC)
        if https is None or peer.not_after is None or now >= peer.not_after:
            return "it has expired"
        reason = https().standing.objection(peer, now)
        return reason.value if reason is not None else ""

    return objection


def _rules(loaded: Loaded) -> Rules:
    auth, permissions = loaded.settings.auth, loaded.settings.permissions
    return Rules(
        mode=auth.mode,
        basic_username=auth.basic_username,
        basic_password=auth.basic_password.reveal() if auth.basic_password else "",
        write_dags=permissions.write_dags,
        run_dags=permissions.run_dags,
        origins=frozenset(origin for origin in _origins(loaded) if origin != "*"),
    )


def _origins(loaded: Loaded) -> list[str]:
    core = loaded.settings.core
    own = web_app.origin_of(core.public_url)
    return [*core.cors_allowed_origins, *([own] if own and core.cors_allowed_origins else [])]


def _outside(loaded: Loaded, names: Sequence[str], *, trusts_loopback: bool) -> Outside:
    core, access = loaded.settings.core, loaded.settings.ip_access
    public = web_app.origin_of(core.public_url).rpartition("://")[2].partition(":")[0]
    known = ["localhost", core.host, socket.gethostname(), public, *loaded.settings.coordinator.advertise, *names]
    api = f"{core.base_path}{core.api_base_path}"
    public_paths = [
        "/health",
        "/ready",
        "/auth/login",
        "/auth/setup",
        *(["/metrics"] if core.metrics == "public" else []),
    ]
    loopback = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")) if trusts_loopback else ()
    return Outside(
        hosts=frozenset(name.lower().rstrip(".") for name in known if name),
        allowed=access.allowed_ips,
        proxies=(*access.trusted_proxies, *loopback),
        base_path=core.base_path,
        access_log=core.access_log_mode,
        quiet=frozenset(f"{api}{path}" for path in public_paths),
    )


def _options(loaded: Loaded) -> Options:
    settings = loaded.settings
    core = settings.core
    return Options(
        title=settings.ui.navbar_title,
        color=settings.ui.navbar_color,
        base_path=core.base_path,
        api_path=f"{core.base_path}{core.api_base_path}",
        time_zone=core.tz,
        headless=core.headless,
        auth_mode=settings.auth.mode,
        peer_mode="insecure" if settings.peer.insecure else "mtls",
        write_dags=settings.permissions.write_dags,
        run_dags=settings.permissions.run_dags,
        dashboard_limit=settings.ui.max_dashboard_page_limit,
        dags_sort=settings.ui.dags_sort_field,
        dags_order=settings.ui.dags_sort_order,
        version=__version__,
        facts=(
            ("Version", __version__),
            ("Execution mode", core.default_execution_mode),
            ("Login", settings.auth.mode),
        ),
    )


def _inside(options: Options) -> Any:
    if options.headless:
        return web_app.make_inside(options)
    from secure_dagu.web.pages import routes

    return web_app.make_inside(
        options, pages=routes.routers(), static=routes.static(), page_error=routes.page_error
    )  # fmt: skip


_PER_DAG: Final = {RunStatus.RUNNING: web_series.RUNNING_BY_DAG, RunStatus.QUEUED: web_series.QUEUED_BY_DAG}
_MOST_COUNTED: Final = 10_000
"""Runs in one state that a scrape looks at to tell their DAGs apart."""


async def _by_dag(runs: Runs, status: RunStatus, *, at_most: int) -> Counter[str]:
    """Return how many root runs of each DAG are in a state."""
    counts: Counter[str] = Counter()
    cursor = ""
    while counts.total() < min(at_most, _MOST_COUNTED):
        page = await runs.find(RunFilter(statuses=frozenset({status})), limit=500, cursor=cursor)
        counts.update(str(found.document.get("name")) for found in page.runs)
        cursor = page.next_cursor
        if not cursor:
            break
    return counts


def _parts(
    loaded: Loaded, operating: Operating, door: Doorkeeper, hub: Hub, disk: Disk, evidence: Callable[[], Evidence]
) -> Parts:
    settings = loaded.settings
    core, sse = settings.core, settings.sse
    base = settings.paths.base_config

    def write_base_config(text: str) -> None:
        load_definition("steps: [{id: a, run: 'true'}]", name="a", base_config=text)
        beside = base.with_name(f".{base.name}.new")
        beside.write_text(text)
        beside.replace(base)

    async def exposition(accept: str) -> tuple[bytes, str]:
        with contextlib.suppress(SecureDaguError):  # what cannot be counted keeps its last value
            counted = await operating.runs.count(since=_EPOCH)
            web_series.RUNS_RUNNING.set(counted.get(RunStatus.RUNNING, 0))
            web_series.RUNS_QUEUED.set(counted.get(RunStatus.QUEUED, 0))
            if metrics.DAG_LABELS.is_wanted:
                for status, shown in _PER_DAG.items():
                    shown.show(await _by_dag(operating.runs, status, at_most=counted.get(status, 0)))
            schedulers = await operating.fleet.schedulers()
            web_series.SCHEDULER_RUNNING.set(any(one.status == "active" for one in schedulers))
            web_series.DAGS.set(len(await operating.workflows.all()))
        return metrics.exposition(accept, *operating.registries, web_series.WEB)

    host = HostLoad(
        settings.paths.data_dir, interval_s=settings.monitoring.interval.total_seconds(),
        retention_s=settings.monitoring.retention.total_seconds(),
    )  # fmt: skip
    events = settings.event_store
    return Parts(
        runs=operating.runs,
        launching=operating.launching,
        queues=operating.queues,
        workflows=operating.workflows,
        fleet=operating.fleet,
        gate=door,
        hub=hub,
        tickets=Tickets(),
        host=host,
        events=EventLog(settings.paths.event_store_dir, retention_days=events.retention_days, now=event_time)
        if events.enabled
        else None,
        audit_folders=recording.folders(loaded),
        secrets=SecretFiles(settings.paths.secrets_dir),
        compliance=evidence,
        base_config=base,
        write_base_config=write_base_config,
        api_path=f"{core.base_path}{core.api_base_path}",
        heartbeat_s=sse.heartbeat_interval.total_seconds(),
        slow_client_s=sse.slow_client_timeout.total_seconds(),
        write_buffer=sse.write_buffer_size,
        max_topics=sse.max_topics_per_connection,
        log_charset=settings.ui.log_encoding_charset,
        has_coordinator=operating.has_coordinator,
        checks=lambda: web_health.checks(
            disk=disk,
            runs=operating.runs,
            fleet=operating.fleet,
            own_scheduler=operating.scheduler_ok,
            has_coordinator=operating.has_coordinator(),
            is_stopping=operating.is_stopping,
            audit_problem=operating.trail.problem,
        ),
        exposition=exposition,
        metrics_are_public=core.metrics == "public",
    )


@contextlib.asynccontextmanager
async def _background(parts: Parts, runs: Runs) -> AsyncIterator[None]:
    """Sample the host, and write down what runs do."""

    async def note_events() -> None:
        events = parts.events
        assert events is not None, "started only then"
        async for run in runs.changes():
            with contextlib.suppress(SecureDaguError):
                found = await runs.get(run)
                await asyncio.to_thread(events.take, found.document)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(parts.host.keep(), name="host load")]
        if parts.events is not None:
            tasks.append(group.create_task(note_events(), name="run events"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
