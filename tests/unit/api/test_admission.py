"""Ids, seeds and pairing of samples: the same on both legs."""

import dataclasses
from typing import Any

import pytest

from baton.api.admission import Limits, admit
from baton.api.schemas_openai import BootstrapFields
from baton.api.spec import GenerationSpec, PromptSpec, Sample
from baton.core.errors import RequestError
from baton.core.sampling import MAX_SEED, SamplingParams


def limits(role: Any) -> Limits:
    return Limits(
        role=role,
        context_length=100,
        capacity_tokens=1000,
        vocab_size=260,
        max_choices=8,
        max_samples=10,
    )


def prompt(**changes: Any) -> PromptSpec:
    fields: dict[str, Any] = {
        "field": "prompt",
        "token_ids": [1, 2],
        "text": "",
        "sampling": SamplingParams(max_new_tokens=1),
        **changes,
    }
    return PromptSpec(**fields)


def run(spec: GenerationSpec, role: Any = "null", drawn: int = 1000) -> list[Sample]:
    return admit(spec, limits(role), "base", lambda: drawn)


def seeds(samples: list[Sample]) -> list[int]:
    return [sample.request.sampling.seed for sample in samples]


def test_seeds() -> None:
    assert seeds(run(GenerationSpec(prompts=[prompt(n=2), prompt()]))) == [1000, 1001, 1002]
    assert seeds(run(GenerationSpec(prompts=[prompt(n=2, seed=7), prompt(seed=7)]))) == [7, 8, 7]
    assert seeds(run(GenerationSpec(prompts=[prompt(n=2, seed=MAX_SEED)]))) == [MAX_SEED, 0]


def test_a_decode_worker_takes_whole_requests_only_if_it_says_so() -> None:
    whole = GenerationSpec(prompts=[prompt(n=2)])
    with pytest.raises(RequestError, match="bootstrap_room is missing"):
        run(whole, "decode")
    taking = dataclasses.replace(limits("decode"), takes_whole_requests=True)
    samples = admit(whole, taking, "base", lambda: 7)
    assert [sample.pairing for sample in samples] == [None, None]
    assert seeds(samples) == [7, 8]
    paired = BootstrapFields(bootstrap_host="h", bootstrap_room=50)
    spec = GenerationSpec(prompts=[prompt()], bootstrap=paired)
    (sample,) = admit(spec, taking, "base", lambda: 7)
    assert sample.pairing is not None


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_paired_seeds_come_from_the_room_not_from_chance(role: Any) -> None:
    fields = BootstrapFields(bootstrap_host="h", bootstrap_room=50)
    spec = GenerationSpec(prompts=[prompt(n=3)], bootstrap=fields)
    assert seeds(run(spec, role, drawn=1)) == seeds(run(spec, role, drawn=2)) == [50, 51, 52]


def test_rooms_per_prompt_and_per_sample() -> None:
    def rooms(value: Any, *prompts: PromptSpec) -> list[tuple[int, int]]:
        fields = BootstrapFields(bootstrap_host="h", bootstrap_room=value)
        samples = run(GenerationSpec(prompts=list(prompts), bootstrap=fields), "decode")
        return [
            (sample.request.handover.room, sample.request.handover.sample_index)
            for sample in samples
            if sample.request.handover
        ]

    two = (prompt(n=2), prompt(n=1))
    assert rooms(5, *two) == [(5, 0), (5, 1), (5, 2)]
    assert rooms([5, 6], *two) == [(5, 0), (5, 1), (6, 2)]
    assert rooms([5, 6, 7], *two) == [(5, 0), (6, 1), (7, 2)]
    with pytest.raises(RequestError, match="4 entries for 2 prompts and 3 samples"):
        rooms([1, 2, 3, 4], *two)


def test_prefill_makes_one_token_under_the_same_minimum() -> None:
    sampling = SamplingParams(max_new_tokens=1, min_new_tokens=5)
    fields = BootstrapFields(bootstrap_host="h", bootstrap_room=5)
    spec = GenerationSpec(
        prompts=[prompt(sampling=sampling, max_new_tokens=9, stops=("x",))], bootstrap=fields
    )
    (prefill,) = run(spec, "prefill")
    (decode,) = run(spec, "decode")
    assert prefill.request.sampling.max_new_tokens == 1
    assert prefill.request.sampling.min_new_tokens == 1
    assert prefill.stops == ()
    assert decode.request.sampling.max_new_tokens == 9
    assert decode.request.sampling.min_new_tokens == 5


def test_ids() -> None:
    def ids(rid: Any, *prompts: PromptSpec) -> list[str]:
        spec = GenerationSpec(prompts=list(prompts), rid=rid)
        base = rid if isinstance(rid, str) else "base"
        samples = admit(spec, limits("null"), base, lambda: 0)
        return [sample.request.request_id for sample in samples]

    assert ids(None, prompt()) == ["base"]
    assert ids("r", prompt(n=2)) == ["r-0", "r-1"]
    assert ids(["a", "b"], prompt(n=2), prompt()) == ["a-0", "a-1", "b"]


def test_sample_count_is_bounded() -> None:
    with pytest.raises(RequestError, match="16 samples"):
        run(GenerationSpec(prompts=[prompt(n=8), prompt(n=8)]))
    with pytest.raises(RequestError, match="n is 9"):
        run(GenerationSpec(prompts=[prompt(n=9)]))
