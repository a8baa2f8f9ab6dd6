"""From a spec to the sequences that may run: limits, seeds, request ids, pairing. All pure.

Invariant: both legs of a pair, given the same body, name the same samples with the same seeds and
hand-over keys, so that the token that prefill draws is the one decode would have drawn.
Elsewhere: asking for a prefill engine's address (pairing.py), running samples (sample_stream.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from baton.api.resumption import seen_of_samples
from baton.api.schemas_openai import BootstrapFields, PerPrompt, PerPromptText
from baton.api.spec import GenerationSpec, Pairing, PromptSpec, Sample
from baton.core.errors import RequestError
from baton.core.request import (
    DEFAULT_BOOTSTRAP_PORT,
    FAKE_BOOTSTRAP_HOST,
    MAX_BOOTSTRAP_ROOM,
    EngineRequest,
    Handover,
    Role,
)
from baton.core.sampling import MAX_SEED, SamplingParams

MAX_RID_CHARS: Final = 256
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|\[?[0-9A-Fa-f:.]{2,45}\]?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this worker can take. `capacity_tokens` is the size of the whole KV pool.
    `takes_whole_requests`: a decode worker, without a prefill leg, too."""

    role: Role
    context_length: int
    capacity_tokens: int
    vocab_size: int
    max_choices: int
    max_samples: int
    takes_whole_requests: bool = False


def admit(
    spec: GenerationSpec,
    limits: Limits,
    base_id: str,
    draw_seed: Callable[[], int],
    id_suffix: str = "",
) -> list[Sample]:
    """Every sample of a request, in order. Raises RequestError if any of them can never run.
    `id_suffix`: what the engine's names for them have beyond the client's."""
    num_samples = _count_samples(spec, limits)
    ids = _request_ids(spec, base_id, num_samples)
    shown_base_id = spec.resume.id if spec.resume else None
    shown_ids = ids if shown_base_id is None else _request_ids(spec, shown_base_id, num_samples)
    pairings = _pairings(spec, limits, num_samples)
    seen_of = seen_of_samples(spec, num_samples, limits.vocab_size)
    base_seed = _base_seed(spec, pairings[0], draw_seed)
    samples: list[Sample] = []
    for prompt_index, prompt in enumerate(spec.prompts):
        unseen = _sampling(prompt, limits, spec, 0)
        for choice in range(prompt.n):
            index = len(samples)
            pairing, seen = pairings[index], seen_of.get(index)
            resumed = seen.token_ids if seen else []
            is_running = seen is not None and not seen.is_done
            sampling = _sampling(prompt, limits, spec, len(resumed)) if is_running else unseen
            seed = base_seed + index if prompt.seed is None else prompt.seed + choice
            start = None if seen else _prompt_logprobs_start(prompt, limits.role, pairing)
            samples.append(
                Sample(
                    index=index,
                    prompt_index=prompt_index,
                    shown_id=shown_ids[index],
                    seen=seen,
                    request=EngineRequest(
                        request_id=f"{ids[index]}{id_suffix}",
                        prompt_token_ids=[*prompt.token_ids, *resumed]
                        if resumed
                        else prompt.token_ids,
                        num_resumed_tokens=len(resumed),
                        sampling=msgspec.structs.replace(sampling, seed=seed & MAX_SEED),
                        priority=spec.priority,
                        prompt_logprobs_start=start,
                        cache_salt=prompt.cache_salt,
                        handover=Handover(room=pairing.room, sample_index=index)
                        if pairing
                        else None,
                    ),
                    # Prefill answers with its one token whatever it is: ending it early for a stop
                    # string would cancel the hand-over that decode waits for.
                    stops=() if limits.role == "prefill" else prompt.stops,
                    keep_stop=prompt.keep_stop,
                    skip_special_tokens=prompt.skip_special_tokens,
                    discard_output=prompt.max_new_tokens == 0,
                    pairing=pairing,
                )
            )
    return samples


def _base_seed(spec: GenerationSpec, pairing: Pairing | None, draw_seed: Callable[[], int]) -> int:
    """Of samples without a seed of their own: sample i draws with this plus i, on both legs and on
    whoever goes on."""
    if spec.resume is not None and spec.resume.seed is not None:
        return spec.resume.seed
    return pairing.room if pairing else draw_seed()


