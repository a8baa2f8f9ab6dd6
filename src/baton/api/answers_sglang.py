"""Answers of POST /generate, in SGLang's shape: cumulative text and `meta_info`."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from baton.api.answers import encode
from baton.api.logprobs import SglangLogprob, sglang_logprobs, sglang_top_logprobs
from baton.api.outcome import Outcome
from baton.api.sample_stream import Piece
from baton.api.state import WEIGHT_VERSION
from baton.tokenizer.tokenizer import Tokenizer

Unset = msgspec.UnsetType
UNSET = msgspec.UNSET


class MetaInfo(msgspec.Struct, kw_only=True):
    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    weight_version: str = WEIGHT_VERSION
    total_retractions: int = 0
    input_token_logprobs: list[SglangLogprob] | Unset = UNSET
    output_token_logprobs: list[SglangLogprob] | Unset = UNSET
    input_top_logprobs: list[list[SglangLogprob] | None] | Unset = UNSET
    output_top_logprobs: list[list[SglangLogprob] | None] | Unset = UNSET
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float | Unset = UNSET


class Generated(msgspec.Struct, kw_only=True):
    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | Unset = UNSET


class SglangAnswer:
    """`is_list`: the client sent a list or asked for n > 1, so it gets a list, and events carry
    an index. `num_top_logprobs` per prompt, None where logprobs were not asked for."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        is_list: bool,
        num_top_logprobs: Sequence[int | None],
        text_in_logprobs: bool,
        elapsed_s: Callable[[], float],
    ):
        self._tokenizer = tokenizer
        self._is_list = is_list
        self._num_top = num_top_logprobs
        self._text_in_logprobs = text_in_logprobs
        self._elapsed_s = elapsed_s

    def whole(self, outcomes: Sequence[Outcome]) -> bytes:
        generated = [self._generated(outcome) for outcome in outcomes]
        return encode(generated if self._is_list else generated[0])

    def events(self, piece: Piece, outcome: Outcome) -> list[bytes]:
        generated = self._generated(outcome)
        if self._is_list:
            generated.index = outcome.sample.index
        return [encode(generated)]

    def last_events(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        return []

    def _generated(self, outcome: Outcome) -> Generated:
        meta = MetaInfo(
            id=outcome.sample.shown_id,
            finish_reason=_finish_reason(outcome),
            prompt_tokens=outcome.num_prompt_tokens,
            completion_tokens=outcome.num_new_tokens,
            cached_tokens=outcome.num_cached_tokens,
        )
        if outcome.finish is not None:
            meta.e2e_latency = self._elapsed_s()
        num_top = self._num_top[outcome.sample.prompt_index]
        if num_top is not None:
            self._add_logprobs(meta, outcome, num_top)
        return Generated(text=outcome.text, output_ids=outcome.token_ids, meta_info=meta)

    def _add_logprobs(self, meta: MetaInfo, outcome: Outcome, num_top: int) -> None:
        tokenizer, with_text = self._tokenizer, self._text_in_logprobs
        prompt, output = outcome.prompt_logprobs, outcome.logprobs
        meta.input_token_logprobs = sglang_logprobs(tokenizer, prompt, with_text)
        meta.output_token_logprobs = sglang_logprobs(tokenizer, output, with_text)
        if num_top:
            meta.input_top_logprobs = sglang_top_logprobs(tokenizer, prompt, num_top, with_text)
            meta.output_top_logprobs = sglang_top_logprobs(tokenizer, output, num_top, with_text)


def _finish_reason(outcome: Outcome) -> dict[str, Any] | None:
    finish = outcome.finish
    if finish is None:
        return None
    if finish.reason == "length":
        return {"type": "length", "length": outcome.num_new_tokens}
    return {"type": "stop", "matched": finish.matched}
