"""The choice of the next tokens of a batch: each a pure function of its logits, parameters, tokens
so far and seed.

The random number is keyed by (seed, position), so the same request draws the same token on any
worker, in any batch, before or after a preemption.
Elsewhere: the arithmetic (csrc/sampler.h, and sampler_reference.py to read), stop strings (api/),
batching of logits (runner.py).

Shapes: V vocabulary.
"""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.core.sampling import SamplingParams
from baton.kernels import _native
from baton.messages.engine import TokenLogprob

Logits = npt.NDArray[np.float32]  # V

NO_TOKEN: Final = -1
"""What is chosen where logits give no distribution: a NaN among them, or no finite best one."""


@dataclass(frozen=True)
class NextToken:
    """What the choice of one next token depends on. `token_ids`: prompt, then output so far."""

    logits: Logits
    params: SamplingParams
    token_ids: Tokens[int]
    num_prompt_tokens: int


class Sampler:
    """Chooses tokens on the threads of `kernels` (None: on the calling thread). Not reentrant."""

    def __init__(self, kernels: _native.Kernels | None = None):
        self._native = _native.Sampler(kernels)

    def choose(self, wanted: Tokens[NextToken]) -> list[int]:
        """The token that follows each one's `token_ids`, or NO_TOKEN. Logits are not changed.

        Order: logit_bias, penalties, end tokens barred until min_new_tokens, temperature, then the
        filters top_k, top_p, min_p on what is left, in that order.
        """
        choices = [_choice(each.params, len(each.token_ids)) for each in wanted]
        return self._native.choose([_adjust(each) for each in wanted], choices)

    def logprobs(
        self, rows: Tokens[Logits], token_ids: Tokens[int], num_top: Tokens[int]
    ) -> list[TokenLogprob]:
        """Log-probabilities of `token_ids[i]` and of the `num_top[i]` best tokens under the model's
        own distribution `rows[i]`. Ties in the top list go to the lower token id. NaN, and no top
        list, for a row that NO_TOKEN is chosen from."""
        results = self._native.logprobs(list(rows), list(token_ids), list(num_top))
        return [
            TokenLogprob(token_id=token_id, logprob=logprob, top=top)
            for token_id, (logprob, top) in zip(token_ids, results, strict=True)
        ]


def _choice(params: SamplingParams, position: int) -> tuple[float, int, float, float, int, int]:
    temperature = 0.0 if params.is_greedy else params.temperature
    return temperature, params.top_k, params.top_p, params.min_p, params.seed, position


def _adjust(wanted: NextToken) -> Logits:
    """The logits with biases and penalties: a copy where there are any."""
    params, logits = wanted.params, wanted.logits
    num_output_tokens = len(wanted.token_ids) - wanted.num_prompt_tokens
    barred = params.stop_token_ids if num_output_tokens < params.min_new_tokens else ()
    if not (params.logit_bias or params.has_penalties or barred):
        return logits
    adjusted = logits.copy()
    for token_id, bias in params.logit_bias.items():
        adjusted[token_id] += np.float32(bias)
    if params.repetition_penalty != 1.0:
        # Keskar et al., "CTRL", 2019: positive logits are divided, negative ones multiplied.
        seen = np.unique(np.asarray(wanted.token_ids, dtype=np.int64))
        factor = np.float32(params.repetition_penalty)
        values = adjusted[seen]
        adjusted[seen] = np.where(values > 0, values / factor, values * factor)
    if num_output_tokens > 0 and (params.presence_penalty or params.frequency_penalty):
        output_ids = np.asarray(wanted.token_ids[wanted.num_prompt_tokens :], dtype=np.int64)
        ids, counts = np.unique(output_ids, return_counts=True)
        adjusted[ids] -= np.float32(params.presence_penalty) + np.float32(
            params.frequency_penalty
        ) * counts.astype(np.float32)
    if barred:
        adjusted[list(barred)] = -np.inf
    return adjusted
