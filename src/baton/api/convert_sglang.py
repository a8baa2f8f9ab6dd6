"""From /generate's body to a spec. Pure but for the tokenizer's work.

Elsewhere: limits that depend on the engine (admission.py).
"""

from typing import Final, TypeVar

from baton.api.schemas_sglang import GenerateRequest, SglangSampling
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

V = TypeVar("V")

_UNSUPPORTED: Final = (
    "token_ids_logprob",
    "return_hidden_states",
    "image_data",
    "audio_data",
    "video_data",
    "input_embeds",
    "lora_path",
    "session_params",
    "custom_logit_processor",
)
_UNSUPPORTED_SAMPLING: Final = ("json_schema", "regex", "ebnf", "structural_tag", "stop_regex")
_FIELD_NAMES: Final = {
    name: f"sampling_params.{name}"
    for name in (
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "seed",
        "stop_token_ids",
        "n",
    )
} | {"top_logprobs": "top_logprobs_num"}


def generate_spec(
    body: GenerateRequest, vocabulary: Vocabulary, default_new_tokens: int
) -> GenerationSpec:
    refuse_unsupported(body, _UNSUPPORTED)
    inputs = _inputs(body, vocabulary)
    count = len(inputs)
    prompts = []
    for index, (field, token_ids) in enumerate(inputs):
        sampling = _sampling_of(body, index, count)
        num_top = num_top_logprobs_of(body, index, count)
        prompts.append(
            PromptSpec(
                field=field,
                token_ids=token_ids,
                text="",
                sampling=sampling_params(
                    sampling,
                    min_new_tokens=sampling.min_new_tokens,
                    eos_token_ids=vocabulary.eos_token_ids,
                    num_top_logprobs=num_top,
                ),
                n=1 if sampling.n is None else sampling.n,
                max_new_tokens=sampling.max_new_tokens,
                default_new_tokens=default_new_tokens,
                seed=seed_of(sampling.sampling_seed if sampling.seed is None else sampling.seed),
                stops=stop_strings(sampling.stop, "sampling_params.stop"),
                keep_stop=bool(sampling.no_stop_trim),
                skip_special_tokens=sampling.skip_special_tokens is not False,
                prompt_logprobs_start=_logprob_start(body, index, count)
                if num_top is not None
                else None,
                cache_salt=cache_salt_of(body.cache_salt, body.extra_key, index, count),
            )
        )
    return GenerationSpec(
        prompts=prompts,
        stream=bool(body.stream),
        rid=body.rid,
        bootstrap=body,
        resume=body.resume,
        repeats_logprobs=True,
        # SGLang runs higher values first, the engine lower ones.
        priority=-(body.priority or 0),
        field_names=_FIELD_NAMES,
    )


def is_list(body: GenerateRequest, spec: GenerationSpec) -> bool:
    """Whether the answer is a list: the input was one, or there are several samples."""
    came_as_list = isinstance(body.text, list) or any(
        isinstance(item, list) for item in body.input_ids or ()
    )
    return came_as_list or any(prompt.n > 1 for prompt in spec.prompts)


def num_top_logprobs_of(body: GenerateRequest, index: int, count: int) -> int | None:
    """None when this prompt's logprobs were not asked for."""
    if not _nth(body.return_logprob, index, count, "return_logprob", False):
        return None
    return _nth(body.top_logprobs_num, index, count, "top_logprobs_num", 0)


def _logprob_start(body: GenerateRequest, index: int, count: int) -> int | None:
    start = _nth(body.logprob_start_len, index, count, "logprob_start_len", -1)
    if start < -1:
        raise RequestError(
            f"logprob_start_len is {start}; use -1 for no prompt logprobs, or a position",
            param="logprob_start_len",
        )
    return None if start == -1 else start


def _inputs(body: GenerateRequest, vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Name and token ids of every prompt."""
    text, ids = body.text, body.input_ids
    if text is not None and ids is not None:
        raise RequestError("text and input_ids are both given; use one", param="input_ids")
    if text is not None:
        texts = [("text", text)] if isinstance(text, str) else _numbered("text", text)
        return [(field, vocabulary.encode(each, field)) for field, each in texts]
    if ids is None:
        raise RequestError("text is missing; give text or input_ids", param="text")
    flat = [item for item in ids if isinstance(item, int)]
    if len(flat) == len(ids):
        return [("input_ids", vocabulary.check(flat, "input_ids"))]
    lists = [item for item in ids if isinstance(item, list)]
    if len(lists) != len(ids):
        raise RequestError("input_ids mixes token ids and lists; use one kind", param="input_ids")
    return [(field, vocabulary.check(each, field)) for field, each in _numbered("input_ids", lists)]


def _numbered(field: str, values: list[V]) -> list[tuple[str, V]]:
    if not values:
        raise RequestError(f"{field} is an empty list; give at least one prompt", param=field)
    return [(f"{field}[{index}]", value) for index, value in enumerate(values)]


def _sampling_of(body: GenerateRequest, index: int, count: int) -> SglangSampling:
    sampling = _nth(body.sampling_params, index, count, "sampling_params", SglangSampling())
    refuse_unsupported(sampling, _UNSUPPORTED_SAMPLING, prefix="sampling_params.")
    return sampling


def _nth(value: V | list[V] | None, index: int, count: int, param: str, default: V) -> V:
    """A value given once for all prompts, or as a list with one for each."""
    if value is None:
        return default
    if not isinstance(value, list):
        return value
    if len(value) != count:
        raise RequestError(
            f"{param} has {len(value)} entries for {count} prompts; give one for each", param=param
        )
    return value[index]
