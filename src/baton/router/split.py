"""Whether a request goes whole to one worker, although there are prefill and decode workers.

Splitting costs a queue and a hand-over; a short uncached prompt on an idle worker is done sooner
without. The prediction decides, with two brakes: a prompt that would stall running streams for
longer than `max_stall_s` is split, and a decision changes only for a gain above `margin`, so
that requests of one size do not flap between two ways that take equally long.

Where prefill has no cores but those of decode, splitting gains no time, so nothing is predicted:
decode has the request whole, in pieces beside its streams, unless the prompt is longer than
`max_whole_tokens` and none waits there that slows them already.
Invariant: `decide` depends on its arguments only, and every decision has a reason.
Elsewhere: the predictions (policies/predict.py), asking for them (placement.py).
"""

import enum
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class SplitRules:
    """`is_conditional` False: split whatever can be split. `max_whole_tokens`: uncached ones of a
    prompt, on cores that prefill and decode share, while streams run and no more tokens than that
    wait."""

    is_conditional: bool = True
    margin: float = 0.2
    max_stall_s: float = 0.05
    max_whole_tokens: int = 8192


class SplitReason(enum.StrEnum):
    """Why whole: NO_PAIR, WHOLE_FASTER, KEPT_WHOLE, SHARED_CORES. Why split: all others."""

    NO_PAIR = "no_pair"
    NO_WHOLE_WORKER = "no_whole_worker"
    ALWAYS_SPLIT = "always_split"
    WOULD_STALL_STREAMS = "would_stall_streams"
    SHARED_CORES = "shared_cores"
    WHOLE_FASTER = "whole_faster"
    SPLIT_FASTER = "split_faster"
    KEPT_WHOLE = "kept_whole"
    KEPT_SPLIT = "kept_split"


class WholeCost(msgspec.Struct, frozen=True, kw_only=True):
    """One worker alone: what waits there, the prompt, and the streams that would stand still.
    `num_ahead`: prompt tokens that wait. `shares_cores`: it is a decode worker, and prefill has no
    other cores."""

    queue_s: float
    compute_s: float
    num_streams: int
    num_ahead: int = 0
    num_uncached: int = 0
    shares_cores: bool = False

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.compute_s


class PairCost(msgspec.Struct, frozen=True, kw_only=True):
    """The best pair: until prefill has computed the prompt, then until decode goes on."""

    prefill_s: float
    handover_s: float

    @property
    def ttft_s(self) -> float:
        return self.prefill_s + self.handover_s


class SplitDecision(msgspec.Struct, frozen=True):
    is_whole: bool
    reason: SplitReason


def decide(
    whole: WholeCost | None, pair: PairCost | None, rules: SplitRules, was_whole: bool | None
) -> SplitDecision:
    """None: there is no such worker, or no such pair; at least one is there. `was_whole`: the last
    decision for requests of this size."""
    assert whole is not None or pair is not None, "nobody could serve it"
    if pair is None:
        return SplitDecision(True, SplitReason.NO_PAIR)
    if whole is None:
        return SplitDecision(False, SplitReason.NO_WHOLE_WORKER)
    if not rules.is_conditional:
        return SplitDecision(False, SplitReason.ALWAYS_SPLIT)
    if whole.shares_cores:
        is_calm = whole.num_streams > 0 and whole.num_ahead <= rules.max_whole_tokens
        if is_calm and whole.num_uncached > rules.max_whole_tokens:
            return SplitDecision(False, SplitReason.WOULD_STALL_STREAMS)
        return SplitDecision(True, SplitReason.SHARED_CORES)
    if whole.num_streams > 0 and whole.compute_s > rules.max_stall_s:
        return SplitDecision(False, SplitReason.WOULD_STALL_STREAMS)
    if was_whole and whole.ttft_s <= pair.ttft_s * (1 + rules.margin):
        kept = whole.ttft_s > pair.ttft_s
        return SplitDecision(True, SplitReason.KEPT_WHOLE if kept else SplitReason.WHOLE_FASTER)
    if was_whole is False and whole.ttft_s * (1 + rules.margin) >= pair.ttft_s:
        kept = whole.ttft_s < pair.ttft_s
        return SplitDecision(False, SplitReason.KEPT_SPLIT if kept else SplitReason.SPLIT_FASTER)
    if whole.ttft_s < pair.ttft_s:
        return SplitDecision(True, SplitReason.WHOLE_FASTER)
    return SplitDecision(False, SplitReason.SPLIT_FASTER)


class Splitter:
    """Remembers the last decision for each size of prompt, in powers of two of uncached tokens."""

    def __init__(self, rules: SplitRules) -> None:
        self.rules = rules
        self._was_whole: dict[int, bool] = {}

    def decide(
        self, num_uncached: int, whole: WholeCost | None, pair: PairCost | None
    ) -> SplitDecision:
        size = num_uncached.bit_length()
        decision = decide(whole, pair, self.rules, self._was_whole.get(size))
        if decision.reason not in (SplitReason.NO_PAIR, SplitReason.NO_WHOLE_WORKER):
            self._was_whole[size] = decision.is_whole
        return decision