def _count_samples(spec: GenerationSpec, limits: Limits) -> int:
    name = spec.field_names.get("n", "n")
    for prompt in spec.prompts:
        if not 1 <= prompt.n <= limits.max_choices:
            raise RequestError(
                f"{name} is {prompt.n}; it must be from 1 to {limits.max_choices}", param=name
            )
    count = sum(prompt.n for prompt in spec.prompts)
    if count > limits.max_samples:
        raise RequestError(
            f"the request asks for {count} samples (prompts times {name}); the limit is "
            f"{limits.max_samples}; split it",
            param=name,
        )
    return count


def _sampling(
    prompt: PromptSpec, limits: Limits, spec: GenerationSpec, num_resumed: int
) -> SamplingParams:
    max_new_tokens = _max_new_tokens(prompt, limits, spec.field_names.get("max_new_tokens", ""))
    sampling = msgspec.structs.replace(
        prompt.sampling, max_new_tokens=max(1, max_new_tokens), seed=prompt.seed or 0
    )
    if prompt.max_new_tokens == 0:
        sampling = msgspec.structs.replace(sampling, min_new_tokens=0)
    try:
        sampling.validate(limits.vocab_size)
    except RequestError as error:
        raise _in_client_words(error, spec) from None
    if num_resumed and num_resumed >= max_new_tokens:
        raise RequestError(
            f"resume.token_ids has {num_resumed} tokens; the request ends after {max_new_tokens}",
            param="resume.token_ids",
        )
    if limits.role == "prefill":
        # The next token is drawn here, so a minimum still forbids an end token on it.
        num_first = 1 + num_resumed
        return msgspec.structs.replace(
            sampling,
            max_new_tokens=num_first,
            min_new_tokens=min(num_first, sampling.min_new_tokens),
        )
    return sampling


def _max_new_tokens(prompt: PromptSpec, limits: Limits, field: str) -> int:
    """The length to run for, checked against the context and the pool."""
    num_prompt = len(prompt.token_ids)
    if num_prompt >= limits.context_length:
        raise RequestError(
            f"{prompt.field} has {num_prompt} tokens; the context length is "
            f"{limits.context_length} tokens and one must be left to generate; shorten it",
            param=prompt.field,
            code="context_length_exceeded",
        )
    if num_prompt >= limits.capacity_tokens:
        raise RequestError(
            f"{prompt.field} has {num_prompt} tokens; this worker's KV pool holds "
            f"{limits.capacity_tokens} tokens and one must be left to generate; shorten it",
            param=prompt.field,
            code="kv_pool_exceeded",
        )
    room = min(limits.context_length, limits.capacity_tokens) - num_prompt
    asked = prompt.max_new_tokens
    if asked is None:
        return room if prompt.default_new_tokens is None else min(room, prompt.default_new_tokens)
    if asked < 0:
        raise RequestError(f"{field} is {asked}; it must be at least 0", param=field)
    if num_prompt + asked > limits.context_length:
        raise RequestError(
            f"{prompt.field} has {num_prompt} tokens and {field} is {asked}, "
            f"{num_prompt + asked} together; the context length is {limits.context_length} "
            f"tokens; ask for at most {limits.context_length - num_prompt}",
            param=field,
            code="context_length_exceeded",
        )
    if limits.role != "prefill" and asked > room:
        raise RequestError(
            f"{prompt.field} has {num_prompt} tokens and {field} is {asked}, "
            f"{num_prompt + asked} together; this worker's KV pool holds "
            f"{limits.capacity_tokens} tokens; ask for at most {room}",
            param=field,
            code="kv_pool_exceeded",
        )
    return asked


def _in_client_words(error: RequestError, spec: GenerationSpec) -> RequestError:
    """SamplingParams knows its own names only; say the ones that the client used."""
    param = error.param or ""
    head, dot, rest = param.partition(".")
    name = spec.field_names.get(head, head) + dot + rest
    message = error.message
    if message.startswith(param):
        message = name + message[len(param) :]
    return RequestError(message, param=name or None, status=error.status, code=error.code)


def _prompt_logprobs_start(prompt: PromptSpec, role: Role, pairing: Pairing | None) -> int | None:
    """Decode never computes the prompt, so it has no logprobs for it: prefill's answer does."""
    start = prompt.prompt_logprobs_start
    if start is None or (role == "decode" and pairing is not None):
        return None
    if start > len(prompt.token_ids):
        raise RequestError(
            f"logprob_start_len is {start}; the prompt has {len(prompt.token_ids)} tokens",
            param="logprob_start_len",
        )
    return None if start == len(prompt.token_ids) else start


