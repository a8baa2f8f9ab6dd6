"""Latencies, rates and limits of records whose answers are known."""

import pytest

from baton.bench.serve.metrics import (
    Limit,
    attainment,
    errors,
    latencies,
    lateness_ms,
    own_itl_s,
    parse_limits,
    rates,
    summarize,
)
from baton.bench.serve.records import NOT_SENT, Record
from baton.bench.serve.report import judge_client
from baton.core.errors import ConfigError


def record(
    sent_s: float, arrivals_s: list[float], ended_s: float, num_output: int | None = None
) -> Record:
    return Record(
        session=0,
        turn=0,
        planned_s=sent_s,
        sent_s=sent_s,
        ended_s=ended_s,
        arrivals_s=arrivals_s,
        num_input=100,
        num_output=len(arrivals_s) if num_output is None else num_output,
    )


def failed(sent_s: float, ended_s: float, error: str = "broke") -> Record:
    return Record(0, 0, sent_s, sent_s, ended_s, error=error)


FAST = record(1.0, [1.1, 1.2, 1.4], 1.5)
SLOW = record(2.0, [4.0, 4.1, 4.9, 5.0], 5.0)


def test_of_one_request() -> None:
    assert FAST.ttft_s == pytest.approx(0.1)
    assert FAST.itl_s == pytest.approx([0.1, 0.2])
    assert FAST.e2e_s == pytest.approx(0.5)
    assert FAST.tpot_s == pytest.approx((0.5 - 0.1) / 2)


def test_a_whole_answer_has_its_first_token_at_its_end() -> None:
    whole = record(1.0, [], 3.0, num_output=5)
    assert whole.ttft_s == whole.e2e_s == 2.0
    assert whole.itl_s == []
    assert whole.tpot_s is None


def test_one_token_has_no_time_per_token() -> None:
    assert record(1.0, [1.1], 1.2).tpot_s is None


def test_summaries_interpolate() -> None:
    summary = summarize([float(each) for each in range(101)])
    assert summary is not None
    assert (summary.mean, summary.p50, summary.p90, summary.p99) == (50.0, 50.0, 90.0, 99.0)
    assert (summary.highest, summary.count) == (100.0, 101)
    pair = summarize([0.0, 10.0])
    assert pair is not None
    assert (pair.p50, pair.p90, pair.p99) == (5.0, 9.0, 9.9)
    assert summarize([]) is None


def test_latencies_are_of_requests_that_succeeded() -> None:
    found = latencies([FAST, SLOW, failed(0.0, 99.0)])
    assert found.ttft_ms is not None
    assert (found.ttft_ms.count, found.ttft_ms.mean) == (2, 1050.0)
    assert found.itl_ms is not None
    assert (found.itl_ms.count, found.itl_ms.highest) == (5, 800.0)
    assert found.e2el_ms is not None
    assert found.e2el_ms.mean == 1750.0
    assert latencies([failed(0.0, 1.0)]).ttft_ms is None


def test_rates_are_over_the_time_of_all_requests() -> None:
    found = rates([FAST, SLOW, failed(1.0, 6.0)])
    assert found.duration_s == 5.0
    assert found.requests_per_s == 0.4
    assert found.input_tokens_per_s == 40.0
    assert found.output_tokens_per_s == 7 / 5
    assert (found.total_input_tokens, found.total_output_tokens) == (200, 7)
    assert found.mean_running == pytest.approx((0.5 + 3.0 + 5.0) / 5.0)
    assert found.tokens_per_arrival == 1.0
    assert found.cached_input_tokens is None


def test_cached_tokens_and_tokens_that_came_together() -> None:
    one = record(0.0, [1.0, 2.0], 2.0, num_output=6)
    one.num_cached = 64
    found = rates([one])
    assert (found.cached_input_tokens, found.tokens_per_arrival) == (64, 3.0)


def test_limits_are_read() -> None:
    assert parse_limits(["ttft:500", "itl:20.5"]) == [
        Limit(name="ttft", most_ms=500.0),
        Limit(name="itl", most_ms=20.5),
    ]


@pytest.mark.parametrize("pair", ["ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:nan", "x:1", ":5"])
def test_a_wrong_limit_is_named(pair: str) -> None:
    with pytest.raises(ConfigError, match=r"--goodput .* is not NAME:MS"):
        parse_limits([pair])


def test_a_limit_is_given_once() -> None:
    with pytest.raises(ConfigError, match="names ttft twice"):
        parse_limits(["ttft:1", "ttft:2"])


def test_failed_requests_meet_nothing_and_each_limit_stands_alone() -> None:
    limits = parse_limits(["ttft:2000", "itl:200", "e2el:1000"])
    kept = attainment([FAST, SLOW, failed(1.0, 1.1), failed(1.0, 6.0)], limits)
    assert kept.by_limit == {"ttft": 0.5, "itl": 0.25, "e2el": 0.25}
    assert kept.all_limits == 0.25
    assert kept.goodput_per_s == 1 / 5


def test_without_limits_goodput_is_what_succeeded() -> None:
    kept = attainment([FAST, failed(1.0, 2.0)], [])
    assert (kept.all_limits, kept.goodput_per_s, kept.by_limit) == (0.5, 1.0, {})


def test_the_itl_of_a_request_leaves_out_one_gap_in_a_hundred() -> None:
    gaps = [0.01] * 99 + [1.0]
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    assert own_itl_s(record(0.0, times, 9.0)) == pytest.approx(0.01)
    assert own_itl_s(record(0.0, times[50:], 9.0)) == pytest.approx(1.0)
    assert own_itl_s(record(0.0, [1.0], 9.0)) is None


def test_errors_are_counted_the_most_frequent_first() -> None:
    found = errors([failed(0, 1, "a"), FAST, failed(0, 1, "b"), failed(0, 1, "b")])
    assert list(found.items()) == [("b", 2), ("a", 1)]


def test_lateness_is_of_what_was_sent() -> None:
    late = Record(0, 0, planned_s=1.0, sent_s=1.25, ended_s=2.0, num_output=1)
    found = lateness_ms([late, failed(1.0, 1.0, NOT_SENT)])
    assert found is not None
    assert (found.count, found.mean) == (1, 250.0)


def test_a_client_that_spoils_the_figures_says_so() -> None:
    assert judge_client(summarize([1.0]), summarize([1.0]), 0.3).bottleneck is None
    assert judge_client(None, None, 0.3).bottleneck is None
    busy = judge_client(summarize([1.0]), None, 0.95).bottleneck
    assert busy is not None
    assert "0.95 of a core busy" in busy
    late = judge_client(summarize([150.0]), None, 0.1).bottleneck
    assert late is not None
    assert "150 ms late" in late
    drowsy = judge_client(None, summarize([40.0]), 0.1).bottleneck
    assert drowsy is not None
    assert "woke 40 ms late" in drowsy
