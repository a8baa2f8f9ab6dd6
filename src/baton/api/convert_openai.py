"""From OpenAI bodies to a spec. Pure but for the tokenizer's work.

Elsewhere: limits that depend on the engine (admission.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from baton.api.schemas_openai import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    ContentPart,
    OpenAIRequest,
)
from baton.api.spec import (
    GenerationSpec,
    PromptSpec,
    cache_salt_of,
    refuse_unsupported,
    sampling_params,
    seed_of,
    stop_strings,
)
from baton.api.text import Vocabulary
from baton.core.errors import RequestError
from baton.tokenizer.tokenizer import Tokenizer

MAX_CHAT_TOP_LOGPROBS: Final = 20
_UNSUPPORTED: Final = (
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
    "lora_path",
    "return_hidden_states",
)
_TEMPLATE_ARGUMENTS: Final = frozenset(
    {"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}
)


def chat_spec(body: ChatRequest, vocabulary: Vocabulary) -> GenerationSpec:
    _check_common(body)
    length_field, max_new_tokens = "max_tokens", body.max_tokens
    if body.max_completion_tokens is not None:
        length_field, max_new_tokens = "max_completion_tokens", body.max_completion_tokens
    if max_new_tokens is not None and max_new_tokens < 1:
        raise RequestError(
            f"{length_field} is {max_new_tokens}; it must be at least 1", param=length_field
        )
    text = render_chat(body, vocabulary.tokenizer)
    prompt = _prompt(
        body,
        field="messages",
        token_ids=vocabulary.encode_chat(text),
        text=text,
        eos_token_ids=vocabulary.eos_token_ids,
        num_top_logprobs=_chat_top_logprobs(body),
        max_new_tokens=max_new_tokens,
    )
    return _spec(body, [prompt], length_field)


def completion_spec(
    body: CompletionRequest, vocabulary: Vocabulary, default_new_tokens: int
) -> GenerationSpec:
    _check_common(body)
    refuse_unsupported(body, ("suffix",))
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise RequestError(
            f"best_of is {body.best_of}, above n, which is {body.n or 1}; leave best_of out",
            param="best_of",
            code="unsupported_parameter",
        )
    want_prompt_logprobs = bool(body.echo) and body.logprobs is not None
    inputs = _inputs(body.prompt, vocabulary)
    prompts = [
        _prompt(
            body,
            field="prompt" if len(inputs) == 1 else f"prompt[{index}]",
            token_ids=token_ids,
            text=_echoed_text(body, vocabulary.tokenizer, token_ids) if text is None else text,
            eos_token_ids=vocabulary.eos_token_ids,
            num_top_logprobs=body.logprobs,
            max_new_tokens=body.max_tokens,
            default_new_tokens=default_new_tokens,
            prompt_logprobs_start=0 if want_prompt_logprobs else None,
            salt=(index, len(inputs)),
        )
        for index, (token_ids, text) in enumerate(inputs)
    ]
    return _spec(body, prompts, "max_tokens")


def render_chat(body: ChatRequest, tokenizer: Tokenizer) -> str:
    """The prompt that the model's chat template makes of the messages."""
    if not body.messages:
        raise RequestError("messages is empty; give at least one message", param="messages")
    continues = bool(body.continue_final_message)
    asked = body.add_generation_prompt
    if continues and asked:
        raise RequestError(
            "continue_final_message and add_generation_prompt are both true; set only one",
            param="continue_final_message",
        )
    if continues and body.messages[-1].role != "assistant":
        raise RequestError(
            f"continue_final_message needs a last message of the assistant, "
            f"not of {body.messages[-1].role!r}",
            param="continue_final_message",
        )
    return tokenizer.apply_chat_template(
        [_template_message(message, index) for index, message in enumerate(body.messages)],
        add_generation_prompt=not continues if asked is None else asked,
        continue_final_message=continues,
        tools=body.tools if body.tools and body.tool_choice != "none" else None,
        **_template_kwargs(body.chat_template_kwargs),
    )


def _template_message(message: ChatMessage, index: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        key: value for key, value in msgspec.structs.asdict(message).items() if value is not None
    }
    content = message.content
    if isinstance(content, list):
        parts = [_part_text(part, f"messages[{index}].content") for part in content]
        fields["content"] = " ".join(parts)
    elif content is None:  # as beside tool calls; most templates join it to other text
        fields["content"] = ""
    return fields


