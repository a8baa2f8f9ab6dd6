"""How the next token is chosen: the parameters of one request, validated once at admission.

Elsewhere: HTTP names and defaults (api/), the choice itself (engine/sampler.py), stop *strings*
(matched on text in api/, because only the api process has the tokenizer).
"""

import math

import msgspec

from baton.core.errors import RequestError

MAX_SEED = 2**63 - 1
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_TOP_LOGPROBS = 128
MAX_TOP_K = 2**31 - 1
GREEDY_BELOW = 1e-6
"""Temperatures below are greedy, as in SGLang: dividing logits by them would overflow."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of one sequence.

    temperature 0 (or next to it) is greedy. top_k -1 (or 0) keeps the whole vocabulary. `seed` is
    never None once a request is admitted: the api draws one. `num_top_logprobs` None: no logprobs
    wanted; 0: only the chosen token's. `stop_token_ids` includes the model's end tokens unless the
    request ignores them.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    num_top_logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    def validate(self, vocab_size: int) -> None:
        """Raise RequestError naming the first field that is out of its range."""
        _whole("max_new_tokens", self.max_new_tokens, 1, None)
        _whole("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        _real("temperature", self.temperature, 0.0, 100.0)
        _real("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _whole("top_k", self.top_k, -1, MAX_TOP_K)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, 2.0, open_low=True)
        _whole("seed", self.seed, 0, MAX_SEED)
        if len(self.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
            _refuse("logit_bias", len(self.logit_bias), f"at most {MAX_LOGIT_BIAS_ENTRIES} entries")
        for token_id, bias in self.logit_bias.items():
            _whole("logit_bias", token_id, 0, vocab_size - 1)
            _real(f"logit_bias.{token_id}", bias, -100.0, 100.0)
        for token_id in self.stop_token_ids:
            _whole("stop_token_ids", token_id, 0, vocab_size - 1)
        if self.num_top_logprobs is not None:
            _whole("top_logprobs", self.num_top_logprobs, 0, min(MAX_TOP_LOGPROBS, vocab_size))


def _refuse(field: str, value: object, wanted: str) -> None:
    raise RequestError(f"{field} is {value}; it must be {wanted}", param=field)


def _whole(field: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        _refuse(field, value, wanted)


def _real(field: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    inside = (value > low if open_low else value >= low) and value <= high
    if not math.isfinite(value) or not inside:
        _refuse(field, value, f"{'above' if open_low else 'at least'} {low:g} and at most {high:g}")
