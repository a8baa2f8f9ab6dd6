"""How long a request would take to its first token, from what was measured.

    prefill   (tokens ahead + own uncached tokens) / prompt tokens per second
    hand-over (tokens that decode lacks) x seconds per token + its fixed cost

The two are added although the transfer overlaps the computation: an upper bound, the same for
all pairs of one speed. Elsewhere: measuring (speeds.py), deciding (slo_aware.py, split.py).
"""

import random
from collections.abc import Collection, Sequence

from baton.router.policies.choice import RoleState
from baton.router.policies.request import RoutedRequest

NUM_CANDIDATES = 6
"""Workers compared: all of a small fleet; of a big one, the least loaded ones, some that know the
prompt's beginning, and some drawn ones, so that a fast worker is found even if it has load."""

SAME_S = 0.001
"""Predictions closer than this are equal."""

_NUM_LEAST, _NUM_HOLDERS = 2, 2


def prefill_s(request: RoutedRequest, state: RoleState, worker_id: str) -> float:
    """Until the prompt is computed at this worker, with what waits there."""
    num_hits = state.prefixes.num_hits(request.prefix_hashes, worker_id)
    num_ahead = num_pending(state, worker_id)
    return (num_ahead + request.num_uncached(num_hits)) / state.speeds.prefill.of(worker_id)


def num_pending(state: RoleState, worker_id: str) -> int:
    """Prompt tokens still to be computed there. What others have at a prefill worker is all
    prompt; beside streams nobody knows, so it is left out."""
    load = state.roster.load_of(worker_id)
    return load.num_pending if state.has_streams else load.num_pending + load.foreign_tokens


def handover_s(
    request: RoutedRequest, state: RoleState, decode_id: str, prefill_id: str = ""
) -> float:
    """From the computed prompt to the first token at this decode worker; by its mean over all
    prefill workers if none is named."""
    num_hits = state.prefixes.num_hits(request.prefix_hashes, decode_id)
    lacking = request.num_uncached(num_hits)
    speeds = state.speeds
    return speeds.transfer_s(prefill_id, decode_id, lacking) + speeds.handover_s.of(decode_id)


def candidates(
    request: RoutedRequest, state: RoleState, draw: random.Random, excluded: Collection[str]
) -> list[str]:
    """Workers worth a prediction, at most NUM_CANDIDATES."""
    roster = state.roster
    if len(roster) <= NUM_CANDIDATES:
        return [load.worker_id for load in roster if load.worker_id not in excluded]
    _, holders = state.prefixes.longest_match(
        request.prefix_hashes, lambda id_: id_ in roster and id_ not in excluded
    )
    found = dict.fromkeys(roster.least_loaded_few(_NUM_LEAST, excluded))
    found.update(dict.fromkeys(holders[-_NUM_HOLDERS:]))
    while len(found) < NUM_CANDIDATES and (drawn := roster.sample(draw, excluded)) is not None:
        if drawn.worker_id in found:
            break
        found[drawn.worker_id] = None
    return list(found)


def soonest(state: RoleState, costs_s: Sequence[tuple[float, str]]) -> tuple[float, str] | None:
    """The lowest cost; among costs within SAME_S of it the least load, then the longest unused."""
    if not costs_s:
        return None
    limit_s = min(costs_s)[0] + SAME_S
    best, best_load = None, None
    for cost in costs_s:
        if cost[0] <= limit_s:
            load = state.roster.load_of(cost[1])
            if best_load is None or load.is_less_than(best_load):
                best, best_load = cost, load
    return best
