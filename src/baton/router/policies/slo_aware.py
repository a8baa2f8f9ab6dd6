"""The workers with which the first token is predicted to come soonest.

Elsewhere: the prediction (predict.py), whether to use two workers at all (router/split.py).
"""

import random
from collections.abc import Collection

import msgspec

from baton.router.policies.choice import Choice, Field
from baton.router.policies.predict import candidates, handover_s, prefill_s, soonest
from baton.router.policies.request import RoutedRequest

SAME_S = 0.001
"""Predictions closer than this are equal."""


class PairChoice(msgspec.Struct, frozen=True):
    prefill_id: str
    decode_id: str
    ttft_s: float


class SloAware:
    """`computes`: these workers compute prompts (prefill, unified); else they take them over."""

    def __init__(self, computes: bool) -> None:
        self._predict_s = prefill_s if computes else handover_s

    def choose(
        self,
        request: RoutedRequest,
        field: Field,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        found = soonest(
            field,
            [
                (self._predict_s(request, field, id_), id_)
                for id_ in candidates(request, field, draw, excluded)
            ],
        )
        return Choice(found[1], "soonest") if found else None


def choose_pair(
    request: RoutedRequest,
    prefills: Field,
    decodes: Field,
    draw: random.Random,
    excluded: Collection[str] = (),
) -> PairChoice | None:
    """The pair of the lowest predicted TTFT; None if a role has no usable worker. It differs from
    two choices where the speed between two workers depends on both, as on one host or two."""
    computed = [
        (prefill_s(request, prefills, id_), id_)
        for id_ in candidates(request, prefills, draw, excluded)
    ]
    taken_over = [
        (handover_s(request, decodes, id_), id_)
        for id_ in candidates(request, decodes, draw, excluded)
    ]
    prefill, decode = soonest(prefills, computed), soonest(decodes, taken_over)
    if prefill is None or decode is None:
        return None
    best = PairChoice(prefill[1], decode[1], prefill[0] + decode[0])
    return _over_links(request, decodes, computed, taken_over, best)


def _over_links(
    request: RoutedRequest,
    decodes: Field,
    computed: list[tuple[float, str]],
    taken_over: list[tuple[float, str]],
    best: PairChoice,
) -> PairChoice:
    """The soonest pair by what was measured between its two workers; `best` unless another one is
    sooner by more than a millisecond, so that load and turns still decide among equals."""
    speeds = decodes.speeds
    if not speeds.has_links:
        return best
    fixed_s, lacking = {}, {}
    for _, decode_id in taken_over:
        num_hits = decodes.prefixes.num_hits(request.prefix_hashes, decode_id)
        lacking[decode_id] = request.num_uncached(num_hits)
        fixed_s[decode_id] = speeds.handover_s.of(decode_id)
    computed_s = {prefill_id: seconds for seconds, prefill_id in computed}

    def ttft_s(prefill_id: str, decode_id: str) -> float:
        moved_s = lacking[decode_id] * speeds.link(prefill_id, decode_id)
        return computed_s[prefill_id] + moved_s + fixed_s[decode_id]

    found_s = ttft_s(best.prefill_id, best.decode_id)
    found = PairChoice(best.prefill_id, best.decode_id, found_s)
    for prefill_id in computed_s:
        for decode_id in lacking:
            if (seconds := ttft_s(prefill_id, decode_id)) < found.ttft_s - SAME_S:
                found = PairChoice(prefill_id, decode_id, seconds)
    return found
