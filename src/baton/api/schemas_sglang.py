"""Bodies of SGLang's own routes.

Unknown keys are ignored; None means absent or null. Lists follow the prompts one to one.
Elsewhere: conversion (convert_sglang.py), answers (answers_sglang.py).
"""

from typing import Any

import msgspec

from baton.api.schemas_openai import BootstrapFields, Priority


class SglangSampling(msgspec.Struct, kw_only=True):
    """`sampling_params` of /generate."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    sampling_seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    n: int | None = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    stop_regex: Any = None


class GenerateRequest(BootstrapFields, kw_only=True):
    """Body of POST|PUT /generate."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: SglangSampling | list[SglangSampling] | None = None
    rid: str | list[str] | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    priority: Priority | None = None
    extra_key: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    input_embeds: Any = None
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None


class AbortRequest(msgspec.Struct, kw_only=True):
    """Body of POST /abort_request."""

    rid: str | None = None
    abort_all: bool | None = None
