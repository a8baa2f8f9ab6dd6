"""What a benchmark says: figures, ratios with their floors, and the machine they were taken on.

Invariant: a ratio is larger-is-better and dimensionless, so `measured >= floor` always means that
the claim holds. What could not be measured is in `skipped` with the reason, and in no ratio.
Elsewhere: taking samples (timing.py), how a report looks in a terminal (table.py).
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from baton.bench.machine import Machine


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity, repeatedly measured; `samples` in the order they were taken."""

    unit: str
    median: float
    lowest: float
    highest: float
    samples: list[float]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A claim: `measured` is to be at least `floor`. `reference` says what was divided by what."""

    measured: float
    floor: float
    reference: str

    @property
    def holds(self) -> bool:
        return self.measured >= self.floor


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `baton bench BENCHMARK`, as its JSON file has it."""

    benchmark: str
    machine: Machine
    settings: dict[str, int | str]
    figures: dict[str, Figure]
    ratios: dict[str, Ratio]
    skipped: dict[str, str]

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def figure(samples: Sequence[float], unit: str) -> Figure:
    """Median and spread of `samples`, which must not be empty."""
    assert samples, "a figure needs samples"
    return Figure(
        unit=unit,
        median=_rounded(statistics.median(samples)),
        lowest=_rounded(min(samples)),
        highest=_rounded(max(samples)),
        samples=[_rounded(sample) for sample in samples],
    )


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of ours / theirs. What slows a shared machine down lasts longer than a
    round and so hits both sides of a pair; the medians of each side alone may come from different
    moments."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


@dataclass
class Findings:
    """What a benchmark has found so far."""

    figures: dict[str, Figure] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, samples: Sequence[float], unit: str) -> None:
        assert name not in self.figures, name
        self.figures[name] = figure(samples, unit)

    def compare(self, name: str, ours: str, theirs: str, floor: float, reference: str) -> None:
        """Ratio of the rates `ours` and `theirs`, figures that were sampled in turn; skipped when
        `theirs` was."""
        if theirs in self.skipped:
            self.skipped[name] = self.skipped[theirs]
            return
        measured = paired_ratio(self.figures[ours].samples, self.figures[theirs].samples)
        self.claim(name, measured, floor, reference)

    def strictest(self, ours: str, theirs: Iterable[str]) -> str:
        """Which of the figures `theirs`, rivals at one task, `ours` compares worst with."""
        samples = self.figures[ours].samples
        return min(theirs, key=lambda name: paired_ratio(samples, self.figures[name].samples))

    def claim(self, name: str, measured: float, floor: float, reference: str) -> None:
        assert math.isfinite(measured), name
        self.ratios[name] = Ratio(measured=_rounded(measured), floor=floor, reference=reference)


def _rounded(value: float) -> float:
    """Five significant digits: more would be noise in a file that people read."""
    return float(f"{value:.5g}")
