"""The choice of the next token: a pure function of logits, parameters, tokens so far and seed.

The random number comes from a counter-based generator keyed by (seed, position), so the same
request draws the same token on any worker, in any batch, before or after a preemption
(Philox4x64: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
Elsewhere: stop strings (api/), batching of logits (runner.py).
"""

from collections.abc import Sequence as Tokens

import numpy as np
import numpy.typing as npt

from baton.core.sampling import SamplingParams
from baton.messages.engine import TokenLogprob

Logits = npt.NDArray[np.float32]  # V
Weights = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.intp]

_NUCLEUS_GUESSES = (128, 2048)


def choose_token(
    logits: Logits,
    params: SamplingParams,
    prompt_ids: Tokens[int],
    output_ids: Tokens[int],
) -> int:
    """The token that follows `prompt_ids + output_ids`. `logits` (V) is not changed.

    Order: logit_bias, penalties, end tokens barred until min_new_tokens, temperature, then the
    filters top_k, top_p, min_p on what is left, in that order.
    """
    adjusted = _adjust(logits, params, prompt_ids, output_ids)
    if params.is_greedy:
        return int(np.argmax(adjusted))
    position = len(prompt_ids) + len(output_ids)
    uniform = uniform_at(params.seed, position)
    return _draw(adjusted, params, uniform)


def uniform_at(seed: int, position: int) -> float:
    """The number in [0, 1) that this seed has for this position."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[position, 0, 0, 0]))
    return float(generator.random())


def token_logprob(logits: Logits, token_id: int, num_top: int) -> TokenLogprob:
    """Log-probability of `token_id` and of the `num_top` best tokens under the model's own
    distribution. Ties in the top list go to the lower token id."""
    logprobs = _log_softmax(logits)
    top: list[tuple[int, float]] = []
    if num_top > 0:
        top = [(int(index), float(logprobs[index])) for index in _best(logprobs, num_top)]
    return TokenLogprob(token_id=token_id, logprob=float(logprobs[token_id]), top=top)


def _adjust(
    logits: Logits,
    params: SamplingParams,
    prompt_ids: Tokens[int],
    output_ids: Tokens[int],
) -> Logits:
    barred = params.stop_token_ids if len(output_ids) < params.min_new_tokens else ()
    if not (params.logit_bias or params.has_penalties or barred):
        return logits
    adjusted = logits.copy()
    for token_id, bias in params.logit_bias.items():
        adjusted[token_id] += np.float32(bias)
    if params.repetition_penalty != 1.0:
        # Keskar et al., "CTRL", 2019: positive logits are divided, negative ones multiplied.
        seen = np.unique(np.asarray([*prompt_ids, *output_ids], dtype=np.int64))
        factor = np.float32(params.repetition_penalty)
        values = adjusted[seen]
        adjusted[seen] = np.where(values > 0, values / factor, values * factor)
    if output_ids and (params.presence_penalty or params.frequency_penalty):
        ids, counts = np.unique(np.asarray(output_ids, dtype=np.int64), return_counts=True)
        adjusted[ids] -= np.float32(params.presence_penalty) + np.float32(
            params.frequency_penalty
        ) * counts.astype(np.float32)
    if barred:
        adjusted[list(barred)] = -np.inf
    return adjusted


def _draw(logits: Logits, params: SamplingParams, uniform: float) -> int:
    """Invert the cumulative distribution at `uniform`, over the tokens that the filters keep."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    kept = _kept(weights, params)
    cumulative = np.cumsum(weights[kept])
    total = cumulative[-1]
    index = int(np.searchsorted(cumulative, uniform * total, side="right"))
    # Where rounding takes the product to the total itself: the last token that has any weight.
    last = int(np.searchsorted(cumulative, total))
    return int(kept[min(index, last)])


def _kept(weights: Weights, params: SamplingParams) -> TokenIds:
    """Tokens left by top_k, top_p and min_p. `weights` are relative to the best token's."""
    kept: TokenIds = np.arange(len(weights))
    if params.top_k > 0:
        kept = _best(weights, params.top_k)
        if params.top_p < 1.0:
            kept = kept[: _num_reaching(weights[kept], params.top_p * weights[kept].sum())]
    elif params.top_p < 1.0:
        kept = _nucleus(weights, params.top_p * weights.sum())
    if params.min_p > 0.0:
        kept = kept[weights[kept] >= params.min_p]
    return kept


def _nucleus(weights: Weights, mass: float) -> TokenIds:
    """The smallest set of best tokens whose weights reach `mass`. It is small nearly always, and
    sorting a whole vocabulary takes longer than a small model's step."""
    for count in (*_NUCLEUS_GUESSES, len(weights)):
        best = _best(weights, count)
        num_kept = _num_reaching(weights[best], mass)
        if num_kept <= len(best):
            return best[:num_kept]
    return best


def _num_reaching(weights: Weights, mass: float) -> int:
    """How many from the front make up `mass`; more than there are if all of them do not."""
    return int(np.searchsorted(np.cumsum(weights), mass)) + 1


def _best(values: Weights, count: int) -> TokenIds:
    """Indices of the `count` largest, best first; of equals the lower index goes first."""
    candidates: TokenIds = np.arange(len(values))
    if count < len(values):
        candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order[:count]]


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
