"""The only place that knows everyone: one async context manager a process.

Resources are entered in the order in which they depend on each other, so that they close in the reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import platform
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import structlog

from secure_dagu import __version__
from secure_dagu.config.load import Loaded, host_environment, peer_files
from secure_dagu.config.peers import Insecure, Purpose
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, Owner, Role, WorkerId
from secure_dagu.errors import ConfigError
from secure_dagu.link import context, dialer, listener, private
from secure_dagu.link.context import ClientPolicy, MinimumTls, ServerPolicy, UnsafePlaintext
from secure_dagu.link.register import Happening, LinkEvent, Register
from secure_dagu.telemetry import health, metrics
from secure_dagu.wire import process

if TYPE_CHECKING:
    from secure_dagu.coordinator.service import Service

log = structlog.get_logger()

PLAINTEXT_BANNER = (
    "PLAINTEXT: peer.insecure=true. Nobody on this port is proven, everything can be read and changed on the way; "
    "managed secrets are refused. Use it only inside an isolated network."
)
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_run_id() -> str:
    """Return a fresh run id: a UUIDv7 (48 bits of milliseconds, then randomness) as 22 base62 digits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = ""
    while value:
        value, rest = divmod(value, 62)
        digits = _BASE62[rest] + digits
    return digits.rjust(22, "0")


# ── the coordinator ──────────────────────────────────────────────────────────────────────────────────────────────────


