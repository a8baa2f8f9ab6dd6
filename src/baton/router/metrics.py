"""The router's own figures for Prometheus, in a registry of their own.

Worker gauges are read from the pool at scrape time, so a removed worker leaves nothing behind.
Elsewhere: workers' metrics are theirs (scrape them directly).
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from baton.router.workers import WorkerPool

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RouterMetrics:
    def __init__(self, pool: WorkerPool):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "baton_router_requests",
            "Requests for tokens that ended; status 499: the client left first.",
            ["route", "status"],
            registry=registry,
        )
        self.inflight = Gauge(
            "baton_router_inflight", "Requests for tokens now in the router.", registry=registry
        )
        self.ttft = Histogram(
            "baton_router_ttft_seconds",
            "From a request's arrival to the first byte of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.duration = Histogram(
            "baton_router_request_duration_seconds",
            "From a request's arrival to the last byte of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.leg_failures = Counter(
            "baton_router_leg_failures",
            "Legs failed by their worker, by stage and kind (refused, broken, rejected).",
            ["stage", "kind"],
            registry=registry,
        )
        self.retries = Counter(
            "baton_router_retries",
            "Attempts on other workers after a connection was refused.",
            registry=registry,
        )
        registry.register(_WorkerGauges(pool))

    def render(self) -> bytes:
        return bytes(generate_latest(self._registry))


class _WorkerGauges(Collector):
    def __init__(self, pool: WorkerPool):
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["url", "role"]
        healthy = GaugeMetricFamily(
            "baton_router_worker_healthy", "1 if requests are sent there.", labels=labels
        )
        inflight = GaugeMetricFamily(
            "baton_router_worker_inflight", "Legs now at this worker.", labels=labels
        )
        for worker in self._pool:
            key = [worker.url, worker.role.value]
            healthy.add_metric(key, float(worker.is_healthy))
            inflight.add_metric(key, worker.num_in_flight)
        yield healthy
        yield inflight
