"""Counters of calls under the names that gRPC dashboards know (docs/reference/metrics.md, B.2 and C.3).

Plain integers, because a call is counted five times: prometheus-client's own counters cost 8 µs for that, these half a
microsecond. One event loop owns them, so nothing is locked; a scrape from another thread reads slightly torn sums.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from secure_dagu.telemetry.prometheus import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_GO_CODES = {
    "OK": "OK",
    "CANCELLED": "Canceled",
    "UNKNOWN": "Unknown",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}


class MethodSeries:
    """What is counted for one method."""

    __slots__ = ("buckets", "handled", "labels", "received", "seconds", "sent", "started_count")

    def __init__(self, kind: str, service: str, method: str) -> None:
        self.labels = [kind, service, method]
        self.started_count = 0
        self.handled: dict[str, int] = {"OK": 0}
        self.received = 0
        self.sent = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)

    def started(self) -> None:
        """Count the start of a call."""
        self.started_count += 1

    def ended(self, code: str, seconds: float, *, received: int, sent: int) -> None:
        """Count the end of a call: gRPC status name, how long it took, messages in each direction."""
        self.handled[code] = self.handled.get(code, 0) + 1
        self.received += received
        self.sent += sent
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1


class RpcSeries:
    """All methods of one side: `server` or `client`."""

    def __init__(self, side: str) -> None:
        self._side = side
        self._methods: dict[tuple[str, str], MethodSeries] = {}
        self._too_large = 0

    def method(self, kind: str, service: str, method: str) -> MethodSeries:
        """Return the series of a method, made at the first question; `kind` is `unary`, `client_stream`, ….

        Only methods of our own tables are asked for, so their number is bounded.
        """
        key = (service, method)
        if key not in self._methods:
            self._methods[key] = MethodSeries(kind, service, method)
        return self._methods[key]

    def too_large(self) -> None:
        """Count a call that ended because one of its messages was too large."""
        self._too_large += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the families of this side."""
        side, labels = self._side, ("grpc_type", "grpc_service", "grpc_method")
        started = CounterMetricFamily(f"grpc_{side}_started_total", "Calls started.", labels=labels)
        handled = CounterMetricFamily(
            f"grpc_{side}_handled_total", "Calls ended, by code.", labels=(*labels, "grpc_code")
        )
        received = CounterMetricFamily(f"grpc_{side}_msg_received_total", "Messages received.", labels=labels)
        sent = CounterMetricFamily(f"grpc_{side}_msg_sent_total", "Messages sent.", labels=labels)
        seconds = HistogramMetricFamily(f"grpc_{side}_handling_seconds", "How long calls took.", labels=labels)
        inflight = GaugeMetricFamily("secure_dagu_grpc_inflight", "Calls that are open.", labels=("grpc_method",))
        for series in self._methods.values():
            started.add_metric(series.labels, series.started_count)
            for code, count in series.handled.items():
                handled.add_metric([*series.labels, _GO_CODES.get(code, "Unknown")], count)
            received.add_metric(series.labels, series.received)
            sent.add_metric(series.labels, series.sent)
            ended = 0
            buckets = []
            for bound, count in zip((*BUCKETS, float("inf")), series.buckets, strict=True):
                ended += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), float(ended)))
            seconds.add_metric(series.labels, buckets, series.seconds)
            inflight.add_metric([series.labels[2]], series.started_count - ended)
        yield from (started, handled, received, sent, seconds)
        if side == "server":
            yield inflight
        else:  # gRPC refuses such a message before anything of a server hears of it; the client is told
            too_large = CounterMetricFamily(
                "secure_dagu_grpc_message_size_exceeded", "Calls that ended because a message passed 16 MiB."
            )
            too_large.add_metric((), self._too_large)
            yield too_large