async def run_coordinator(loaded: Loaded) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: something is missing or cannot be used; nothing was served.
    """
    process.prepare()
    from secure_dagu.coordinator import service
    from secure_dagu.dag.load import load_definition
    from secure_dagu.store import sql
    from secure_dagu.store.blobs import Blobs
    from secure_dagu.store.definitions import DefinitionFolder
    from secure_dagu.wire import server
    from secure_dagu.wire.interceptors import Gate

    settings = loaded.settings
    policy = _server_policy(loaded)
    own = settings.coordinator
    owner = Owner(own.id, own.advertise[0], own.port)
    _describe(policy, side="server")
    async with contextlib.AsyncExitStack() as stack:
        stop = stack.enter_context(_signals())
        register = Register(_server_events)
        folder = stack.enter_context(private.folder())
        paths = settings.paths
        paths.data_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        store = await stack.enter_async_context(
            sql.open_store(
                f"sqlite:///{paths.data_dir / 'coordinator.db'}",
                write_failed=metrics.STORE_ERRORS.labels("runs", "write").inc,
            )
        )
        running = await stack.enter_async_context(
            service.running(
                store=store,
                blobs=Blobs(
                    logs=paths.log_dir, artifacts=paths.artifact_dir, bundles=paths.data_dir / "workspace-bundles"
                ),
                dags=DefinitionFolder(paths.dags_dir),
                load=load_definition,
                owner=owner,
                options=service.Options(task_wait=own.task_wait, secrets_dir=paths.secrets_dir),
                worker_gone=metrics.forget_worker,
            )
        )
        gate = Gate(peer_of=register.peer_of, recorder=metrics.RPC_SERVER, denied=_denied)
        backend = f"{folder}/grpc"
        # Left in reverse: gRPC ends its open calls first, then the edge cuts its links.
        edge = await stack.enter_async_context(
            listener.listen(
                bind=[(own.host, own.port)], policy=policy, backend=backend, directory=folder, register=register
            )
        )
        serving = await stack.enter_async_context(
            server.serve(socket_path=backend, desk=_Everything(running), gate=gate)
        )
        metrics.show_connections(register.counts)
        facts: Callable[[], dict[str, object]] = lambda: {  # noqa: E731 - two facts, read at each probe
            "status": "healthy",
            "peer": _mode(policy),
            "connections": len(register),
        }
        await stack.enter_async_context(_health(loaded, "coordinator", facts, (metrics.COMMON, metrics.COORDINATOR)))
        _settle()
        log.info(
            "coordinator.ready",
            version=__version__,
            listen=", ".join(f"{host}:{port}" for host, port in edge.addresses),
            advertise=owner.address,
            peer=_mode(policy),
        )
        await stop.wait()
        log.info("coordinator.stopping")
        serving.drain()
        edge.stop_accepting()


class _Everything:
    """All verbs of a coordinator in one object, as the wire wants them (`dispatch.api.Coordinator`)."""

    def __init__(self, of: Service) -> None:
        desk, reports, bundles, state = of.desk, of.reports, of.bundles, of.state
        self.dispatch, self.poll, self.withdraw, self.acknowledge = (
            desk.dispatch, desk.poll, desk.withdraw, desk.acknowledge,
        )  # fmt: skip
        self.heartbeat, self.run_heartbeat, self.cancellations = (
            desk.heartbeat, desk.run_heartbeat, desk.cancellations,
        )  # fmt: skip
        self.cancel, self.workers = desk.cancel, desk.workers
        self.report_status, self.stream_logs, self.stream_artifacts = (
            reports.report_status, reports.stream_logs, reports.stream_artifacts,
        )  # fmt: skip
        self.run_status, self.runs, self.follow = reports.run_status, reports.runs, reports.follow
        self.read_log, self.artifacts, self.read_artifact = reports.read_log, reports.artifacts, reports.read_artifact
        self.put, self.has, self.get = bundles.put, bundles.has, bundles.get
        self.get_state, self.put_state, self.delete_state, self.list_state = (
            state.get_state, state.put_state, state.delete_state, state.list_state,
        )  # fmt: skip
        self.dag_text, self.resolve_secret = state.dag_text, state.resolve_secret


# ── a worker ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def run_worker(loaded: Loaded) -> None:
    """Work until SIGTERM or SIGINT, then drain; a second signal stops at once.

    Raises:
        ConfigError, Refused, Unauthenticated: no coordinator can be worked for without somebody's help.
    """
    process.prepare()
    from secure_dagu import worker
    from secure_dagu.runner import runner, workspace
    from secure_dagu.wire.routes import WireRoutes

    settings = loaded.settings
    own = settings.worker
    if not own.coordinators:
        raise ConfigError(
            "worker.coordinators is required",
            why="a worker polls the coordinators that it is told",
            fix="say --worker.coordinators=HOST:PORT, or set DAGU_WORKER_COORDINATORS",
        )
    policy = _client_policy(loaded, Purpose.WORKER)
    _check_worker_name(policy, own.id)
    _describe(policy, side="client")
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(
            dialer.dialers(policy=policy, directory=folder, on_event=_client_events)
        )
        routes = WireRoutes(
            [(item.host, item.port) for item in own.coordinators],
            connect=dialers.connect,
            recorder=metrics.RPC_CLIENT,
            is_proven=isinstance(policy, ClientPolicy),
        )
        stack.push_async_callback(routes.close)
        working = worker.Worker(
            caller=Caller(
                role=Role.WORKER, name=own.id, proven=isinstance(policy, ClientPolicy), worker=WorkerId(own.id)
            ),
            routes=routes,
            names=[str(item) for item in own.coordinators],
            labels=own.labels,
            max_active_runs=own.max_active_runs,
            execute=runner.execute,
            workspaces=workspace.Workspaces(settings.paths.dag_run_work_dir, own.id),
            host_env=host_environment(settings),
            default_shell=settings.core.default_shell,
            timings=worker.Timings(
                drain_timeout_s=own.drain_timeout.total_seconds(), orphan_timeout_s=own.orphan_timeout.total_seconds()
            ),
        )
        stack.enter_context(_on_signals(working.drain))
        facts: Callable[[], dict[str, object]] = lambda: {**working.health(), "peer": _mode(policy)}  # noqa: E731
        await stack.enter_async_context(_health(loaded, "worker", facts, (metrics.COMMON, metrics.WORKER)))
        _settle()
        await working.run()


def _check_worker_name(policy: ClientPolicy | UnsafePlaintext, worker_id: str) -> None:
    """Say at start what the coordinator would say at the first call: a worker acts only as itself."""
    if isinstance(policy, UnsafePlaintext):
        return
    identity = policy.identity
    if identity.role is Role.WORKER and worker_id.partition("@")[0] != identity.name:
        raise ConfigError(
            f"worker.id {worker_id!r} is not what its certificate says",
            why=f"{policy.own.file} proves {identity}, and a worker acts only as itself",
            fix=f"say --worker.id={identity.name}, or issue a certificate with `secure-dagu pki issue worker NAME`",
        )


# ── an operator ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def operator(loaded: Loaded) -> AsyncIterator[tuple[Coordinator, Caller]]:
    """Open the way to the coordinators that operator commands dial; nothing is dialled before the first call.

    Raises:
        ConfigError: the operator's certificate is missing or cannot be used.
    """
    process.prepare()
    from secure_dagu.wire.routes import WireRoutes

    policy = _client_policy(loaded, Purpose.OPERATOR)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(dialer.dialers(policy=policy, directory=folder))
        is_proven = isinstance(policy, ClientPolicy)
        routes = WireRoutes(
            [(item.host, item.port) for item in loaded.settings.client.coordinators],
            connect=dialers.connect,
            recorder=metrics.RPC_CLIENT,
            is_proven=is_proven,
        )
        stack.push_async_callback(routes.close)
        identity = policy.identity if isinstance(policy, ClientPolicy) else None
        yield (
            routes.anyone(),
            Caller(
                role=identity.role if identity else Role.ANONYMOUS,
                name=identity.name if identity else "",
                proven=is_proven,
            ),
        )


# ── what they share ──────────────────────────────────────────────────────────────────────────────────────────────────


def _settle() -> None:
    """Tell the garbage collector that what is there at start stays: it need not be walked again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _minimum(loaded: Loaded) -> MinimumTls:
    return MinimumTls.V1_2 if loaded.settings.peer.min_tls_version == "1.2" else MinimumTls.V1_3


