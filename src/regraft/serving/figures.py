"""Prometheus metrics in a registry of their own: text format 0.0.4 at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Figures:
    """Counters of a server. Labels come from fixed sets, so that clients cannot add any."""

    def __init__(self) -> None:
        self.paths = frozenset[str]()  # paths that are labels; others count as "other"
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("regraft_requests_total", "Requests answered.", ("path", "status"), registry=r)
        self.seconds = Histogram(
            "regraft_request_seconds",
            "From the first byte of a body to the answer.",
            ("path",),
            buckets=SECONDS,
            registry=r,
        )
        self.batch = Histogram("regraft_batch_rows", "Rows that shared a forward pass.", buckets=ROWS, registry=r)
        self.waiting = Gauge("regraft_waiting_requests", "Requests accepted and not yet answered.", registry=r)
        self.held = Gauge("regraft_held_bytes", "Bytes of request bodies in memory.", registry=r)
        self.unlike = Counter("regraft_unlike_training_data_total", "Predictions with the warning.", registry=r)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; status 0 means that the client got none."""
        label = path if path in self.paths else "other"
        self.requests.labels(label, str(status)).inc()
        self.seconds.labels(label).observe(seconds)

    def holds(self, size: int) -> None:
        """Record the bytes of all bodies in memory."""
        self.held.set(size)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
