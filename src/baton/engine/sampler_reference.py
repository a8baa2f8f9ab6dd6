"""Sampling in numpy: what the C++ sampler (csrc/sampler.h) computes, bit for bit.

A token's weight is a whole number of quanta, 2^-40 of the best token's weight. Sums of weights are
then exact whatever their order, and every filter and draw behind them is integer arithmetic.

Invariant: same logits and parameters, same token, on any machine.
Elsewhere: penalties and biases, which change the logits before they come here (sampler.py).

Shapes: V vocabulary.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.kernels.reference import add, flush, fma, multiply

Logits = npt.NDArray[np.float32]  # V
Weights = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.intp]

NO_TOKEN: Final = -1
"""What a choice gives for logits without a distribution: a NaN among them, or no finite best."""

_QUANTUM_BITS: Final = 40
_RANDOM_BITS: Final = 53
_LOG2_E: Final = 1 / math.log(2)
_LN_2: Final = math.log(2)


def choose(
    logits: Logits,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> int:
    """The token at `position`. Temperature 0 or top_k 1: the best, of equals the one with the
    lowest id. Filters apply in the order top_k, top_p, min_p."""
    if not has_distribution(logits):
        return NO_TOKEN
    if temperature == 0.0 or top_k == 1:
        return int(np.argmax(flush(logits)))
    weights = weigh(logits, temperature)
    kept = filter_tokens(weights, top_k, top_p, min_p)
    return int(kept[draw(weights[kept], random_bits(seed, position))])


def logprobs(logits: Logits, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural logarithms of the distribution that `logits` give at temperature 1: of `token_id`,
    and of the `num_top` best tokens, best first, of equals the lower id first."""
    if not has_distribution(logits):
        return math.nan, []
    flushed = flush(logits).astype(np.float64)
    best, total = float(flushed.max()), int(weigh(logits, 1.0).sum())
    log_total = _log(total) - _QUANTUM_BITS * _LN_2
    order = np.argsort(-flushed, kind="stable")[:num_top]
    top = [(int(index), (float(flushed[index]) - best) - log_total) for index in order]
    return (float(flushed[token_id]) - best) - log_total, top


def has_distribution(logits: Logits) -> bool:
    return not bool(np.isnan(logits).any()) and math.isfinite(float(logits.max()))


def weigh(logits: Logits, temperature: float) -> Weights:
    """Each token's weight in quanta; the best one's is 2^40."""
    scale = np.array(_LOG2_E / temperature, dtype=np.float32)
    below_best = add(logits, -logits.max())
    one = np.array(2**_QUANTUM_BITS, dtype=np.float32)
    quanta = multiply(_exp2(multiply(below_best, scale)), one)
    return np.rint(quanta).astype(np.int64)


def filter_tokens(weights: Weights, top_k: int, top_p: float, min_p: float) -> TokenIds:
    """Ids of the tokens that are left, ascending. Weights rank them; of equals the lower id is the
    better. top_p keeps the fewest best whose share of what top_k left reaches it; min_p those that
    weigh at least so much of the best token."""
    ranked = np.argsort(-weights, kind="stable")
    if top_k > 0:
        ranked = ranked[:top_k]
    if top_p < 1.0:
        cumulative = np.cumsum(weights[ranked])
        total = int(cumulative[-1])
        mass = min(math.ceil(top_p * float(total)), total)
        ranked = ranked[: int(np.searchsorted(cumulative, mass)) + 1]
    ranked = ranked[weights[ranked].astype(np.float64) >= min_p * 2**_QUANTUM_BITS]
    return np.sort(ranked)


def draw(weights: Weights, random: int) -> int:
    """The index at which the cumulative distribution passes `random`, of 53 bits. Never one of no
    weight."""
    cumulative = np.cumsum(weights)
    target = (random * int(cumulative[-1])) >> _RANDOM_BITS
    return int(np.searchsorted(cumulative, target, side="right"))


def random_bits(seed: int, position: int) -> int:
    """53 bits that are a function of (seed, position), by the counter-based generator Philox4x64
    (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[position, 0, 0, 0]))
    return int(generator.random() * 2**_RANDOM_BITS)


def _exp2(x: Logits) -> Logits:
    """`exp2` of csrc/simd.h."""
    clamped = np.clip(x, np.float32(-127), np.float32(126))
    whole = np.rint(clamped)
    part = add(clamped, -whole)
    power = np.full_like(x, 1.535336188319500e-4)
    for coefficient in (
        1.339887440266574e-3,
        9.618437357674640e-3,
        5.550332471162809e-2,
        2.402264791363012e-1,
        6.931472028550421e-1,
        1.0,
    ):
        power = fma(power, part, np.full_like(x, coefficient))
    return flush(np.ldexp(power, whole.astype(np.int32)))


def _log(whole: int) -> float:
    """ln(m 2^e) = e ln 2 + 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2)); 11 terms of
    the series carry below 1e-16."""
    mantissa, exponent = math.frexp(float(whole))
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = mantissa * 2, exponent - 1
    s = (mantissa - 1) / (mantissa + 1)
    series = 0.0
    for odd in range(21, 0, -2):
        series = series * (s * s) + 1 / odd
    return exponent * _LN_2 + 2 * s * series
