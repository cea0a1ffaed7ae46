"""What we use of prometheus_client, without the HTTP servers and clients that it imports to be complete by itself.

Our health port serves what it writes (`telemetry.health`), and nothing is pushed anywhere. What it would serve and push
with costs every process 2 MiB and 25 ms: names that stand for nothing are in the place of those modules while it is
imported, and whoever imports them afterwards gets the real ones.
"""

from __future__ import annotations

from secure_dagu.trimmed import trimmed

with trimmed(hollow=("gzip", "http.server", "socketserver", "urllib.error", "urllib.request", "wsgiref.simple_server")):
    import prometheus_client  # noqa: F401 - the names below come out of it

from prometheus_client import (
    CollectorRegistry,
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
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

__all__ = [
    "CollectorRegistry",
    "Counter",
    "CounterMetricFamily",
    "GCCollector",
    "Gauge",
    "GaugeMetricFamily",
    "Histogram",
    "HistogramMetricFamily",
    "Info",
    "Metric",
    "PlatformCollector",
    "ProcessCollector",
    "choose_encoder",
    "disable_created_metrics",
]
