"""When each session arrives, in seconds from the start.

Elsewhere: what happens when all places are taken (load.py).
"""

import math
from collections.abc import Sequence

import numpy as np

from baton.bench.serve.config import LoadConfig
from baton.bench.serve.sessions import Session

_SEED_STREAM = 3  # apart from the dataset's draws, so that another rate sends the same prompts


def plan_arrivals(sessions: Sequence[Session], config: LoadConfig, seed: int) -> list[float]:
    """A trace's own times unless a rate is given; at a rate, gaps drawn from a gamma distribution
    with that mean, of shape `burstiness`: 1 is exponential, a Poisson process. The first session
    arrives at 0. Without either, all at 0."""
    rate = config.request_rate
    if rate is None:
        return [session.at_s or 0.0 for session in sessions]
    if math.isinf(rate):
        return [0.0] * len(sessions)
    draw = np.random.default_rng((seed, _SEED_STREAM))
    shape = config.burstiness
    gaps_s = draw.gamma(shape, 1.0 / (rate * shape), max(0, len(sessions) - 1))
    return [0.0, *np.cumsum(gaps_s).tolist()][: len(sessions)]
