"""Metrics of the web server (metrics reference, parts A.2 and C.8), in a registry of their own."""

from __future__ import annotations

from secure_dagu.telemetry import metrics
from secure_dagu.telemetry.dag_series import Present
from secure_dagu.telemetry.prometheus import CollectorRegistry, Counter, Gauge, Histogram

WEB = CollectorRegistry()
ALONE = CollectorRegistry()
"""Of a web server whose process has no scheduler."""

SSE_MESSAGES = Counter(
    "dagu_sse_messages_sent", "Frames of live updates: message, control, heartbeat.", ["type"], registry=WEB
)
SSE_FETCH_ERRORS = Counter(
    "dagu_sse_fetch_errors", "Payloads of live updates that could not be made, by kind of topic.", ["topic_type"],
    registry=WEB,
)  # fmt: skip
SSE_FETCH_SECONDS = Histogram(
    "dagu_sse_fetch_duration_seconds", "How long it took to make the payload of a topic.", ["topic_type"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5), registry=WEB,
)  # fmt: skip
SSE_SESSIONS = Gauge("dagu_sse_multiplex_sessions_active", "Open streams of live updates.", registry=WEB)
SSE_SLOW_CLIENTS = Counter(
    "dagu_sse_backpressure_disconnects", "Streams that were cut off because their reader was too slow.", registry=WEB
)

DAGS = Gauge("dagu_dags_total", "Files in the DAGs directory.", registry=WEB)
RUNS_RUNNING = Gauge("dagu_dag_runs_currently_running", "Root runs that run now.", registry=WEB)
RUNS_QUEUED = Gauge("dagu_dag_runs_queued_total", "Root runs that wait in queues now.", registry=WEB)
RUNNING_BY_DAG = Present("dagu_dag_runs_currently_running_by_dag", "Root runs that run now", metrics.DAG_LABELS)
QUEUED_BY_DAG = Present("dagu_dag_runs_queued_by_dag", "Root runs that wait in queues now", metrics.DAG_LABELS)
WEB.register(RUNNING_BY_DAG)
WEB.register(QUEUED_BY_DAG)

SCHEDULER_RUNNING = Gauge(
    "dagu_scheduler_running", "1 while an active scheduler is registered in the shared folder.", registry=ALONE
)

LOGINS = Counter(
    "secure_dagu_login_attempts", "Attempts to log in, by way and result.", ["method", "result"], registry=WEB
)
HTTP_REQUESTS = Counter(
    "secure_dagu_http_requests", "Answered HTTP requests; route is the template, never the path.",
    ["method", "route", "code"], registry=WEB,
)  # fmt: skip
HTTP_SECONDS = Histogram(
    "secure_dagu_http_request_duration_seconds", "How long answers took, streams left out.", ["method", "route"],
    buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10), registry=WEB,
)  # fmt: skip

for _way, _result in (
    ("password", "ok"), ("password", "bad_credentials"), ("password", "rate_limited"), ("api_key", "bad_credentials"),
    ("basic", "bad_credentials"), ("basic", "rate_limited"),
):  # fmt: skip
    LOGINS.labels(_way, _result)
for _type in ("message", "control", "heartbeat"):
    SSE_MESSAGES.labels(_type)
