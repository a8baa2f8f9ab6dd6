"""The router's own figures for Prometheus, in a registry of their own.

Worker gauges are read from the pool at scrape time, so a removed worker leaves nothing behind.
Elsewhere: what every request counts in (exchange_tally.py); workers' metrics are theirs (scrape
them directly).
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from baton.router.breaker import BreakerPhase
from baton.router.choice_tally import ChoiceTally
from baton.router.exchange_tally import SECONDS, ExchangeTally
from baton.router.waiting import WaitingLine
from baton.router.workers import WorkerPool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RouterMetrics:
    def __init__(self, pool: WorkerPool):
        self._pool = pool
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
        self.choices = ChoiceTally()
        self.resumes = Counter(
            "baton_router_resumes",
            "Broken streams that another worker went on with (resumed), or nobody (given_up), and "
            "those whose clients came back for the rest (came_back).",
            ["outcome"],
            registry=registry,
        )
        self.placements = Counter(
            "baton_router_placements",
            "Requests in a mixed pool that went whole to one worker or were split, and why.",
            ["placement", "reason"],
            registry=registry,
        )
        self.breaker_moves = Counter(
            "baton_router_breaker_moves",
            "Breakers that moved, by role and the phase they moved to.",
            ["role", "phase"],
            registry=registry,
        )
        self.waiting_seconds = Histogram(
            "baton_router_waiting_seconds",
            "How long requests waited for their turn before they were let in.",
            buckets=SECONDS,
            registry=registry,
        )
        self.turned_away = Counter(
            "baton_router_turned_away",
            "Requests refused for want of room, by code (queue_full, queue_timeout).",
            ["code"],
            registry=registry,
        )
        registry.register(_WorkerGauges(pool))
        registry.register(self.exchanges)
        registry.register(self.choices)

    def watch_line(self, line: WaitingLine) -> None:
        """Show how many requests wait; at most one line."""
        self._registry.register(_LineGauges(line))

    def watch_breakers(self, phase_of: Callable[[str], BreakerPhase]) -> None:
        """Show the phase of every worker's breaker; at most once."""
        self._registry.register(_BreakerGauges(self._pool, phase_of))

    def watch_tenants(self, tenants: Collector) -> None:
        """Show what each tenant uses; at most once."""
        self._registry.register(tenants)

    def render(self) -> bytes:
        return bytes(generate_latest(self._registry))


class _WorkerGauges(Collector):
    def __init__(self, pool: WorkerPool):
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["url", "role"]
        healthy = GaugeMetricFamily(
            "baton_router_worker_healthy", "1 if it is well.", labels=labels
        )
        inflight = GaugeMetricFamily(
            "baton_router_worker_inflight", "Legs now at this worker.", labels=labels
        )
        draining = GaugeMetricFamily(
            "baton_router_worker_draining", "1 while it takes nothing new.", labels=labels
        )
        for worker in self._pool:
            key = [worker.url, worker.role.value]
            draining.add_metric(key, float(worker.is_draining))
            healthy.add_metric(key, float(worker.is_healthy))
            inflight.add_metric(key, worker.num_in_flight)
        yield healthy
        yield draining
        yield inflight


class _LineGauges(Collector):
    def __init__(self, line: WaitingLine):
        self._line = line

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(
            "baton_router_waiting", "Requests that wait for their turn.", labels=["priority"]
        )
        for priority, num in self._line.waiting_by_priority().items():
            waiting.add_metric([str(priority)], num)
        yield waiting
        yield GaugeMetricFamily(
            "baton_router_admitted", "Requests let in and not ended.", self._line.num_running
        )
        yield GaugeMetricFamily(
            "baton_router_expected_wait_seconds",
            "How long a request that came now would probably wait.",
            self._line.expected_wait_s,
        )


class _BreakerGauges(Collector):
    def __init__(self, pool: WorkerPool, phase_of: Callable[[str], BreakerPhase]):
        self._pool = pool
        self._phase_of = phase_of

    def collect(self) -> Iterator[GaugeMetricFamily]:
        phases = GaugeMetricFamily(
            "baton_router_breaker_phase",
            "1 for the phase (closed, open, half_open) of a worker's breaker.",
            labels=["url", "role", "phase"],
        )
        for worker in self._pool:
            phase = self._phase_of(worker.id)
            phases.add_metric([worker.url, worker.role.value, phase.value], 1.0)
        yield phases
