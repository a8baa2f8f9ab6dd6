"""What one HTTP request asks for, in one form for every generation route.

A *prompt* yields `n` *samples*; samples are numbered through all prompts in order, the same way on
both legs of a pair. Values here are as the client gave them: limits are checked in admission.py.
Elsewhere: how bodies become a spec (convert_openai.py, convert_sglang.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.api.schemas_openai import BootstrapFields, OpenAIRequest, Resume
from baton.api.schemas_sglang import SglangSampling
from baton.core.errors import RequestError
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.messages.engine import TokenLogprob

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 1024
PLACEHOLDER_MODELS = frozenset({"", "default", "unknown"})
"""Model names that mean "whatever you serve"; SGLang's router sends "unknown" for a chat request
without a model."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """One prompt and how to continue it.

    `max_new_tokens` None: `default_new_tokens`, or whatever still fits; 0: only score the prompt.
    `sampling` carries neither seed nor length yet. `field` names the prompt in error messages.
    """

    field: str
    token_ids: list[int]
    text: str
    sampling: SamplingParams
    n: int = 1
    max_new_tokens: int | None = None
    default_new_tokens: int | None = None
    seed: int | None = None
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs_start: int | None = None
    cache_salt: str = ""


@dataclass(frozen=True, kw_only=True)
class GenerationSpec:
    """All prompts of one HTTP request. `field_names` maps SamplingParams' names to the client's.
    `repeats_logprobs`: each event of a stream has those of all tokens so far."""

    prompts: list[PromptSpec]
    stream: bool = False
    rid: str | list[str] | None = None
    bootstrap: BootstrapFields = field(default_factory=BootstrapFields)
    resume: Resume | None = None
    repeats_logprobs: bool = False
    priority: int = 0
    field_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Where the prefill engine of a sample can be asked for. `room` and the sample's index name
    the hand-over."""

    host: str
    port: int
    room: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a client has of a sample that another worker began. `logprobs` are None where events do
    not repeat them."""

    token_ids: list[int]
    is_done: bool = False
    prompt_logprobs: list[TokenLogprob] | None = None
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sequence to run: the engine's request and what to do with its text.

    `seen`: what the client has of it already, from another worker.
    `shown_id`: its name for the client; the engine's is another one in a later attempt.
    `pairing` is None on a unified worker and for probes. `discard_output`: the client asked for no
    new token at all, so the one that the engine makes is not shown.
    """

    index: int
    prompt_index: int
    request: EngineRequest
    shown_id: str = ""
    seen: "Seen | None" = None
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    skip_special_tokens: bool = True
    discard_output: bool = False
    pairing: Pairing | None = None


def check_model(asked: str | None, served: str) -> None:
    if asked is None or asked in PLACEHOLDER_MODELS or asked == served:
        return
    raise RequestError(
        f"the model {asked!r} does not exist here; this worker serves {served!r}",
        param="model",
        status=404,
        code="model_not_found",
    )


def stop_strings(stop: str | list[str] | None, param: str) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(
            f"{param} has {len(stops)} strings; the limit is {MAX_STOP_STRINGS}", param=param
        )
    for text in stops:
        if not text or len(text) > MAX_STOP_STRING_CHARS:
            raise RequestError(
                f"{param} has a string of {len(text)} characters; use 1 to {MAX_STOP_STRING_CHARS}",
                param=param,
            )
    return stops


def sampling_params(
    fields: OpenAIRequest | SglangSampling,
    *,
    min_new_tokens: int | None,
    eos_token_ids: tuple[int, ...],
    num_top_logprobs: int | None,
) -> SamplingParams:
    """The parameters that both kinds of body name alike; seed and length come with admission."""
    own_stops = tuple(fields.stop_token_ids or ())
    stop_token_ids = own_stops if fields.ignore_eos else (*eos_token_ids, *own_stops)
    return SamplingParams(
        max_new_tokens=1,
        min_new_tokens=min_new_tokens or 0,
        temperature=_given(fields.temperature, 1.0),
        top_p=_given(fields.top_p, 1.0),
        top_k=-1 if fields.top_k is None else fields.top_k,
        min_p=_given(fields.min_p, 0.0),
        presence_penalty=_given(fields.presence_penalty, 0.0),
        frequency_penalty=_given(fields.frequency_penalty, 0.0),
        repetition_penalty=_given(fields.repetition_penalty, 1.0),
        logit_bias=fields.logit_bias or {},
        stop_token_ids=tuple(dict.fromkeys(stop_token_ids)),
        num_top_logprobs=num_top_logprobs,
    )


def seed_of(seed: int | None) -> int | None:
    """-1 asks for any seed, as it does in llama.cpp and vLLM."""
    return None if seed == -1 else seed


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def refuse_unsupported(body: object, names: tuple[str, ...], prefix: str = "") -> None:
    """Refuse fields that would change the output and that this server cannot honour."""
    for name in names:
        value = getattr(body, name)
        if value is not None and value is not False and value not in ("", [], {}):
            raise RequestError(
                f"{prefix}{name} is not supported by this server; leave it out",
                param=f"{prefix}{name}",
                code="unsupported_parameter",
            )


def per_prompt_text(value: str | list[str] | None, index: int, count: int, param: str) -> str:
    """A value given once for all prompts, or as a list with one for each."""
    if not isinstance(value, list):
        return value or ""
    if len(value) != count:
        raise RequestError(
            f"{param} has {len(value)} entries for {count} prompts; give one for each", param=param
        )
    return value[index]


def cache_salt_of(
    cache_salt: str | list[str] | None,
    extra_key: str | list[str] | None,
    index: int,
    count: int,
) -> str:
    """SGLang's `cache_salt` and `extra_key` both separate prefix caches; empty when neither is."""
    salt = per_prompt_text(cache_salt, index, count, "cache_salt")
    extra = per_prompt_text(extra_key, index, count, "extra_key")
    return f"{len(salt)}:{salt}{extra}" if salt and extra else salt or extra
