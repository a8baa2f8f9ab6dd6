"""Taking samples in turn, on a clock that only the cases move."""

from collections.abc import Callable

from baton.bench.timing import interleave, rate
from baton.core.clock import FakeClock


def test_a_rate_is_work_by_time() -> None:
    clock = FakeClock()
    assert rate(lambda: clock.advance(0.25), 10.0, clock)() == 40.0


def test_rounds_alternate_their_direction_and_warm_ups_are_not_kept() -> None:
    order: list[str] = []

    def case(name: str) -> Callable[[], float]:
        def sample() -> float:
            order.append(name)
            return float(len(order))

        return sample

    samples = interleave({"a": case("a"), "b": case("b")}, rounds=3, warm_ups=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert samples == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}
