"""An article's claims about prefill and decode apart, as goals, and what was measured beside them.

Pure. The article's numbers are nobody's measurement here: `Claim.goal` is compared with, never
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
    SHARE_LESS = auto()
    OWN_SHARE = auto()


@dataclass(frozen=True)
class Claim:
    """`article` is what the article says, in words; `goal` the same for `measure`."""

    title: str
    load: str
    quantity: str
    measure: Measure
    article: str
    goal: float


CLAIMS: Final = (
    Claim("TTFT, mean", STEADY, "TTFT mean", Measure.TIMES_LESS, "3.1 times shorter", 3.1),
    Claim("throughput", SATURATED, "requests", Measure.TIMES_MORE, "2.3 times as high", 2.3),
    Claim(
        "p99 ITL beside long prompts",
        INTERFERENCE,
        "ITL p99",
        Measure.SHARE_LESS,
        "latency 40 % lower",
        0.4,
    ),
    Claim(
        "sessions within the limits",
        SESSIONS,
        "sustained",
        Measure.TIMES_MORE,
        "2.7 times as many",
        2.7,
    ),
    Claim(
        "processors busy",
        SATURATED,
        "utilization",
        Measure.OWN_SHARE,
        "89 %, from 65 %",
        0.89,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """`ours` and `theirs` beside each other. `median`, with the `lowest` and `highest` of the
    rounds' own, is what `claim.measure` makes of them; infinite where theirs is 0."""

    claim: Claim
    ours: str
    theirs: str
    our_figure: Figure
    their_figure: Figure
    median: float
    lowest: float
    highest: float

    @property
    def is_reached(self) -> bool:
        return self.median >= self.claim.goal


def beside_best_peer(report: SuiteReport) -> list[Verdict]:
    """For each claim and each of OURS, the other engine that it compares worst with."""
    peers = [name for name in report.servers if name not in (*OURS, UNIFIED)]
    return [verdict for claim in CLAIMS for verdict in _strictest(report, claim, peers)]


def beside_unified(report: SuiteReport) -> list[Verdict]:
    return [verdict for claim in CLAIMS for verdict in _strictest(report, claim, [UNIFIED])]


def _strictest(report: SuiteReport, claim: Claim, rivals: Sequence[str]) -> list[Verdict]:
    found = []
    for ours in OURS:
        verdicts = [
            verdict
            for theirs in rivals
            if (verdict := judge(report, claim, ours, theirs)) is not None
        ]
        if verdicts:
            found.append(min(verdicts, key=_margin))
    return found


def _margin(verdict: Verdict) -> float:
    """Against whom it looks worst; one's own share is the same beside all, so beside the best."""
    if verdict.claim.measure is Measure.OWN_SHARE:
        return -verdict.their_figure.median
    return verdict.median


def judge(report: SuiteReport, claim: Claim, ours: str, theirs: str) -> Verdict | None:
    """None where one of them was not measured. Rounds that only one of them has are left out."""
    our_figure = report.figure(claim.load, ours, claim.quantity)
    their_figure = report.figure(claim.load, theirs, claim.quantity)
    if our_figure is None or their_figure is None:
        return None
    pairs = zip(our_figure.samples, their_figure.samples, strict=False)
    values = [measured(claim.measure, one, other) for one, other in pairs]
    return Verdict(
        claim,
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
        case Measure.SHARE_LESS:
            return 1 - ours / theirs if theirs else -math.inf
        case Measure.OWN_SHARE:
            return ours
