"""Whatever JSON arrives, it becomes samples or a RequestError: never another exception."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.api.admission import Limits, admit
from baton.api.bodies import BodyReader
from baton.api.convert_openai import chat_spec, completion_spec
from baton.api.convert_sglang import generate_spec
from baton.api.errors import error_response
from baton.api.schemas_openai import ChatRequest, CompletionRequest
from baton.api.schemas_sglang import GenerateRequest, SglangSampling
from baton.api.spec import GenerationSpec
from baton.api.text import Vocabulary
from baton.core.errors import RequestError
from baton.testing.byte_tokenizer import EOS_ID, VOCAB_SIZE, make_byte_tokenizer

VOCABULARY = Vocabulary(make_byte_tokenizer(), VOCAB_SIZE, (EOS_ID,))
CHAT = BodyReader(ChatRequest)
COMPLETION = BodyReader(CompletionRequest)
GENERATE = BodyReader(GenerateRequest)

numbers = (
    st.integers(-3, 300) | st.sampled_from([2**31, 2**63 - 1, 2**63, 10**30]) | st.floats(-3, 3)
)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "x"])},
        optional={"content": st.text(max_size=9) | values, "tool_calls": values, "name": values},
    ),
    max_size=3,
)


def names_of(*schemas: type[msgspec.Struct]) -> list[str]:
    return sorted({name for schema in schemas for name in schema.__struct_fields__})


def bodies(names: list[str], base: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[bytes]:
    extras = st.dictionaries(st.sampled_from(names), values, max_size=5)
    return st.builds(
        lambda given, extra: msgspec.json.encode({**given, **extra}),
        st.fixed_dictionaries(base),
        extras,
    )


def check(read: Any, role: Any) -> None:
    limits = Limits(
        role=role,
        context_length=200,
        capacity_tokens=160,
        vocab_size=VOCAB_SIZE,
        max_choices=8,
        max_samples=16,
    )
    try:
        spec: GenerationSpec = read()
        base_id = spec.rid if isinstance(spec.rid, str) else "base"
        samples = admit(spec, limits, base_id, lambda: 0)
    except RequestError as refusal:
        check_refusal(refusal)
    else:
        assert samples
        for sample in samples:
            sample.request.sampling.validate(VOCAB_SIZE)
            num_tokens = len(sample.request.prompt_token_ids)
            assert num_tokens + sample.request.sampling.max_new_tokens <= 160
            assert (sample.request.handover is None) == (sample.pairing is None)


def check_refusal(refusal: RequestError) -> None:
    assert 400 <= refusal.status < 500
    assert error_response(refusal).status == refusal.status


roles = st.sampled_from(["null", "prefill", "decode"])
paired = {"bootstrap_room": st.integers(0, 9), "bootstrap_host": st.just("h")}


@settings(max_examples=300, deadline=None)
@given(bodies(names_of(ChatRequest), {"messages": messages, **paired}), roles)
def test_chat(body: bytes, role: str) -> None:
    check(lambda: chat_spec(CHAT.decode(body), VOCABULARY), role)


@settings(max_examples=300, deadline=None)
@given(bodies(names_of(CompletionRequest), {"prompt": st.text(max_size=9), **paired}), roles)
def test_completion(body: bytes, role: str) -> None:
    check(lambda: completion_spec(COMPLETION.decode(body), VOCABULARY, 16), role)


sampling = st.dictionaries(st.sampled_from(names_of(SglangSampling)), scalars, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    bodies(
        names_of(GenerateRequest),
        {"text": st.text(max_size=9), "sampling_params": sampling, **paired},
    ),
    roles,
)
def test_generate(body: bytes, role: str) -> None:
    check(lambda: generate_spec(GENERATE.decode(body), VOCABULARY, 128), role)