def _part_text(part: ContentPart, field: str) -> str:
    if part.type != "text":
        raise RequestError(
            f"{field} has a part of type {part.type!r}; this model reads text only",
            param=field,
            code="unsupported_content",
        )
    if part.text is None:
        raise RequestError(f"{field} has a text part without text", param=f"{field}.text")
    return part.text


def _template_kwargs(kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    for name in kwargs or {}:
        if name in _TEMPLATE_ARGUMENTS:
            raise RequestError(
                f"chat_template_kwargs.{name} is a field of the request itself; set it there",
                param=f"chat_template_kwargs.{name}",
            )
    return kwargs or {}


def _chat_top_logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise RequestError(
                f"top_logprobs is {body.top_logprobs} but logprobs is not true; set it to true",
                param="top_logprobs",
            )
        return None
    num_top = body.top_logprobs or 0
    if not 0 <= num_top <= MAX_CHAT_TOP_LOGPROBS:
        raise RequestError(
            f"top_logprobs is {num_top}; it must be from 0 to {MAX_CHAT_TOP_LOGPROBS}",
            param="top_logprobs",
        )
    return num_top


def _inputs(
    prompt: str | list[str | int | list[int]], vocabulary: Vocabulary
) -> list[tuple[list[int], str | None]]:
    """Token ids of every prompt, with its text where it came as text."""
    if isinstance(prompt, str):
        return [(vocabulary.encode(prompt, "prompt"), prompt)]
    if not prompt:
        raise RequestError("prompt is an empty list; give at least one prompt", param="prompt")
    texts = [item for item in prompt if isinstance(item, str)]
    ids = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(prompt) == len(texts):
        return [
            (vocabulary.encode(text, f"prompt[{index}]"), text) for index, text in enumerate(texts)
        ]
    if len(prompt) == len(ids):
        return [(vocabulary.check(ids, "prompt"), None)]
    if len(prompt) == len(lists):
        return [
            (vocabulary.check(token_ids, f"prompt[{index}]"), None)
            for index, token_ids in enumerate(lists)
        ]
    raise RequestError("prompt mixes texts, token ids and lists; use one kind", param="prompt")


def _echoed_text(body: CompletionRequest, tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    if not body.echo:
        return ""
    return tokenizer.decode(token_ids, skip_special_tokens=body.skip_special_tokens is not False)


def _check_common(body: OpenAIRequest) -> None:
    refuse_unsupported(body, _UNSUPPORTED)
    if body.response_format is not None and body.response_format.type != "text":
        raise RequestError(
            f"response_format of type {body.response_format.type!r} is not supported by this "
            'server; use {"type": "text"} or leave it out',
            param="response_format",
            code="unsupported_parameter",
        )
    if isinstance(body, ChatRequest) and body.tool_choice not in (None, "none", "auto"):
        raise RequestError(
            "tool_choice other than 'none' and 'auto' is not supported by this server",
            param="tool_choice",
            code="unsupported_parameter",
        )


def _prompt(
    body: OpenAIRequest,
    *,
    field: str,
    token_ids: list[int],
    text: str,
    eos_token_ids: tuple[int, ...],
    num_top_logprobs: int | None,
    max_new_tokens: int | None,
    default_new_tokens: int | None = None,
    prompt_logprobs_start: int | None = None,
    salt: tuple[int, int] = (0, 1),
) -> PromptSpec:
    return PromptSpec(
        field=field,
        token_ids=token_ids,
        text=text,
        sampling=sampling_params(
            body,
            min_new_tokens=body.min_tokens,
            eos_token_ids=eos_token_ids,
            num_top_logprobs=num_top_logprobs,
        ),
        n=1 if body.n is None else body.n,
        max_new_tokens=max_new_tokens,
        default_new_tokens=default_new_tokens,
        seed=seed_of(body.seed),
        stops=stop_strings(body.stop, "stop"),
        keep_stop=bool(body.no_stop_trim),
        skip_special_tokens=body.skip_special_tokens is not False,
        prompt_logprobs_start=prompt_logprobs_start,
        cache_salt=cache_salt_of(body.cache_salt, body.extra_key, *salt),
    )


def _spec(body: OpenAIRequest, prompts: list[PromptSpec], length_field: str) -> GenerationSpec:
    return GenerationSpec(
        prompts=prompts,
        stream=bool(body.stream),
        rid=body.rid,
        bootstrap=body,
        resume=body.resume,
        # SGLang runs higher values first, the engine lower ones.
        priority=-(body.priority or 0),
        field_names={
            "max_new_tokens": length_field,
            "min_new_tokens": "min_tokens",
            "top_logprobs": "logprobs" if isinstance(body, CompletionRequest) else "top_logprobs",
        },
    )
