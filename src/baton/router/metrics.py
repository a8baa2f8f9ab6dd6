"""The router's own figures for Prometheus, in a registry of their own.

Worker gauges are read from the pool at scrape time, so a removed worker leaves nothing behind.
Elsewhere: what every request counts in (exchange_tally.py); workers' metrics are theirs (scrape
them directly).
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from baton.router.exchange_tally import ExchangeTally
from baton.router.workers import WorkerPool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RouterMetrics:
    def __init__(self, pool: WorkerPool):
        self._registry = registry = CollectorRegistry()
        self.exchanges = ExchangeTally()
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
        registry.register(self.exchanges)

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
