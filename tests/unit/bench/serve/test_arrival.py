"""When sessions arrive."""

import statistics
from itertools import pairwise

import pytest

from baton.bench.serve.arrival import plan_arrivals
from baton.bench.serve.config import LoadConfig
from baton.bench.serve.load import draw_pauses
from baton.bench.serve.sessions import Session, Turn
from baton.core.errors import ConfigError

TURN = Turn((1,), 1, 1)
MANY = [Session((TURN,))] * 20_001


def gaps_of(burstiness: float) -> list[float]:
    times = plan_arrivals(MANY, LoadConfig(request_rate=4.0, burstiness=burstiness), seed=1)
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_spread_of_a_gamma_distribution(burstiness: float) -> None:
    gaps = gaps_of(burstiness)
    # 20,000 draws: the standard error of the mean is under a hundredth of it
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    variation = statistics.stdev(gaps) / statistics.mean(gaps)
    assert variation == pytest.approx(burstiness**-0.5, rel=0.05)


def test_the_first_arrives_at_once_and_the_rest_in_order() -> None:
    times = plan_arrivals(MANY, LoadConfig(request_rate=4.0), seed=1)
    assert times[0] == 0.0
    assert len(times) == len(MANY)
    assert times == sorted(times)


def test_the_plan_is_a_function_of_the_seed() -> None:
    config = LoadConfig(request_rate=2.0)
    assert plan_arrivals(MANY[:9], config, 1) == plan_arrivals(MANY[:9], config, 1)
    assert plan_arrivals(MANY[:9], config, 1) != plan_arrivals(MANY[:9], config, 2)


def test_a_traces_times_hold_unless_a_rate_is_given() -> None:
    sessions = [Session((TURN,), at_s) for at_s in (0.0, 3.0, 7.0)]
    assert plan_arrivals(sessions, LoadConfig(), 1) == [0.0, 3.0, 7.0]
    assert plan_arrivals(sessions, LoadConfig(request_rate=float("inf")), 1) == [0.0] * 3
    assert plan_arrivals(sessions, LoadConfig(request_rate=1000.0), 1)[2] < 1.0
    assert plan_arrivals(MANY[:2], LoadConfig(), 1) == [0.0, 0.0]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ConfigError, match="--request-rate"):
        LoadConfig(request_rate=rate)


def test_there_is_a_pause_before_every_turn_but_the_first() -> None:
    sessions = [Session((TURN,) * 3), Session((TURN,))]
    pauses = draw_pauses(sessions, 2.0, seed=1)
    assert [len(each) for each in pauses] == [2, 0]
    assert all(each > 0 for each in pauses[0])
    assert draw_pauses(sessions, 0.0, seed=1) == [[0.0, 0.0], []]
