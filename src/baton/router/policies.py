"""Which worker takes the next request: pure functions of what is known about the candidates.

Invariant: `choose` returns one of the candidates it was given, and depends on nothing else
than its arguments; chance enters only through `draw`.
Elsewhere: who is a candidate at all (workers.py), where the draw comes from (fleet.py).
"""

import enum
from collections.abc import Sequence
from typing import assert_never

import msgspec


class PolicyName(enum.StrEnum):
    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as a policy sees it.

    `num_in_flight`: requests this router has there now. `num_foreign`: requests the worker
    reported beyond ours (other routers, direct clients). `num_tokens`: KV tokens it last
    reported. `last_dispatch`: grows with every dispatch, 0 if never used.
    """

    worker_id: str
    num_in_flight: int = 0
    num_foreign: int = 0
    num_tokens: int = 0
    last_dispatch: int = 0


def choose(policy: PolicyName, candidates: Sequence[Candidate], *, draw: float) -> Candidate:
    """The candidate to use next. `draw` is uniform in [0, 1); `candidates` is not empty."""
    assert candidates, "a policy needs at least one candidate"
    match policy:
        case PolicyName.RANDOM:
            return candidates[int(draw * len(candidates))]
        case PolicyName.ROUND_ROBIN:
            return min(candidates, key=_turn)
        case PolicyName.LEAST_LOADED:
            return min(candidates, key=_load)
        case _:
            assert_never(policy)


def _turn(candidate: Candidate) -> tuple[int, str]:
    """Longest unused first: a strict rotation that survives workers coming and going."""
    return (candidate.last_dispatch, candidate.worker_id)


def _load(candidate: Candidate) -> tuple[int, int, int, str]:
    """Requests decide; reported tokens only break ties, because they are older than our own
    count and every router sees the same ones (following them alone makes routers herd)."""
    num_requests = candidate.num_in_flight + candidate.num_foreign
    return (num_requests, candidate.num_tokens, candidate.last_dispatch, candidate.worker_id)
