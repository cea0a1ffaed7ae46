"""Every metric, its name and its labels (docs/reference/metrics.md, part C), and the text of a scrape.

Three registries: what every process has, what a coordinator has, what a worker has; a process shows those it fills.
Names are constants here: `metrics.TASKS_CLAIMED.inc()`. Labels come from closed sets, known combinations start at 0,
and text that a peer supplies passes `bounded_label`. What the process knows anyway (workers, pending tasks) is read at
scrape time through a callback, so that a heartbeat pays for one counter and no gauge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry as CollectorRegistry
from prometheus_client import (
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from secure_dagu.dispatch.model import Role, WorkerHealth, WorkerInfo
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry.rpc_series import RpcSeries

disable_created_metrics()  # type: ignore[no-untyped-call]  # its stub has no annotations; halves the series

COMMON = CollectorRegistry()
COORDINATOR = CollectorRegistry()
WORKER = CollectorRegistry()

ProcessCollector(registry=COMMON)
PlatformCollector(registry=COMMON)
GCCollector(registry=COMMON)

# -- C.1 build and configuration ---------------------------------------------------------------------------------------

BUILD_INFO = Info("secure_dagu_build", "Version of this program and what it runs on.", registry=COMMON)
SECURITY_INFO = Info(
    "secure_dagu_security", "Configured peer security: peer_mode, min_tls_version, cipher_policy, fips, crl.",
    registry=COMMON,
)  # fmt: skip

# -- C.2 transport -----------------------------------------------------------------------------------------------------

_CONNECTION = ("tls", "tls_version", "peer_class")
PEER_CONNECTIONS_OPENED = Counter(
    "secure_dagu_peer_connections_opened_total", "Peer connections ever opened.", _CONNECTION, registry=COORDINATOR
)
HANDSHAKE_FAILURES = Counter(
    "secure_dagu_tls_handshake_failures_total", "Handshakes that did not become a connection.", ("side", "reason"),
    registry=COMMON,
)  # fmt: skip
AUTHZ_FAILURES = Counter(
    "secure_dagu_peer_authz_failures_total", "Calls over a good connection that were refused.",
    ("reason", "grpc_method"), registry=COORDINATOR,
)  # fmt: skip
CONNECT_ATTEMPTS = Counter(
    "secure_dagu_client_connect_attempts_total", "Attempts to connect to a coordinator.", ("result",), registry=WORKER
)
CLIENT_CONNECTED = Gauge(
    "secure_dagu_client_connected", "1 while a connection to the coordinator stands.", ("coordinator",), registry=WORKER
)

GROUPS = ("X25519", "X25519MLKEM768", "P-256", "P-384")
"""Key exchange groups with a series of their own; `key_exchange_group` puts the rest under `other`."""
HANDSHAKE_REASONS = (
    "no_client_cert", "untrusted_ca", "cert_expired", "cert_not_yet_valid", "cert_revoked", "plaintext_client",
    "protocol_version", "no_shared_cipher", "other",
)  # fmt: skip
AUTHZ_REASONS = ("worker_id_mismatch", "role_not_allowed", "cert_revoked", "unknown_identity", "not_owner")
CONNECT_RESULTS = ("ok", "refused", "dns", "tls", "timeout", "other")

# -- C.3 calls ---------------------------------------------------------------------------------------------------------

RPC_SERVER = RpcSeries("server")
COORDINATOR.register(RPC_SERVER)
RPC_CLIENT = RpcSeries("client")
WORKER.register(RPC_CLIENT)

# -- C.4 certificates --------------------------------------------------------------------------------------------------

_SLOT = ("role", "source")
CERTIFICATE_NOT_AFTER = Gauge(
    "secure_dagu_certificate_not_after_timestamp_seconds", "End of the certificate that this process has loaded.",
    _SLOT, registry=COMMON,
)  # fmt: skip
CERTIFICATE_NOT_BEFORE = Gauge(
    "secure_dagu_certificate_not_before_timestamp_seconds", "Start of the certificate that this process has loaded.",
    _SLOT, registry=COMMON,
)  # fmt: skip
CERTIFICATE_INFO = Info(
    "secure_dagu_certificate", "The loaded certificate: serial_hash, key_type.", _SLOT, registry=COMMON
)
PEER_CERTIFICATE_NOT_AFTER = Gauge(
    "secure_dagu_peer_certificate_not_after_timestamp_seconds", "End of the certificate of a live worker.",
    ("worker_id",), registry=COORDINATOR,
)  # fmt: skip

# -- C.5 workers (the gauges come from `show_workers`) -----------------------------------------------------------------

_HEARTBEATS = Counter(
    "secure_dagu_worker_heartbeats_received_total", "Heartbeats received.", ("worker_id",), registry=COORDINATOR
)
HEARTBEATS_MISSED = Counter(
    "secure_dagu_worker_heartbeats_missed_total", "Intervals above 5 s without a heartbeat, summed over workers.",
    registry=COORDINATOR,
)  # fmt: skip
WORKERS_LOST = Counter("secure_dagu_workers_lost_total", "Workers gone.", ("reason",), registry=COORDINATOR)
HEARTBEAT_FAILURES = Counter(
    "secure_dagu_worker_heartbeat_failures_total", "Heartbeats that failed.", ("grpc_code",), registry=WORKER
)
LAST_POLL_AT = Gauge("secure_dagu_worker_last_poll_timestamp_seconds", "When a poll was last sent.", registry=WORKER)

LOST_REASONS = ("heartbeat_timeout", "shutdown", "revoked", "drained")

# -- C.6 tasks ---------------------------------------------------------------------------------------------------------

TASKS_DISPATCHED = Counter(
    "secure_dagu_tasks_dispatched_total", "Dispatch requests by outcome.", ("result", "operation"), registry=COORDINATOR
)
TASKS_CLAIMED = Counter("secure_dagu_tasks_claimed_total", "Tasks handed to a poller.", registry=COORDINATOR)
CLAIM_ACKS = Counter(
    "secure_dagu_task_claim_acks_total", "Acknowledgements by outcome.", ("result",), registry=COORDINATOR
)
TASKS_COMPLETED = Counter(
    "secure_dagu_tasks_completed_total", "Tasks that ended, by status.", ("status",), registry=COORDINATOR
)
TASKS_LOST = Counter(
    "secure_dagu_tasks_lost_total", "Tasks that the coordinator failed.", ("reason",), registry=COORDINATOR
)
TASKS_PENDING = Gauge("secure_dagu_tasks_pending", "Tasks dispatched and not claimed.", registry=COORDINATOR)
LEASES_ACTIVE = Gauge("secure_dagu_leases_active", "Leases held by workers.", registry=COORDINATOR)
DISPATCH_LATENCY = Histogram(
    "secure_dagu_dispatch_latency_seconds", "From dispatch to claim.", registry=COORDINATOR,
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)  # fmt: skip
ZOMBIE_RUNS = Counter(
    "secure_dagu_zombie_runs_detected_total", "Runs without anybody alive behind them.", ("kind",), registry=COORDINATOR
)
ZOMBIE_SWEEP_AT = Gauge(
    "secure_dagu_zombie_sweep_last_success_timestamp_seconds", "When the last sweep ended well.", registry=COORDINATOR
)
DAG_RUNS = Counter("secure_dagu_dag_runs_total", "Runs that reached their end.", ("status",), registry=COORDINATOR)
DAG_RUN_DURATION = Histogram(
    "dagu_dag_run_duration_seconds", "From start to end of a run.", registry=COORDINATOR,
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600),
)  # fmt: skip
QUEUE_WAIT = Histogram(
    "dagu_queue_wait_seconds", "From queued to started.", registry=COORDINATOR,
    buckets=(1, 5, 10, 30, 60, 120, 300, 600),
)  # fmt: skip
CANCEL_REQUESTS = Counter(
    "secure_dagu_cancel_requests_total", "Requests to cancel a run.", ("result",), registry=COORDINATOR
)

DISPATCH_RESULTS = ("accepted", "no_matching_worker", "no_worker", "rejected", "error")
COMPLETED = ("succeeded", "partially_succeeded", "failed", "aborted", "rejected")
TASK_LOST_REASONS = ("lease_expired", "worker_lost", "claim_timeout", "zombie")

# -- C.7 volume --------------------------------------------------------------------------------------------------------

LOG_BYTES = Counter("secure_dagu_log_bytes_total", "Log bytes received or sent.", ("stream",), registry=COMMON)
LOG_CHUNKS_DROPPED = Counter("secure_dagu_log_chunks_dropped_total", "Log data given up.", ("reason",), registry=WORKER)
ARTIFACT_BYTES = Counter("secure_dagu_artifact_bytes_total", "Artifact bytes.", ("result",), registry=COORDINATOR)
ARTIFACT_FILES = Counter("secure_dagu_artifact_files_total", "Artifact files.", ("result",), registry=COORDINATOR)
BUNDLE_BYTES = Counter(
    "secure_dagu_workspace_bundle_bytes_total", "Bundle bytes moved.", ("direction",), registry=COORDINATOR
)
SECRET_RESOLUTIONS = Counter(
    "secure_dagu_secret_resolutions_total", "Requests for a managed secret.", ("result",), registry=COORDINATOR
)
STORE_ERRORS = Counter("secure_dagu_store_errors_total", "Failures of the store.", ("store", "op"), registry=COMMON)
LABEL_OVERFLOW = Counter(
    "secure_dagu_metric_label_overflow_total", "Label values beyond the cap, counted under _other.", ("metric",),
    registry=COMMON,
)  # fmt: skip

for _counter, *_values in (
    (HANDSHAKE_FAILURES, ("server", "client"), HANDSHAKE_REASONS),
    (CONNECT_ATTEMPTS, CONNECT_RESULTS),
    (WORKERS_LOST, LOST_REASONS),
    (TASKS_DISPATCHED, DISPATCH_RESULTS, ("start", "retry")),
    (CLAIM_ACKS, ("ok", "timeout", "rejected")),
    (TASKS_COMPLETED, COMPLETED),
    (DAG_RUNS, COMPLETED),
    (TASKS_LOST, TASK_LOST_REASONS),
    (ZOMBIE_RUNS, ("local", "distributed")),
    (CANCEL_REQUESTS, ("accepted", "rejected")),
    (LOG_BYTES, ("stdout", "stderr", "scheduler")),
    (ARTIFACT_BYTES, ("ok", "rejected", "error")),
    (ARTIFACT_FILES, ("ok", "rejected", "error")),
    (BUNDLE_BYTES, ("in", "out")),
    (SECRET_RESOLUTIONS, ("ok", "denied", "not_found", "error")),
):
    for _first in _values[0]:
        for _rest in _values[1] if len(_values) > 1 else (None,):
            _counter.labels(_first, *(() if _rest is None else (_rest,)))

for _moment in (ZOMBIE_SWEEP_AT, LAST_POLL_AT):
    _moment.set(float("nan"))  # not reached: compares with nothing, so no alert takes 1970 for a moment

# -- labels ------------------------------------------------------------------------------------------------------------

MAX_LABEL = 64
MAX_WORKERS = 1000
"""Distinct worker ids with series of their own; later ones count under `_other`."""
OTHER = "_other"
_UNSAFE = re.compile(r"[^A-Za-z0-9._@:-]")
_PEER_CLASS = {Role.WORKER: "worker", Role.DISPATCHER: "server", Role.COORDINATOR: "server", Role.ADMIN: "cli"}


def bounded_label(text: str) -> str:
    """Return peer-supplied text as a label value: 64 characters of `[A-Za-z0-9._@:-]`, others as `_`."""
    return _UNSAFE.sub("_", text[:MAX_LABEL])


def connection_opened(peer: Peer) -> None:
    """Count a connection that has passed the edge."""
    role = peer.identity.role if peer.identity else None
    PEER_CONNECTIONS_OPENED.labels(*_connection(role, peer.tls_version)).inc()
    if peer.identity is not None and role is Role.WORKER and peer.not_after is not None:
        PEER_CERTIFICATE_NOT_AFTER.labels(bounded_label(peer.identity.name)).set(peer.not_after.timestamp())


def _connection(role: Role | None, tls_version: str) -> tuple[str, str, str]:
    """Return the labels of a connection: tls, tls_version, peer_class."""
    tls = "plaintext" if tls_version == "none" else "tls" if role in (None, Role.ANONYMOUS) else "mtls"
    return tls, tls_version, peer_class(role)


def peer_class(role: Role | None) -> str:
    """Return the `peer_class` label of a role; `unknown` for an unproven peer and for a scraper."""
    return "unknown" if role is None else _PEER_CLASS.get(role, "unknown")


def key_exchange_group(name: str) -> str:
    """Return the `group` label of a negotiated group, whatever the TLS library calls it."""
    known = {"prime256v1": "P-256", "secp256r1": "P-256", "secp384r1": "P-384"}.get(name, name)
    return known if known in GROUPS else next((item for item in GROUPS if item.lower() == known.lower()), "other")


_heartbeat_series: dict[str, Counter] = {}


def heartbeat_received(worker_id: str) -> None:
    """Count one heartbeat. One dictionary lookup and one increment, because it happens thousands of times a second."""
    series = _heartbeat_series.get(worker_id)
    if series is None:
        if len(_heartbeat_series) >= MAX_WORKERS:
            LABEL_OVERFLOW.labels("secure_dagu_worker_heartbeats_received_total").inc()
            _HEARTBEATS.labels(OTHER).inc()
            return
        series = _heartbeat_series[worker_id] = _HEARTBEATS.labels(bounded_label(worker_id))
    series.inc()


def forget_worker(worker_id: str) -> None:
    """Drop the series of a worker that is gone for good (10 minutes after its last heartbeat at the latest)."""
    label = bounded_label(worker_id)
    if _heartbeat_series.pop(worker_id, None) is not None:
        _HEARTBEATS.remove(label)
    PEER_CERTIFICATE_NOT_AFTER.remove_by_labels({"worker_id": bounded_label(worker_id.partition("@")[0])})


class _Workers:
    """What a scrape says about workers, made from the coordinator's list at that moment."""

    def __init__(self, workers: Callable[[], Iterable[WorkerInfo]]) -> None:
        self.workers = workers

    def collect(self) -> Iterator[Metric]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=labels)

        counts = gauge("secure_dagu_workers", "Workers by health.", "state")
        registered = GaugeMetricFamily("dagu_workers_registered", "Workers known, unhealthy ones included.")
        seen = gauge("dagu_worker_heartbeat_timestamp_seconds", "Time of the last heartbeat.", "worker_id")
        health = gauge("dagu_worker_health_status", "1 for the present health.", "worker_id", "status")
        slots = gauge("secure_dagu_worker_slots", "Slots of a worker.", "worker_id", "state")
        pollers = gauge("dagu_worker_pollers", "Slots of a worker.", "worker_id", "state")
        tasks = gauge("dagu_worker_running_tasks", "Tasks that a worker runs.", "worker_id")
        oldest = gauge(
            "dagu_worker_oldest_running_task_age_seconds", "Age of the oldest running task, 0 if none.", "worker_id"
        )
        info = gauge("dagu_worker_info", "One series for each label of a worker.", "worker_id", *LABEL_OF_WORKER)
        now = datetime.now(UTC).timestamp()
        states = dict.fromkeys(("healthy", "warning", "unhealthy", "draining", "quarantined"), 0)
        total = 0
        shown: set[str] = set()
        for worker in self.workers():
            total += 1
            state = worker.health.name.lower() if worker.health is not WorkerHealth.UNSPECIFIED else "unhealthy"
            states[state] += 1
            name, stats = bounded_label(worker.worker), worker.stats
            if total > MAX_WORKERS or name in shown:  # two ids may become one label; a scrape may not show it twice
                continue
            shown.add(name)
            idle = max(stats.total_pollers - stats.busy_pollers, 0)
            seen.add_metric([name], worker.last_heartbeat_at.timestamp())
            for status in ("healthy", "warning", "unhealthy"):
                health.add_metric([name, status], float(status == state))
            for family in (slots, pollers):
                family.add_metric([name, "busy"], stats.busy_pollers)
                family.add_metric([name, "idle"], idle)
            pollers.add_metric([name, "total"], stats.total_pollers)
            tasks.add_metric([name], len(stats.running))
            first = min((task.started_at.timestamp() for task in stats.running), default=now)
            oldest.add_metric([name], max(now - first, 0.0))
            few = list(worker.labels.items())[:MAX_WORKER_LABELS]
            for key, value in {bounded_label(key): bounded_label(value) for key, value in few}.items():
                info.add_metric([name, key, value], 1)
        for state, count in states.items():
            counts.add_metric([state], count)
        registered.add_metric([], total)
        yield from (counts, registered, seen, health, slots, pollers, tasks, oldest, info)


