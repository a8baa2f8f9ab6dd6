"""The workers with which the first token is predicted to come soonest.

Elsewhere: the prediction (predict.py), whether to use two workers at all (router/split.py).
"""

import math
import random
from collections.abc import Collection

import msgspec

from baton.router.policies.choice import Choice, RoleState
from baton.router.policies.predict import SAME_S, candidates, handover_s, prefill_s, soonest
from baton.router.policies.request import RoutedRequest


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
        state: RoleState,
        draw: random.Random,
        excluded: Collection[str] = (),
    ) -> Choice | None:
        found = soonest(
            state,
            [
                (self._predict_s(request, state, id_), id_)
                for id_ in candidates(request, state, draw, excluded)
            ],
        )
        return Choice(found[1], "soonest") if found else None


def choose_pair(
    request: RoutedRequest,
    prefills: RoleState,
    decodes: RoleState,
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
    decodes: RoleState,
    computed: list[tuple[float, str]],
    taken_over: list[tuple[float, str]],
    best: PairChoice,
) -> PairChoice:
    """The soonest pair by what was measured between its two workers; `best` unless another one is
    sooner by more than a millisecond, so that load and turns still decide among equals."""
    speeds = decodes.speeds
    if not speeds.has_links:
        return best
    found: PairChoice | None = None
    limit_s = math.inf
    ways = _ways(request, decodes, [decode_id for _, decode_id in taken_over])
    for computed_s, prefill_id in computed:
        for decode_id, lacking, fixed_s in ways:
            ttft_s = computed_s + fixed_s + lacking * speeds.link(prefill_id, decode_id)
            is_best = prefill_id == best.prefill_id and decode_id == best.decode_id
            rank_s = ttft_s - SAME_S if is_best else ttft_s
            if rank_s < limit_s:
                limit_s, found = rank_s, PairChoice(prefill_id, decode_id, ttft_s)
    assert found is not None, "best is one of them"
    return found


def _ways(
    request: RoutedRequest, decodes: RoleState, decode_ids: list[str]
) -> list[tuple[str, int, float]]:
    """(decode worker, tokens it lacks, fixed cost of a hand-over to it in s)."""
    fixed_s, hits = decodes.speeds.handover_s, decodes.prefixes.num_hits
    return [
        (id_, request.num_uncached(hits(request.prefix_hashes, id_)), fixed_s.of(id_))
        for id_ in decode_ids
    ]