def _request_ids(spec: GenerationSpec, base_id: str, num_samples: int) -> list[str]:
    rid = spec.rid
    if isinstance(rid, list):
        if len(rid) != len(spec.prompts):
            raise RequestError(
                f"rid has {len(rid)} entries for {len(spec.prompts)} prompts; give one for each",
                param="rid",
            )
        ids = [
            own if prompt.n == 1 else f"{own}-{choice}"
            for own, prompt in zip(rid, spec.prompts, strict=True)
            for choice in range(prompt.n)
        ]
    elif num_samples == 1:
        ids = [base_id]
    else:
        ids = [f"{base_id}-{index}" for index in range(num_samples)]
    for request_id in ids:
        check_request_id(request_id)
    if len(set(ids)) != len(ids):
        raise RequestError("rid has the same id twice; ids must differ", param="rid")
    return ids


def check_request_id(request_id: str) -> None:
    if not request_id or len(request_id) > MAX_RID_CHARS or not request_id.isprintable():
        raise RequestError(
            f"rid has {len(request_id)} characters; use 1 to {MAX_RID_CHARS} printable ones",
            param="rid",
        )


def _pairings(spec: GenerationSpec, limits: Limits, num_samples: int) -> list[Pairing | None]:
    role, is_paired = limits.role, spec.bootstrap.bootstrap_room is not None
    if role == "null" or (limits.takes_whole_requests and not is_paired):
        return [None] * num_samples
    prompt_of_sample = [index for index, prompt in enumerate(spec.prompts) for _ in range(prompt.n)]
    spread = _Spread(prompt_of_sample, len(spec.prompts))
    return [_pairing(spec.bootstrap, role, spread, index) for index in range(num_samples)]


@dataclass(frozen=True)
class _Spread:
    """Picks a sample's entry of a field given once, per prompt, or per sample."""

    prompt_of_sample: list[int]
    num_prompts: int

    def number(self, value: PerPrompt, index: int, param: str) -> int | None:
        return value[self._at(len(value), index, param)] if isinstance(value, list) else value

    def text(self, value: PerPromptText, index: int, param: str) -> str | None:
        return value[self._at(len(value), index, param)] if isinstance(value, list) else value

    def _at(self, length: int, index: int, param: str) -> int:
        num_samples = len(self.prompt_of_sample)
        if length == num_samples:
            return index
        if length == self.num_prompts:
            return self.prompt_of_sample[index]
        raise RequestError(
            f"{param} has {length} entries for {self.num_prompts} prompts and {num_samples} "
            "samples; give one for each prompt or each sample",
            param=param,
        )


def _pairing(fields: BootstrapFields, role: Role, spread: _Spread, index: int) -> Pairing | None:
    host = spread.text(fields.bootstrap_host, index, "bootstrap_host")
    if host == FAKE_BOOTSTRAP_HOST:
        return None
    room = spread.number(fields.bootstrap_room, index, "bootstrap_room")
    if room is None:
        raise _missing("bootstrap_room", role)
    if not 0 <= room <= MAX_BOOTSTRAP_ROOM:
        raise RequestError(
            f"bootstrap_room is {room}; it must be from 0 to {MAX_BOOTSTRAP_ROOM}",
            param="bootstrap_room",
        )
    if not host:
        if role == "decode":
            raise _missing("bootstrap_host", role)
        host = ""
    elif not _HOST.fullmatch(host):
        raise RequestError(
            f"bootstrap_host is {host[:80]!r}; it must be a host name or an IP address",
            param="bootstrap_host",
        )
    port = spread.number(fields.bootstrap_port, index, "bootstrap_port")
    if port is None:
        port = DEFAULT_BOOTSTRAP_PORT
    if not 1 <= port <= 65535:
        raise RequestError(
            f"bootstrap_port is {port}; it must be from 1 to 65535", param="bootstrap_port"
        )
    return Pairing(host=host, port=port, room=room)


def _missing(param: str, role: Role) -> RequestError:
    return RequestError(
        f"{param} is missing; a {role} worker only takes requests that a router paired: send this "
        "one to the router, or give bootstrap_host, bootstrap_port and bootstrap_room",
        param=param,
        code="missing_bootstrap",
    )