LABEL_OF_WORKER = ("label_name", "label_value")
MAX_WORKER_LABELS = 16
_workers = _Workers(lambda: ())
COORDINATOR.register(_workers)


def show_workers(workers: Callable[[], Iterable[WorkerInfo]]) -> None:
    """Fill the worker gauges from `workers`, called at each scrape; it must answer from memory."""
    _workers.workers = workers


class _Connections:
    """What a scrape says about live connections, counted at that moment."""

    def __init__(self, counts: Callable[[], Mapping[tuple[Role, str, str], int]]) -> None:
        self.counts = counts

    def collect(self) -> Iterator[Metric]:
        by_peer: dict[tuple[str, str, str], int] = {}
        by_group = dict.fromkeys((*GROUPS, "other"), 0)
        for (role, tls_version, group), count in self.counts().items():
            labels = _connection(role, tls_version)
            by_peer[labels] = by_peer.get(labels, 0) + count
            if tls_version != "none":
                by_group[key_exchange_group(group)] += count
        peers = GaugeMetricFamily("secure_dagu_peer_connections", "Open peer connections.", labels=_CONNECTION)
        groups = GaugeMetricFamily(
            "secure_dagu_peer_key_exchange_connections",
            "Open TLS connections by key exchange group.",
            labels=("group",),
        )
        for labels, count in by_peer.items():
            peers.add_metric(labels, count)
        for group, count in by_group.items():
            groups.add_metric((group,), count)
        yield from (peers, groups)


_connections = _Connections(dict)
COORDINATOR.register(_connections)


def show_connections(counts: Callable[[], Mapping[tuple[Role, str, str], int]]) -> None:
    """Fill the connection gauges from `counts` (role, TLS version, group), called at each scrape."""
    _connections.counts = counts


class _Together:
    """Several registries as one."""

    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        for registry in self._registries:
            yield from registry.collect()


def exposition(accept: str, *registries: CollectorRegistry) -> tuple[bytes, str]:
    """Return the body and content type of a scrape, as the `Accept` header asks for (text or OpenMetrics)."""
    encode, content_type = choose_encoder(accept)
    return encode(_Together(registries)), content_type
