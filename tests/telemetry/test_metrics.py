"""What a scrape shows, and what it never shows."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import parser

from secure_dagu.dispatch.model import Role, RunningTask, WorkerHealth, WorkerId, WorkerInfo, WorkerStats
from secure_dagu.run.model import AttemptKey, DagRunRef
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.telemetry import metrics
from secure_dagu.telemetry.labels import bounded_label
from secure_dagu.telemetry.live import MAX_WORKERS
from secure_dagu.telemetry.rpc_series import RpcSeries

NOW = datetime.now(UTC)


def samples(*registries: metrics.CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = metrics.exposition("", *registries)
    found = {}
    for family in parser.text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"shown twice: {key}"
            found[key] = sample.value
    return found


def worker(name: str, **fields: object) -> WorkerInfo:
    run = DagRunRef("d", "r")
    running = RunningTask(
        run=run, root=run, parent=None, attempt_key=AttemptKey("k"), started_at=NOW - timedelta(seconds=90)
    )
    values: dict[str, object] = {
        "worker": WorkerId(name),
        "labels": {"gpu": "true"},
        "stats": WorkerStats(total_pollers=4, busy_pollers=1, running=(running,)),
        "last_heartbeat_at": NOW,
        "health": WorkerHealth.HEALTHY,
        **fields,
    }
    return WorkerInfo(**values)  # type: ignore[arg-type]  # test data


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    metrics.show_workers(lambda: ())
    metrics.show_connections(dict)
    for name in list(metrics._heartbeat_series):
        metrics.forget_worker(name)


def in_a_fresh_process(text: str) -> None:
    """Run a check where nothing has been counted yet: the registries are the process's, and other tests count too."""
    code = f"from tests.telemetry.test_metrics import *\n{textwrap.dedent(text)}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_known_combinations_start_at_zero_and_nothing_is_created() -> None:
    in_a_fresh_process("check_the_start()")


def check_the_start() -> None:
    shown = samples(metrics.COMMON, metrics.COORDINATOR, metrics.WORKER)
    assert shown["secure_dagu_tasks_lost_total", (("reason", "lease_expired"),)] == 0
    assert shown["secure_dagu_tasks_dispatched_total", (("operation", "retry"), ("result", "no_worker"))] == 0
    failures = ("secure_dagu_tls_handshake_failures_total", (("reason", "untrusted_ca"), ("side", "server")))
    assert failures in shown
    assert not [name for name, _ in shown if name.endswith("_created")]
    assert not [name for name, _ in shown if name.endswith("_total_total")]


def test_a_coordinator_does_not_show_what_only_workers_fill() -> None:
    names = {name for name, _ in samples(metrics.COMMON, metrics.COORDINATOR)}
    assert "secure_dagu_client_connected" not in names
    assert "secure_dagu_client_connect_attempts_total" not in names


def test_moments_that_were_not_reached_are_no_times() -> None:
    """Or an alert on a sweep's age would fire for a coordinator that has just started."""
    in_a_fresh_process(
        """
        moment = samples(metrics.COORDINATOR)["secure_dagu_zombie_sweep_last_success_timestamp_seconds", ()]
        assert moment != moment
        """
    )


def test_workers_are_shown_from_the_list_at_the_moment_of_the_scrape() -> None:
    metrics.show_workers(lambda: [worker("w1"), worker("w2", health=WorkerHealth.UNHEALTHY)])
    shown = samples(metrics.COORDINATOR)
    assert shown["secure_dagu_workers", (("state", "healthy"),)] == 1
    assert shown["secure_dagu_workers", (("state", "unhealthy"),)] == 1
    assert shown["dagu_workers_registered", ()] == 2
    assert shown["secure_dagu_worker_slots", (("state", "idle"), ("worker_id", "w1"))] == 3
    assert shown["dagu_worker_pollers", (("state", "total"), ("worker_id", "w1"))] == 4
    assert shown["dagu_worker_running_tasks", (("worker_id", "w1"),)] == 1
    assert shown["dagu_worker_oldest_running_task_age_seconds", (("worker_id", "w1"),)] >= 90
    assert shown["dagu_worker_health_status", (("status", "unhealthy"), ("worker_id", "w2"))] == 1
    labels = (("label_name", "gpu"), ("label_value", "true"), ("worker_id", "w1"))
    assert shown["dagu_worker_info", labels] == 1


def test_ten_thousand_forged_names_do_not_become_ten_thousand_series() -> None:
    """Threat T23."""
    for n in range(10_000):
        metrics.heartbeat_received(f"forged-{n}")
    metrics.show_workers(lambda: [worker(f"forged-{n}", labels={}) for n in range(10_000)])
    shown = samples(metrics.COORDINATOR)
    names = {dict(labels)["worker_id"] for _, labels in shown if "worker_id" in dict(labels)}
    assert len(names) <= MAX_WORKERS + 1
    assert shown["secure_dagu_worker_heartbeats_received_total", (("worker_id", "_other"),)] == 9_000
    assert shown["secure_dagu_workers", (("state", "healthy"),)] == 10_000


