"""Taking samples of several cases in turn, so that a slow minute of the machine touches them all.

Elsewhere: what is done with samples (report.py).
"""

from collections.abc import Callable, Mapping

from baton.core.clock import Clock

Sample = Callable[[], float]
"""Runs a case once and returns what it measured (a rate, in the case's own unit)."""


def rate(run: Callable[[], object], work: float, clock: Clock) -> Sample:
    """A case that does `work` units with every `run`: samples are units per second."""

    def sample() -> float:
        started_s = clock.now_s()
        run()
        return work / (clock.now_s() - started_s)

    return sample


def interleave(
    cases: Mapping[str, Sample], rounds: int, warm_ups: int = 2
) -> dict[str, list[float]]:
    """`rounds` samples of every case. Each round runs all of them, every other one backwards, and
    the one that begins changes: no case always follows the same neighbour, whose caches and clock
    frequency it inherits, and none follows itself more often than others do."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for _ in range(warm_ups):
        for name in order:
            cases[name]()
    for number in range(rounds):
        first = number // 2 % len(order)
        turned = order[first:] + order[:first]
        for name in turned if number % 2 == 0 else reversed(turned):
            samples[name].append(cases[name]())
    return samples