def _server_policy(loaded: Loaded) -> ServerPolicy | UnsafePlaintext:
    files = peer_files(loaded, Purpose.COORDINATOR)
    if isinstance(files, Insecure):
        return UnsafePlaintext()
    return context.server_policy(
        cert=files.cert,
        key=files.key,
        client_ca=files.ca,
        advertised=loaded.settings.coordinator.advertise,
        minimum=_minimum(loaded),
    )


def _client_policy(loaded: Loaded, purpose: Purpose) -> ClientPolicy | UnsafePlaintext:
    files = peer_files(loaded, purpose)
    if isinstance(files, Insecure):
        return UnsafePlaintext()
    return context.client_policy(cert=files.cert, key=files.key, ca=files.ca, minimum=_minimum(loaded))


def _mode(policy: ServerPolicy | ClientPolicy | UnsafePlaintext) -> str:
    return "insecure" if isinstance(policy, UnsafePlaintext) else "mtls"


def _describe(policy: ServerPolicy | ClientPolicy | UnsafePlaintext, *, side: str) -> None:
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
            "peer_mode": _mode(policy),
            "min_tls_version": minimum,
            "cipher_policy": "default",
            "fips": "false",
            "crl": "off",
        }
    )
    if isinstance(policy, UnsafePlaintext):
        log.warning("peer.insecure", banner=PLAINTEXT_BANNER)
        return
    slots = [(policy.own, side, "peer.cert_file"), *((ca, "ca", "peer.client_ca_file") for ca in policy.trust[:1])]
    for facts, role, source in slots:
        metrics.CERTIFICATE_NOT_AFTER.labels(role, source).set(facts.not_after.timestamp())
        metrics.CERTIFICATE_NOT_BEFORE.labels(role, source).set(facts.not_before.timestamp())
        serial_hash = hashlib.sha256(f"{facts.serial:x}".encode()).hexdigest()[:8]
        metrics.CERTIFICATE_INFO.labels(role, source).info({"serial_hash": serial_hash, "key_type": facts.key_type})


def _server_events(event: LinkEvent) -> None:
    """Count and log what happens at the coordinator's edge."""
    if event.happening is Happening.REFUSED and event.verdict is not None:
        verdict = event.verdict
        metrics.HANDSHAKE_FAILURES.labels("server", verdict.label).inc()
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


def _client_events(event: LinkEvent) -> None:
    """Count what happens to a worker's dials; the worker logs their errors with what they cost it."""
    if event.happening is Happening.REFUSED and event.verdict is not None:
        if event.verdict.result == "tls":
            metrics.HANDSHAKE_FAILURES.labels("client", event.verdict.label).inc()
        metrics.CONNECT_ATTEMPTS.labels(event.verdict.result).inc()
    elif event.happening is Happening.OPENED:
        metrics.CONNECT_ATTEMPTS.labels("ok").inc()


def _denied(denial: object) -> None:
    """Count and log a call that the wall refused."""
    from secure_dagu.wire.interceptors import Denial

    assert isinstance(denial, Denial)
    metrics.AUTHZ_FAILURES.labels(denial.reason, denial.method.rpartition("/")[2]).inc()
    log.warning(
        "call.refused",
        reason=denial.reason,
        method=denial.method,
        peer=str(denial.peer),
        claimed_worker=denial.claimed_worker,
        why=denial.error.why or denial.error.what,
    )


@contextlib.asynccontextmanager
async def _health(
    loaded: Loaded,
    section: str,
    facts: Callable[[], dict[str, object]],
    registries: Sequence[metrics.CollectorRegistry],
) -> AsyncIterator[None]:
    """Serve `/health` and `/metrics` unless the port is 0."""
    own = loaded.settings.coordinator if section == "coordinator" else loaded.settings.worker
    if not own.health_port:
        yield
        return
    is_public = loaded.settings.core.metrics == "public" or own.health_host in ("127.0.0.1", "::1", "localhost")
    async with health.serve(
        host=own.health_host,
        port=own.health_port,
        key=f"{section}.health_port",
        facts=facts,
        exposition=(lambda accept: metrics.exposition(accept, *registries)) if is_public else None,
    ):
        yield


@contextlib.contextmanager
def _on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` at each SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    with _on_signals(stop.set):
        yield stop
