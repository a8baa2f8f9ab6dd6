"""Counting every request for tokens, at the cost of a few additions.

prometheus_client's own counters take a lock and find their labels anew each time, several
microseconds per request; these belong to one event loop and become metrics only when scraped.
Elsewhere: figures of rarer events (metrics.py).
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BOUNDS = [*map(str, SECONDS), "+Inf"]


class Histogram:
    """How often a duration fell between two of SECONDS, upper ends included."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * len(_BOUNDS)
        self._sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        self._counts[bisect_left(SECONDS, duration_s)] += 1
        self._sum_s += duration_s

    def add_to(self, family: HistogramMetricFamily, route: str) -> None:
        buckets = [
            (bound, float(count))
            for bound, count in zip(_BOUNDS, accumulate(self._counts), strict=True)
        ]
        family.add_metric([route], buckets, self._sum_s)


class ExchangeTally(Collector):
    """`num_inflight` is changed by whoever handles requests."""

    def __init__(self) -> None:
        self.num_inflight = 0
        self._ended: dict[tuple[str, int], int] = {}
        self._ttft: dict[str, Histogram] = {}
        self._duration: dict[str, Histogram] = {}

    def note_first_byte(self, route: str, waited_s: float) -> None:
        """An answer begins."""
        histogram = self._ttft.get(route)
        if histogram is None:
            histogram = self._ttft[route] = Histogram()
        histogram.observe(waited_s)

    def note_end(self, route: str, status: int, duration_s: float) -> None:
        """A request has ended."""
        key = (route, status)
        self._ended[key] = self._ended.get(key, 0) + 1
        histogram = self._duration.get(route)
        if histogram is None:
            histogram = self._duration[route] = Histogram()
        histogram.observe(duration_s)

    def collect(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "baton_router_requests",
            "Requests for tokens that ended; status 499: the client left first.",
            labels=["route", "status"],
        )
        for (route, status), count in self._ended.items():
            ended.add_metric([route, str(status)], count)
        yield ended
        inflight = GaugeMetricFamily(
            "baton_router_inflight", "Requests for tokens now in the router."
        )
        inflight.add_metric([], self.num_inflight)
        yield inflight
        yield _family(
            "baton_router_ttft_seconds",
            "From a request's arrival to the first byte of its answer.",
            self._ttft,
        )
        yield _family(
            "baton_router_request_duration_seconds",
            "From a request's arrival to the last byte of its answer.",
            self._duration,
        )


def _family(name: str, text: str, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["route"])
    for route, histogram in histograms.items():
        histogram.add_to(family, route)
    return family
