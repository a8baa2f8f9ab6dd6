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
        best = np.argsort(-logprobs, kind="stable")[:num_top]
        top = [(int(index), float(logprobs[index])) for index in best]
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
    """Invert the cumulative distribution at `uniform`, over tokens sorted best first."""
    scaled = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    keep = len(order)
    if params.top_p < 1.0:
        cumulative = np.cumsum(weights)
        # The smallest set whose mass reaches top_p: everything up to and including the crossing.
        keep = int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1
    if params.min_p > 0.0:
        # Weights are relative to the best token's, so the threshold is min_p itself.
        keep = min(keep, int(np.searchsorted(-weights, -params.min_p, side="right")))
    cumulative = np.cumsum(weights[: max(keep, 1)])
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(order[min(index, len(cumulative) - 1)])


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
