"""Bodies of the OpenAI routes, as clients and SGLang's router send them.

Unknown keys are ignored; a known key of the wrong type is refused while decoding. Fields are None
when absent or null, so that defaults live in one place, the conversion.
Elsewhere: conversion (convert_openai.py), answers (answers_chat.py, answers_completion.py).
"""

from typing import Annotated, Any

import msgspec

PerPrompt = int | list[int | None] | None
PerPromptText = str | list[str | None] | None
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31)]


SeenLogprob = tuple[float | None, int, str | None]


class SeenLogprobs(msgspec.Struct, kw_only=True):
    """What the events of /generate repeat, in its own names and shapes."""

    input_token_logprobs: list[SeenLogprob] = []
    output_token_logprobs: list[SeenLogprob] = []
    input_top_logprobs: list[list[SeenLogprob] | None] = []
    output_top_logprobs: list[list[SeenLogprob] | None] = []


class ResumedSample(msgspec.Struct, kw_only=True):
    """What the client has of one sample; `is_done`: all of it."""

    index: int = 0
    token_ids: list[int]
    is_done: bool = False
    logprobs: SeenLogprobs | None = None


class Resume(msgspec.Struct, kw_only=True):
    """Baton's router to its workers: the client has these output tokens already, so only what
    follows is sent. `token_ids` where there is one sample, else `samples`, of which those that are
    missing have not begun. `seed`, `created` and `id` are those of the stream that broke off."""

    token_ids: list[int] | None = None
    samples: list[ResumedSample] | None = None
    seed: int | None = None
    created: int | None = None
    id: str | None = None


class BootstrapFields(msgspec.Struct, kw_only=True):
    """What a router adds. How a pair's two legs find each other: scalars, or one per prompt or
    sample; and where a broken stream goes on."""

    bootstrap_host: PerPromptText = None
    bootstrap_port: PerPrompt = None
    bootstrap_room: PerPrompt = None
    resume: Resume | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class OpenAIRequest(BootstrapFields, kw_only=True):
    """What chat and text completions have in common, with SGLang's extensions."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    rid: str | list[str] | None = None
    priority: Priority | None = None
    cache_salt: str | list[str] | None = None
    extra_key: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    return_hidden_states: bool | None = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    lora_path: Any = None


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ChatRequest(OpenAIRequest, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(OpenAIRequest, kw_only=True):
    """Body of POST /v1/completions. A prompt is text, token ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
