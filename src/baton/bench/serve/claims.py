"""An article's claims about prefill and decode apart, Baton's goals, and what was measured.

Pure. The article's numbers are nobody's measurement here: claims and goals are compared with, never
shown as a result.
Elsewhere: the loads (suite.py), how it looks (suite_page.py).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from baton.bench.report import Figure
from baton.bench.serve.suite import INTERFERENCE, SATURATED, SESSIONS, STEADY
from baton.bench.serve.suite_report import SuiteReport

OURS: Final = ("baton-adaptive", "baton-pd")
UNIFIED: Final = "baton-unified"


class Measure(Enum):
    """How two servers' figures become one: larger always is better."""

    TIMES_LESS = auto()
    TIMES_MORE = auto()
    OWN_SHARE = auto()


@dataclass(frozen=True)
class Goal:
    """The least value of a claim's measure, and how it is said."""

    least: float
    text: str


@dataclass(frozen=True)
class Claim:
    """`article` is what the article says, in words. The goals are Baton's own, beside the best
    other engine and beside Baton in one engine."""

    title: str
    load: str
    quantity: str
    measure: Measure
    article: str
    beside_peers: Goal
    beside_unified: Goal


_MORE: Final = Goal(math.nextafter(1.0, 2.0), "more")
_BUSY: Final = Goal(0.89, "89 %")

CLAIMS: Final = (
    Claim(
        "TTFT, mean",
        STEADY,
        "TTFT mean",
        Measure.TIMES_LESS,
        "3.1 times shorter",
        Goal(3.1, "3.1 x"),
        Goal(1.0, "not worse"),
    ),
    Claim(
        "throughput",
        SATURATED,
        "requests",
        Measure.TIMES_MORE,
        "2.3 times as high",
        Goal(2.3, "2.3 x"),
        Goal(0.95, "0.95 x"),
    ),
    Claim(
        "p99 ITL beside long prompts",
        INTERFERENCE,
        "ITL p99",
        Measure.TIMES_LESS,
        "latency 40 % lower",
        Goal(5.0, "5 x"),
        Goal(3.0, "3 x"),
    ),
    Claim(
        "sessions within the limits",
        SESSIONS,
        "sustained",
        Measure.TIMES_MORE,
        "2.7 times as many",
        Goal(2.7, "2.7 x"),
        _MORE,
    ),
    Claim(
        "processors busy",
        SATURATED,
        "utilization",
        Measure.OWN_SHARE,
        "89 %, from 65 %",
        _BUSY,
        _BUSY,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """`ours` and `theirs` beside each other. `median`, with the `lowest` and `highest` of the
    rounds' own, is what `claim.measure` makes of them; infinite where theirs is 0."""

    claim: Claim
    goal: Goal
    ours: str
    theirs: str
    our_figure: Figure
    their_figure: Figure
    median: float
    lowest: float
    highest: float

    @property
    def is_reached(self) -> bool:
        return self.median >= self.goal.least


def beside_best_peer(report: SuiteReport) -> list[Verdict]:
    """For each claim and each of OURS, the other engine that it compares worst with."""
    peers = [name for name in report.servers if name not in (*OURS, UNIFIED)]
    return [
        verdict
        for claim in CLAIMS
        for verdict in _strictest(report, claim, claim.beside_peers, peers)
    ]


def beside_unified(report: SuiteReport) -> list[Verdict]:
    return [
        verdict
        for claim in CLAIMS
        for verdict in _strictest(report, claim, claim.beside_unified, [UNIFIED])
    ]


def _strictest(
    report: SuiteReport, claim: Claim, goal: Goal, rivals: Sequence[str]
) -> list[Verdict]:
    found = []
    for ours in OURS:
        verdicts = [
            verdict
            for theirs in rivals
            if (verdict := judge(report, claim, goal, ours, theirs)) is not None
        ]
        if verdicts:
            found.append(min(verdicts, key=_margin))
    return found


def _margin(verdict: Verdict) -> float:
    """Against whom it looks worst; one's own share is the same beside all, so beside the best."""
    if verdict.claim.measure is Measure.OWN_SHARE:
        return -verdict.their_figure.median
    return verdict.median


def judge(report: SuiteReport, claim: Claim, goal: Goal, ours: str, theirs: str) -> Verdict | None:
    """None where one of them was not measured. Rounds that only one of them has are left out."""
    our_figure = report.figure(claim.load, ours, claim.quantity)
    their_figure = report.figure(claim.load, theirs, claim.quantity)
    if our_figure is None or their_figure is None:
        return None
    pairs = zip(our_figure.samples, their_figure.samples, strict=False)
    values = [measured(claim.measure, one, other) for one, other in pairs]
    return Verdict(
        claim,
        goal,
        ours,
        theirs,
        our_figure,
        their_figure,
        statistics.median(values),
        min(values),
        max(values),
    )


def measured(measure: Measure, ours: float, theirs: float) -> float:
    match measure:
        case Measure.TIMES_LESS:
            return theirs / ours if ours else math.inf
        case Measure.TIMES_MORE:
            return ours / theirs if theirs else math.inf
        case Measure.OWN_SHARE:
            return ours
