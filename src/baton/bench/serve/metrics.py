"""What follows from the records of a load: latencies, rates, limits kept.

Definitions stand in docs/benchmarking.md. Latencies are of requests that succeeded; a request that
failed meets no limit.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from baton.bench.serve.records import NOT_SENT, Record
from baton.core.errors import ConfigError

_MS: Final = 1e3


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of many values; percentiles are interpolated, as SGLang's and vLLM's benchmarks do."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    highest: float


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """In milliseconds; None where no request had one."""

    ttft_ms: Summary | None
    itl_ms: Summary | None
    tpot_ms: Summary | None
    e2el_ms: Summary | None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Of requests that succeeded, over the time from the first sending to the last end."""

    duration_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    total_input_tokens: int
    total_output_tokens: int
    cached_input_tokens: int | None
    mean_running: float
    tokens_per_arrival: float | None


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is ttft, itl, tpot or e2el."""

    name: str
    most_ms: float


class Attainment(msgspec.Struct, frozen=True, kw_only=True):
    """Shares are of all requests. `by_limit` takes each limit by itself."""

    all_limits: float
    by_limit: dict[str, float]
    goodput_per_s: float


def summarize(values: Sequence[float]) -> Summary | None:
    if not values:
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Summary(
        count=len(values),
        mean=rounded(float(np.mean(values))),
        p50=rounded(float(p50)),
        p90=rounded(float(p90)),
        p99=rounded(float(p99)),
        highest=rounded(max(values)),
    )


def latencies(records: Sequence[Record]) -> Latencies:
    good = [record for record in records if record.is_ok]
    tpots = [record.tpot_s for record in good]
    return Latencies(
        ttft_ms=summarize([record.ttft_s * _MS for record in good]),
        itl_ms=summarize([gap * _MS for record in good for gap in record.itl_s]),
        tpot_ms=summarize([each * _MS for each in tpots if each is not None]),
        e2el_ms=summarize([record.e2e_s * _MS for record in good]),
    )


def duration_s(records: Sequence[Record]) -> float:
    """From the first sending to the last end, of all records."""
    if not records:
        return 0.0
    return max(record.ended_s for record in records) - min(record.sent_s for record in records)


def rates(records: Sequence[Record]) -> Rates:
    good = [record for record in records if record.is_ok]
    lasted_s = duration_s(records)
    num_input = sum(record.num_input for record in good)
    num_output = sum(record.num_output for record in good)
    cached = [record.num_cached for record in good if record.num_cached is not None]
    streamed = [record for record in good if record.arrivals_s]
    num_arrivals = sum(len(record.arrivals_s) for record in streamed)
    num_streamed = sum(record.num_output for record in streamed)
    return Rates(
        duration_s=rounded(lasted_s),
        requests_per_s=_per(len(good), lasted_s),
        input_tokens_per_s=_per(num_input, lasted_s),
        output_tokens_per_s=_per(num_output, lasted_s),
        total_input_tokens=num_input,
        total_output_tokens=num_output,
        cached_input_tokens=sum(cached) if cached else None,
        mean_running=_per(sum(record.e2e_s for record in records), lasted_s),
        tokens_per_arrival=_per(num_streamed, num_arrivals) if num_arrivals else None,
    )


def errors(records: Sequence[Record]) -> dict[str, int]:
    """How often each error came, the most frequent first."""
    return dict(Counter(record.error for record in records if record.error).most_common())


def lateness_ms(records: Sequence[Record]) -> Summary | None:
    """Actual minus planned sending, of the requests that were sent."""
    return summarize([each.late_s * _MS for each in records if each.error != NOT_SENT])


def parse_limits(pairs: Sequence[str]) -> list[Limit]:
    """Of "ttft:500". Raises ConfigError."""
    limits: dict[str, Limit] = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            most_ms = float(text)
        except ValueError:
            most_ms = 0.0
        if name not in _VALUES or not most_ms > 0:
            known = ", ".join(_VALUES)
            raise ConfigError(
                f"--goodput {pair!r} is not NAME:MS with a name of {known} and a number above 0;"
                " try ttft:500"
            )
        if name in limits:
            raise ConfigError(f"--goodput names {name} twice; leave one")
        limits[name] = Limit(name=name, most_ms=most_ms)
    return list(limits.values())


def attainment(records: Sequence[Record], limits: Sequence[Limit]) -> Attainment:
    met = [[meets(record, limit) for limit in limits] for record in records]
    number = len(records)
    num_good = sum(all(each) and record.is_ok for each, record in zip(met, records, strict=True))
    return Attainment(
        all_limits=_per(num_good, number),
        by_limit={
            limit.name: _per(sum(each[index] for each in met), number)
            for index, limit in enumerate(limits)
        },
        goodput_per_s=_per(num_good, duration_s(records)),
    )


def meets(record: Record, limit: Limit) -> bool:
    """A failed request meets none; one token alone has no TPOT or ITL, and so meets both."""
    if not record.is_ok:
        return False
    value_s = _VALUES[limit.name](record)
    return value_s is None or value_s * _MS <= limit.most_ms


def own_itl_s(record: Record) -> float | None:
    """The gap that 99 of 100 gaps of this stream do not exceed (nearest rank)."""
    gaps = sorted(record.itl_s)
    return gaps[-(-len(gaps) * 99 // 100) - 1] if gaps else None


_VALUES: Final[dict[str, Callable[[Record], float | None]]] = {
    "ttft": lambda record: record.ttft_s,
    "itl": own_itl_s,
    "tpot": lambda record: record.tpot_s,
    "e2el": lambda record: record.e2e_s,
}


def rounded(value: float) -> float:
    """Five significant digits: more would be noise in a file that people read."""
    return float(f"{value:.5g}")


def _per(amount: float, whole: float) -> float:
    return rounded(amount / whole) if whole else 0.0
