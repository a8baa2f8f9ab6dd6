"""What a worker reports to Prometheus, in SGLang's names where SGLang has one.

Invariant: no global registry. Each `WorkerMetrics` has its own, so that two workers in one process
(tests, the embedded default) never share a counter.
Elsewhere: log lines (logs.py), what an engine reports about itself (messages/engine.py).
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from baton.core.clock import Clock

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
THROUGHPUT_WINDOW_S: Final = 10.0

# Bounds in seconds: from one fast decode step to the longest prompt on a slow machine.
TTFT_BUCKETS: Final = (
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0, 300.0,
)  # fmt: skip
ITL_BUCKETS: Final = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 1.0, 4.0,
)  # fmt: skip
E2E_BUCKETS: Final = (
    0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1200.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineSnapshot:
    """An engine's state at one scrape. `total_*` only grow; blocks add up to the pool's size."""

    is_alive: bool
    num_running: int
    num_waiting: int
    num_handover: int
    num_blocks_free: int
    num_blocks_cached: int
    num_blocks_in_use: int
    num_tokens_in_use: int
    max_total_num_tokens: int
    total_prompt_tokens: int
    total_cached_tokens: int
    total_generated_tokens: int
    total_preemptions: int
    total_steps: int
    total_step_seconds: float
    total_transfers: int
    total_transfer_failures: int
    total_transferred_bytes: int
    total_transfer_seconds: float
    total_verified_blocks: int
    total_damaged_blocks: int
    total_finished: dict[str, int] = field(default_factory=dict)
    total_refused: dict[str, dict[str, int]] = field(default_factory=dict)
    handover_failures: list[tuple[str, str, int]] = field(default_factory=list)
    """(stage, HTTP status, count)"""
    handover_stages: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Legs that left each stage, and their seconds in it."""
    handover_overdue: dict[str, int] = field(default_factory=dict)
    num_draining: int = 0
    num_quarantined_blocks: int = 0
    oldest_quarantine_s: float = 0.0

    @property
    def token_usage(self) -> float:
        """Share of the KV pool that running requests hold, 0 to 1."""
        return self.num_tokens_in_use / max(1, self.max_total_num_tokens)

    @property
    def cache_hit_rate(self) -> float:
        """Share of all prompt tokens so far that came from the prefix cache, 0 to 1."""
        return self.total_cached_tokens / max(1, self.total_prompt_tokens)


class RateWindow:
    """Events per second over the last `window_s` seconds, in steps of a tenth of the window."""

    def __init__(self, clock: Clock, window_s: float = THROUGHPUT_WINDOW_S):
        self._clock = clock
        self._window_s = window_s
        self._step_s = window_s / 10
        self._steps: deque[tuple[float, int]] = deque()

    def add(self, num_events: int) -> None:
        now_s = self._clock.now_s()
        if self._steps and now_s - self._steps[-1][0] < self._step_s:
            start_s, count = self._steps[-1]
            self._steps[-1] = (start_s, count + num_events)
            return
        self._steps.append((now_s, num_events))
        self._forget(now_s)

    def per_second(self) -> float:
        self._forget(self._clock.now_s())
        return sum(count for _, count in self._steps) / self._window_s

    def _forget(self, now_s: float) -> None:
        while self._steps and now_s - self._steps[0][0] > self._window_s:
            self._steps.popleft()


