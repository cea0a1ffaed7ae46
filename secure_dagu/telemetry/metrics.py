"""Every metric, its name and its labels (docs/reference/metrics.md, part C), and the text of a scrape.

Three registries: what every process has, what a coordinator has, what a worker has; a process shows those it fills.
Names are constants here: `metrics.TASKS_CLAIMED.inc()`. Labels come from closed sets, known combinations start at 0,
and text that a peer supplies passes `bounded_label`. What the process knows anyway (workers, pending tasks) is read at
scrape time through a callback, so that a heartbeat pays for one counter and no gauge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from secure_dagu.dispatch.model import Role, WorkerId, WorkerInfo
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.exceptions import Kind
from secure_dagu.security.peer import Peer
from secure_dagu.security.revocation import Revocation
from secure_dagu.security.verdict import Reason, Side
from secure_dagu.telemetry import live
from secure_dagu.telemetry.dag_series import DagLabels, Ends, Spans
from secure_dagu.telemetry.labels import OTHER, bounded_label, connection_labels, method_label
from secure_dagu.telemetry.live import MAX_WORKERS, Backlogged
from secure_dagu.telemetry.prometheus import CollectorRegistry as CollectorRegistry
from secure_dagu.telemetry.prometheus import (
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
    choose_encoder,
    disable_created_metrics,
)
from secure_dagu.telemetry.rpc_series import RpcSeries

if TYPE_CHECKING:
    from secure_dagu.security.compliance import Result

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

LAST_RELOAD_SUCCESS = Gauge(
    "secure_dagu_config_last_reload_success", "1 when the last reload of certificate files went well.", registry=COMMON
)
LAST_RELOAD_AT = Gauge(
    "secure_dagu_config_last_reload_timestamp_seconds", "When certificate files were last taken over.", registry=COMMON
)

LABEL_OVERFLOW = Counter(
    "secure_dagu_metric_label_overflow_total", "Label values beyond the cap, counted under _other.", ("metric",),
    registry=COMMON,
)  # fmt: skip

# -- C.2 transport -----------------------------------------------------------------------------------------------------

PEER_CONNECTIONS_OPENED = Counter(
    "secure_dagu_peer_connections_opened_total", "Peer connections ever opened.", live.CONNECTION, registry=COORDINATOR
)
HANDSHAKE_FAILURES = Counter(
    "secure_dagu_tls_handshake_failures_total", "Handshakes that did not become a connection.", ("side", "reason"),
    registry=COMMON,
)  # fmt: skip
AUTHZ_FAILURES = Counter(
    "secure_dagu_peer_authz_failures_total", "Calls over a good connection that were refused.",
    ("reason", "grpc_method"), registry=COORDINATOR,
)  # fmt: skip
WOULD_DENY = Counter(
    "secure_dagu_peer_would_deny_total", "Calls that a rule in dry run would have refused.", ("reason", "grpc_method"),
    registry=COORDINATOR,
)  # fmt: skip
REVOKED_PEER_ATTEMPTS = Counter(
    "secure_dagu_revoked_peer_attempts_total", "Handshakes and calls with a revoked certificate.", registry=COORDINATOR
)
CONNECT_ATTEMPTS = Counter(
    "secure_dagu_client_connect_attempts_total", "Attempts to connect to a coordinator.", ("result",), registry=WORKER
)
CLIENT_CONNECTED = Gauge(
    "secure_dagu_client_connected", "1 while a connection to the coordinator stands.", ("coordinator",), registry=WORKER
)

COMMON_REASONS = (
    Reason.NO_CLIENT_CERT, Reason.UNTRUSTED_CA, Reason.CERT_EXPIRED, Reason.CERT_NOT_YET_VALID, Reason.CERT_REVOKED,
    Reason.PLAINTEXT_CLIENT, Reason.HTTP_CLIENT, Reason.PROTOCOL_VERSION, Reason.NO_SHARED_CIPHER, Reason.OTHER,
)  # fmt: skip
"""Reasons that are shown from the start; the others of the closed list appear when they occur."""
CONNECT_RESULTS = ("ok", "refused", "dns", "tls", "timeout", "other")

SECURITY_EXCEPTIONS = Gauge(
    "secure_dagu_security_exceptions", "Exceptions in force in this process, by what they weaken.", ("kind",),
    registry=COMMON,
)  # fmt: skip
SECURITY_EXCEPTION_EXPIRY = Gauge(
    "secure_dagu_security_exception_expiry_timestamp_seconds", "When an exception in force ends.", ("kind",),
    registry=COMMON,
)  # fmt: skip
for _kind in Kind:
    SECURITY_EXCEPTIONS.labels(_kind.value)

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
CERTIFICATE_FILE_NOT_AFTER = Gauge(
    "secure_dagu_certificate_file_not_after_timestamp_seconds",
    "End of the certificate on disk; differs from the loaded one while a reload is due or has failed.",
    _SLOT, registry=COMMON,
)  # fmt: skip
CERTIFICATE_RELOADS = Counter(
    "secure_dagu_certificate_reloads_total", "Changed files that were taken over (ok) or kept out (error).",
    ("result",), registry=COMMON,
)  # fmt: skip
CRL_NEXT_UPDATE = Gauge(
    "secure_dagu_crl_next_update_timestamp_seconds", "When the first revocation list in use must have been replaced.",
    registry=COMMON,
)  # fmt: skip
CRL_THIS_UPDATE = Gauge(
    "secure_dagu_crl_this_update_timestamp_seconds", "When the oldest revocation list in use was signed.",
    registry=COMMON,
)  # fmt: skip
CRL_NUMBER = Gauge("secure_dagu_crl_number", "Highest CRLNumber in use.", registry=COMMON)
CRL_ENTRIES = Gauge("secure_dagu_crl_entries", "Certificates on the revocation lists in use.", registry=COMMON)
CRL_STALE = Gauge("secure_dagu_crl_stale", "1 while a revocation list is past its next update.", registry=COMMON)
PKI_ISSUED = Counter(
    "secure_dagu_pki_certificates_issued_total", "Certificates signed by this process.", ("role",), registry=COORDINATOR
)
PKI_REVOKED = Counter(
    "secure_dagu_pki_certificates_revoked_total", "Certificates that newly loaded revocation lists name.", ("reason",),
    registry=COORDINATOR,
)  # fmt: skip
UNKNOWN_CERTIFICATES = Counter(
    "secure_dagu_pki_unknown_certificates_total",
    "Links opened with a certificate that our CA signed and its ledger does not know: the CA's key may be stolen.",
    registry=COORDINATOR,
)
COPIED_CERTIFICATES = Gauge(
    "secure_dagu_certificates_on_several_hosts",
    "Worker certificates in use from more than one address at once, but for coordinator.shared_certificates.",
    registry=COORDINATOR,
)

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
DAG_LABELS = DagLabels(LABEL_OVERFLOW)
DAG_RUNS_BY_DAG = Ends(DAG_LABELS)
DAG_RUN_DURATION = Spans(
    "dagu_dag_run_duration_seconds", "From start to end of a run.", labels=DAG_LABELS,
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600),
)  # fmt: skip
QUEUE_WAIT = Spans(
    "dagu_queue_wait_seconds", "From queued to started.", labels=DAG_LABELS, buckets=(1, 5, 10, 30, 60, 120, 300, 600)
)
for _of_dags in (DAG_RUNS_BY_DAG, DAG_RUN_DURATION, QUEUE_WAIT):
    COORDINATOR.register(_of_dags)
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

# -- C.8 audit ---------------------------------------------------------------------------------------------------------

AUDIT_EVENTS = Counter(
    "secure_dagu_audit_events_total", "Audit records on disk.", ("category", "result"), registry=COORDINATOR
)
AUDIT_WRITE_FAILURES = Counter(
    "secure_dagu_audit_write_failures_total", "Batches of audit records that the disk refused; must stay 0.",
    registry=COORDINATOR,
)  # fmt: skip
AUDIT_CHAIN_LENGTH = Gauge("secure_dagu_audit_chain_length", "Records in the audit log's chain.", registry=COORDINATOR)
AUDIT_CHAIN_HEAD = Info(
    "secure_dagu_audit_chain_head",
    "Where the audit log's chain ended when it was last verified or opened: head, the first 16 digits of the hash.",
    registry=COORDINATOR,
)
AUDIT_CHAIN_VALID = Gauge(
    "secure_dagu_audit_chain_valid", "1 when the last verification of the audit log found it whole.",
    registry=COORDINATOR,
)  # fmt: skip
AUDIT_VERIFIED_AT = Gauge(
    "secure_dagu_audit_chain_last_verified_timestamp_seconds",
    "When the audit log was last verified by this process, from its first record on.",
    registry=COORDINATOR,
)  # fmt: skip
CONTROL_STATUS = Gauge(
    "secure_dagu_compliance_control_status", "1 when a control of the compliance report passes, 0 when it fails.",
    ("control",), registry=COMMON,
)  # fmt: skip
AUDIT_CATEGORIES = (
    "enrolment", "certificate", "ca", "crl", "link", "call", "task", "run", "secret", "state", "bundle", "definition",
    "workers", "transport", "policy", "exception", "audit", "process", "login", "account", "dag", "queue",
)  # fmt: skip

for _counter, *_values in (
    (HANDSHAKE_FAILURES, tuple(Side), COMMON_REASONS),
    (CERTIFICATE_RELOADS, ("ok", "error")),
    (PKI_ISSUED, tuple(role.value for role in Role if role is not Role.ANONYMOUS)),
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
    (AUDIT_EVENTS, AUDIT_CATEGORIES, ("succeeded", "denied", "failed")),
):
    for _first in _values[0]:
        for _rest in _values[1] if len(_values) > 1 else (None,):
            _counter.labels(_first, *(() if _rest is None else (_rest,)))

for _moment in (
    ZOMBIE_SWEEP_AT, LAST_POLL_AT, LAST_RELOAD_SUCCESS, LAST_RELOAD_AT, CRL_NEXT_UPDATE, CRL_THIS_UPDATE, CRL_NUMBER,
    CRL_ENTRIES, CRL_STALE, AUDIT_CHAIN_VALID, AUDIT_VERIFIED_AT,
):  # fmt: skip
    _moment.set(float("nan"))  # not reached: compares with nothing, so no alert takes 1970 for a moment

# -- what happened -----------------------------------------------------------------------------------------------------


def connection_opened(peer: Peer) -> None:
    """Count a connection that has passed the edge."""
    role = peer.identity.role if peer.identity else None
    PEER_CONNECTIONS_OPENED.labels(*connection_labels(role, peer.tls_version)).inc()


def handshake_failed(side: Side, reason: Reason) -> None:
    """Count a handshake that did not become a connection."""
    HANDSHAKE_FAILURES.labels(side.value, reason.value).inc()
    if side is Side.SERVER and reason is Reason.CERT_REVOKED:
        REVOKED_PEER_ATTEMPTS.inc()


def call_denied(reason: DenyReason | str, method: str) -> None:
    """Count a call that the wall refused; `method` as the caller spelled it, which may be anything."""
    AUTHZ_FAILURES.labels(str(reason), method_label(method)).inc()
    if reason == DenyReason.CERT_REVOKED:
        REVOKED_PEER_ATTEMPTS.inc()


def call_would_be_denied(reason: DenyReason | str, method: str) -> None:
    """Count a call that goes on only because the rule against it is in dry run."""
    WOULD_DENY.labels(str(reason), method_label(method)).inc()


def certificate_loaded(
    role: str, source: str, *, serial: int, not_before: datetime, not_after: datetime, key_type: str
) -> None:
    """Show the certificate of a slot that this process uses from now on.

    Args:
        role: `server`, `client`, `ca` or `https`.
        source: the setting that names its file, such as `peer.cert_file`.
    """
    CERTIFICATE_NOT_AFTER.labels(role, source).set(not_after.timestamp())
    CERTIFICATE_NOT_BEFORE.labels(role, source).set(not_before.timestamp())
    CERTIFICATE_FILE_NOT_AFTER.labels(role, source).set(not_after.timestamp())
    _certificates_loaded[role, source] = not_before, not_after
    serial_hash = sha256(f"{serial:x}".encode()).hexdigest()[:8]
    CERTIFICATE_INFO.labels(role, source).info({"serial_hash": serial_hash, "key_type": key_type})


def loaded_certificates() -> Mapping[tuple[str, str], tuple[datetime, datetime]]:
    """Return begin and end of the certificates that this process has loaded, by role and source."""
    return dict(_certificates_loaded)


_certificates_loaded: dict[tuple[str, str], tuple[datetime, datetime]] = {}


def certificate_on_file(role: str, source: str, not_after: datetime) -> None:
    """Show the certificate that lies in a slot's file, whether it could be taken over or not."""
    CERTIFICATE_FILE_NOT_AFTER.labels(role, source).set(not_after.timestamp())


