"""What we use of prometheus_client, without the HTTP servers and clients that it imports to be complete by itself.

Our health port serves what it writes (`telemetry.health`), and nothing is pushed anywhere. What it would serve and push
with costs every process 2 MiB and 25 ms: names that stand for nothing are in the place of those modules while it is
imported, and whoever imports them afterwards gets the real ones.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Final

_NEVER_USED: Final = (
    "gzip", "http.server", "socketserver", "urllib.error", "urllib.request", "wsgiref.simple_server",
)  # fmt: skip


class _Placeholder(ModuleType):
    """A module in which every name is a class of its own, to be inherited from and nothing else."""

    def __getattr__(self, name: str) -> type[Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


_missing = [name for name in _NEVER_USED if name not in sys.modules]
sys.modules.update({name: _Placeholder(name) for name in _missing})
try:
    import prometheus_client  # noqa: F401 - the names below come out of it
finally:
    for _name in _missing:
        del sys.modules[_name]

from prometheus_client import (  # noqa: E402 - not before
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
from prometheus_client.exposition import choose_encoder  # noqa: E402
from prometheus_client.metrics_core import (  # noqa: E402
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
