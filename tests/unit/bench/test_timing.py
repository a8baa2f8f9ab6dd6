"""Taking samples in turn, on a clock that only the cases move."""

import itertools
from collections.abc import Callable

from baton.bench.timing import interleave, rate
from baton.core.clock import FakeClock


def test_a_rate_is_work_by_time() -> None:
    clock = FakeClock()
    assert rate(lambda: clock.advance(0.25), 10.0, clock)() == 40.0


def _recorded(names: str, rounds: int, warm_ups: int) -> tuple[str, dict[str, list[float]]]:
    order: list[str] = []

    def case(name: str) -> Callable[[], float]:
        def sample() -> float:
            order.append(name)
            return float(len(order))

        return sample

    samples = interleave({name: case(name) for name in names}, rounds, warm_ups)
    return "".join(order), samples


def test_rounds_alternate_their_direction_and_warm_ups_are_not_kept() -> None:
    order, samples = _recorded("ab", rounds=3, warm_ups=1)
    assert order == "ab" + "ab" + "ba" + "ba"
    assert samples == {"a": [3.0, 6.0, 8.0], "b": [4.0, 5.0, 7.0]}


def test_every_case_follows_itself_as_often_as_any_other() -> None:
    order, _ = _recorded("abc", rounds=13, warm_ups=0)
    twice = [first for first, second in itertools.pairwise(order) if first == second]
    assert sorted(twice) == ["a", "a", "b", "b", "c", "c"]