class WorkerMetrics:
    """Counters and histograms of one worker's api process, and a view of its engine."""

    def __init__(
        self,
        *,
        model_name: str,
        engine_type: str,
        read_engine: Callable[[], EngineSnapshot],
        clock: Clock,
    ):
        self.registry = CollectorRegistry()
        self._throughput = RateWindow(clock)
        labels = {"model_name": model_name, "engine_type": engine_type}
        names = tuple(labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=self.registry).labels(**labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            whole = Histogram(name, text, names, buckets=buckets, registry=self.registry)
            return whole.labels(**labels)

        self._requests = counter("sglang:num_requests", "Requests accepted, one per sample")
        self._aborted = counter("sglang:num_aborted_requests", "Requests ended by a client")
        self._ttft = histogram(
            "sglang:time_to_first_token_seconds", "Arrival to first token", TTFT_BUCKETS
        )
        self._itl = histogram(
            "sglang:inter_token_latency_seconds", "Time between tokens of a stream", ITL_BUCKETS
        )
        self._e2e = histogram(
            "sglang:e2e_request_latency_seconds", "Arrival to last token", E2E_BUCKETS
        )
        self._labels = labels
        self._responses = Counter(
            "baton:http_responses",
            "HTTP answers by route and status",
            (*names, "route", "status"),
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(labels, read_engine, self._throughput))

    @property
    def gen_throughput(self) -> float:
        """Generated tokens per second, over the last few seconds."""
        return self._throughput.per_second()

    def request_started(self) -> None:
        self._requests.inc()

    def request_aborted(self) -> None:
        self._aborted.inc()

    def first_token(self, seconds: float, num_tokens: int) -> None:
        self._ttft.observe(seconds)
        self._throughput.add(num_tokens)

    def next_tokens(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` arrived together, `seconds` after the ones before them."""
        self._throughput.add(num_tokens)
        for _ in range(num_tokens):
            self._itl.observe(seconds / num_tokens)

    def request_finished(self, seconds: float) -> None:
        self._e2e.observe(seconds)

    def http_response(self, route: str, status: int) -> None:
        self._responses.labels(**self._labels, route=route, status=str(status)).inc()

    def render(self) -> bytes:
        """The text that `/metrics` answers, of CONTENT_TYPE."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Turns the engine's latest snapshot into metric families at each scrape."""

    def __init__(
        self,
        labels: dict[str, str],
        read_engine: Callable[[], EngineSnapshot],
        throughput: RateWindow,
    ):
        self._names = list(labels)
        self._values = list(labels.values())
        self._read_engine = read_engine
        self._throughput = throughput

    def describe(self) -> Iterable[Metric]:
        """Nothing: families appear with the first scrape, once the engine is known."""
        return []

    def collect(self) -> Iterable[Metric]:
        now = self._read_engine()
        yield from self._gauges(now)
        yield from self._counters(now)
        yield self._kv_blocks(now)
        yield self._finished(now)
        yield self._refused(now)
        yield from self._handover(now)

    def _gauges(self, now: EngineSnapshot) -> Iterable[Metric]:
        speed = self._throughput.per_second()
        rows = (
            ("sglang:num_running_reqs", "Sequences in the running batch", now.num_running),
            ("sglang:num_queue_reqs", "Sequences waiting for their first step", now.num_waiting),
            ("sglang:num_used_tokens", "Tokens whose KV is in use", now.num_tokens_in_use),
            ("sglang:max_total_num_tokens", "Tokens that fit the pool", now.max_total_num_tokens),
            ("sglang:token_usage", "Share of the KV pool in use", now.token_usage),
            ("sglang:cache_hit_rate", "Share of prompt tokens found in cache", now.cache_hit_rate),
            ("sglang:gen_throughput", "Tokens generated per second", speed),
            ("baton:num_handover_reqs", "Sequences in hand-over", now.num_handover),
            ("baton:draining_handovers", "Ended legs with writes pending", now.num_draining),
            ("baton:quarantined_blocks", "KV blocks set aside", now.num_quarantined_blocks),
            ("baton:oldest_quarantine_seconds", "Age of the oldest", now.oldest_quarantine_s),
            ("baton:engine_alive", "1 while the engine process runs and moves", int(now.is_alive)),
        )
        for name, text, value in rows:
            family = GaugeMetricFamily(name, text, labels=self._names)
            family.add_metric(self._values, value)
            yield family

    def _counters(self, now: EngineSnapshot) -> Iterable[Metric]:
        rows = (
            ("sglang:prompt_tokens", "Prompt tokens processed", now.total_prompt_tokens),
            ("sglang:cached_tokens", "Prompt tokens found in cache", now.total_cached_tokens),
            ("sglang:generation_tokens", "Tokens generated", now.total_generated_tokens),
            ("baton:preemptions", "Sequences sent back to the queue", now.total_preemptions),
            ("baton:steps", "Forward passes", now.total_steps),
            ("baton:step_seconds", "Time spent in forward passes", now.total_step_seconds),
            ("baton:transfers", "writes of KV to decode workers finished", now.total_transfers),
            ("baton:transfer_failures", "KV hand-overs failed", now.total_transfer_failures),
            ("baton:transfer_bytes", "KV bytes handed over", now.total_transferred_bytes),
            ("baton:transfer_seconds", "Time spent handing over", now.total_transfer_seconds),
            ("baton:kv_blocks_verified", "KV blocks compared", now.total_verified_blocks),
            ("baton:kv_blocks_damaged", "KV blocks that differed", now.total_damaged_blocks),
        )
        for name, text, value in rows:
            family = CounterMetricFamily(name, text, labels=self._names)
            family.add_metric(self._values, value)
            yield family

    def _kv_blocks(self, now: EngineSnapshot) -> Metric:
        family = GaugeMetricFamily(
            "baton:kv_blocks", "KV blocks by state", labels=[*self._names, "state"]
        )
        family.add_metric([*self._values, "free"], now.num_blocks_free)
        family.add_metric([*self._values, "cached"], now.num_blocks_cached)
        family.add_metric([*self._values, "in_use"], now.num_blocks_in_use)
        return family

    def _finished(self, now: EngineSnapshot) -> Metric:
        family = CounterMetricFamily(
            "baton:requests_finished", "Requests by how they ended", labels=[*self._names, "reason"]
        )
        for reason, count in sorted(now.total_finished.items()):
            family.add_metric([*self._values, reason], count)
        return family

    def _refused(self, now: EngineSnapshot) -> Metric:
        family = CounterMetricFamily(
            "baton:refused_connections",
            "Connections refused: malformed, or without the cluster's secret",
            labels=[*self._names, "channel", "reason"],
        )
        for channel, reasons in sorted(now.total_refused.items()):
            for reason, count in sorted(reasons.items()):
                family.add_metric([*self._values, channel, reason], count)
        return family

    def _handover(self, now: EngineSnapshot) -> Iterable[Metric]:
        staged = [*self._names, "stage"]
        failures = CounterMetricFamily(
            "baton:handover_failures", "Hand-overs failed", labels=[*staged, "status"]
        )
        for stage, status, count in sorted(now.handover_failures):
            failures.add_metric([*self._values, stage, status], count)
        overdue = CounterMetricFamily(
            "baton:handover_overdue", "Blocks whose release came late", labels=staged
        )
        for stage, count in sorted(now.handover_overdue.items()):
            overdue.add_metric([*self._values, stage], count)
        seconds = SummaryMetricFamily(
            "baton:handover_stage_seconds", "Time of legs in each stage", labels=staged
        )
        for stage, (count, total_s) in sorted(now.handover_stages.items()):
            seconds.add_metric([*self._values, stage], count, total_s)
        return failures, overdue, seconds