def reloaded(*, ok: bool) -> None:
    """Count that changed files were taken over, or that the last good ones were kept."""
    CERTIFICATE_RELOADS.labels("ok" if ok else "error").inc()
    LAST_RELOAD_SUCCESS.set(ok)
    if ok:
        LAST_RELOAD_AT.set_to_current_time()


def revocation_loaded(found: Revocation | None) -> None:
    """Show the revocation lists that are in force from now on; None: revocation is not checked."""
    nan = float("nan")
    CRL_NEXT_UPDATE.set(found.next_update.timestamp() if found else nan)
    CRL_THIS_UPDATE.set(found.this_update.timestamp() if found else nan)
    CRL_NUMBER.set(found.number if found else nan)
    CRL_ENTRIES.set(found.entries if found else nan)
    CRL_STALE.set_function(lambda: float(found.stale(datetime.now(UTC))) if found else nan)


def run_ended(dag: str, status: str) -> None:
    """Count a root run or a task that reached its end."""
    DAG_RUNS.labels(status).inc()
    DAG_RUNS_BY_DAG.inc(dag=dag, status=status)


def controls_judged(results: Iterable[Result]) -> None:
    """Show how the controls stand."""
    for result in results:
        CONTROL_STATUS.labels(result.control.value).set(result.passed)