def test_names_that_would_inject_or_collide_are_made_harmless() -> None:
    evil = 'w1"} 1\nfake{x="'
    assert bounded_label(evil) == "w1___1_fake_x__"
    assert len(bounded_label("x" * 500)) == 64
    metrics.show_workers(lambda: [worker("a b"), worker("a c" if False else "a\tb")])
    assert samples(metrics.COORDINATOR)["dagu_worker_running_tasks", (("worker_id", "a_b"),)] == 1


def test_a_forgotten_worker_leaves_no_series() -> None:
    metrics.heartbeat_received("gone")
    assert samples(metrics.COORDINATOR)["secure_dagu_worker_heartbeats_received_total", (("worker_id", "gone"),)] == 1
    metrics.forget_worker("gone")
    assert not [1 for _, labels in samples(metrics.COORDINATOR) if dict(labels).get("worker_id") == "gone"]


def test_connections_are_shown_by_what_stands_behind_them() -> None:
    counts = {(Role.WORKER, "TLSv1.3", "X25519MLKEM768"): 3, (Role.ANONYMOUS, "none", ""): 1}
    metrics.show_connections(lambda: counts)
    peer = Peer(connection="c", address="a", identity=Identity("d", Role.ADMIN, "root"), tls_version="TLSv1.3")
    metrics.connection_opened(peer)
    shown = samples(metrics.COORDINATOR)
    mtls = (("peer_class", "worker"), ("tls", "mtls"), ("tls_version", "TLSv1.3"))
    plain = (("peer_class", "unknown"), ("tls", "plaintext"), ("tls_version", "none"))
    assert shown["secure_dagu_peer_connections", mtls] == 3
    assert shown["secure_dagu_peer_connections", plain] == 1
    assert shown["secure_dagu_peer_key_exchange_connections", (("group", "X25519MLKEM768"),)] == 3
    assert shown["secure_dagu_peer_key_exchange_connections", (("group", "other"),)] == 0
    opened = (("peer_class", "cli"), ("tls", "mtls"), ("tls_version", "TLSv1.3"))
    assert shown["secure_dagu_peer_connections_opened_total", opened] >= 1


def test_calls_carry_the_names_that_public_dashboards_know() -> None:
    calls = RpcSeries("server")
    series = calls.method("unary", "coordinator.v1.CoordinatorService", "Heartbeat")
    series.started()
    series.ended("PERMISSION_DENIED", 0.03, received=1, sent=0)
    series.started()
    registry = metrics.CollectorRegistry()
    registry.register(calls)
    shown = samples(registry)
    labels = (
        ("grpc_method", "Heartbeat"), ("grpc_service", "coordinator.v1.CoordinatorService"), ("grpc_type", "unary"),
    )  # fmt: skip
    assert shown["grpc_server_started_total", labels] == 2
    assert shown["grpc_server_handled_total", (("grpc_code", "PermissionDenied"), *labels)] == 1
    assert shown["grpc_server_handling_seconds_bucket", (*labels, ("le", "0.025"))] == 0
    assert shown["grpc_server_handling_seconds_bucket", (*labels, ("le", "0.05"))] == 1
    assert shown["grpc_server_handling_seconds_count", labels] == 1
    assert shown["grpc_server_msg_received_total", labels] == 1
    assert shown["secure_dagu_grpc_inflight", (("grpc_method", "Heartbeat"),)] == 1


def test_openmetrics_is_spoken_to_those_who_ask() -> None:
    body, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0", metrics.COMMON)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    body, content_type = metrics.exposition("", metrics.COMMON)
    assert content_type.startswith("text/plain; version=0.0.4")


def test_metrics_bring_no_http_server_or_client_along_and_whoever_wants_one_later_has_it() -> None:
    check = """
import sys
from secure_dagu.telemetry import metrics
text, _ = metrics.exposition("application/openmetrics-text", metrics.COMMON)
assert b"secure_dagu_build" in text
print(sorted({"http.server", "http.client", "urllib.request", "urllib.error", "wsgiref", "gzip"} & set(sys.modules)))
import gzip, http.server, urllib.error, urllib.request, wsgiref.simple_server
print(gzip.decompress(gzip.compress(b"x")), http.server.HTTPServer.__mro__[1].__module__)
print(urllib.request.Request("http://localhost/").host, issubclass(urllib.error.HTTPError, OSError))
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\nb'x' socketserver\nlocalhost True\n"