def audit_opened(*, head: str) -> None:
    """Show that the newest file of the audit log was found whole, and the hash of its last record."""
    AUDIT_CHAIN_VALID.set(1)
    _show_head(head)


def audit_verified(*, ok: bool, head: str) -> None:
    """Show the outcome of a verification of the whole audit log, and the hash of its last record."""
    AUDIT_CHAIN_VALID.set(ok)
    AUDIT_VERIFIED_AT.set_to_current_time()
    _show_head(head)


def _show_head(head: str) -> None:
    # A new value is a new series in Prometheus: only as often as the log is verified, and never the whole hash.
    AUDIT_CHAIN_HEAD.info({"head": head[:16]})


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
    if _heartbeat_series.pop(worker_id, None) is not None:
        _HEARTBEATS.remove(bounded_label(worker_id))


# -- what a scrape reads -----------------------------------------------------------------------------------------------

_workers = live.Workers(lambda: ())
_connections = live.Connections(dict)
_certificates = live.PeerCertificates(lambda: ())
_backlog = live.WaitingTasks(lambda: ())
for _of_coordinator in (_workers, _connections, _certificates, _backlog):
    COORDINATOR.register(_of_coordinator)


def show_workers(
    workers: Callable[[], Iterable[WorkerInfo]],
    *,
    is_draining: Callable[[WorkerId], bool] = lambda _worker: False,
    quarantined: Callable[[], int] = lambda: 0,
) -> None:
    """Fill the worker gauges, called at each scrape; all three must answer from memory.

    Args:
        workers: who is there.
        is_draining: whether one of them is given no new task.
        quarantined: how many more are refused for what they claim.
    """
    _workers.workers, _workers.is_draining, _workers.quarantined = workers, is_draining, quarantined


def show_backlog(waiting: Callable[[], Iterable[Backlogged]]) -> None:
    """Fill the gauges of what waits, called at each scrape. Answers from memory."""
    _backlog.waiting = waiting


def show_connections(
    counts: Callable[[], Mapping[tuple[Role, str, str], int]], peers: Callable[[], Iterable[Peer]] = lambda: ()
) -> None:
    """Fill the connection gauges from `counts` (role, TLS version, group) and `peers`, both called at each scrape."""
    _connections.counts = counts
    _certificates.peers = peers


class _Together:
    """Several registries as one; what is in two of them is shown once."""

    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        shown: set[str] = set()
        for registry in self._registries:
            for family in registry.collect():
                if family.name not in shown:
                    shown.add(family.name)
                    yield family


def exposition(accept: str, *registries: CollectorRegistry) -> tuple[bytes, str]:
    """Return the body and content type of a scrape, as the `Accept` header asks for (text or OpenMetrics)."""
    encode, content_type = choose_encoder(accept)
    return encode(_Together(registries)), content_type
