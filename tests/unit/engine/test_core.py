"""The engine as a whole, on a model whose text depends on every KV cell.

Whatever the batch, the chunking, the cache and the preemptions: the tokens are those of the model
run alone, every request ends exactly once, and no block stays in use.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest, Finish, FinishReason
from baton.core.sampling import SamplingParams
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore
from baton.engine.runner import ModelRunner
from baton.kvcache.block_pool import BlockPool
from baton.kvcache.storage import SharedSegment
from baton.messages.engine import TokenOutput
from baton.testing.hash_model import HashModel

MODEL = HashModel()
BLOCK_SIZE = 4


def make_core(num_blocks: int = 64, **options: int | bool) -> EngineCore:
    config = dataclasses.replace(EngineConfig(page_size=BLOCK_SIZE), **options)  # type: ignore[arg-type]
    layout = MODEL.kv_layout(BLOCK_SIZE)
    segment = SharedSegment(num_blocks * layout.block_bytes)
    runner = ModelRunner(MODEL, MODEL.kv_view(segment.view(), layout, num_blocks), BLOCK_SIZE)
    return EngineCore(
        config,
        runner,
        BlockPool(num_blocks, enable_prefix_cache=not config.disable_radix_cache),
        context_length=200,
        vocab_size=MODEL.vocab_size,
        clock=FakeClock(),
    )


def request(name: str, prompt: list[int], num_new: int = 5, **fields: object) -> EngineRequest:
    sampling = SamplingParams(max_new_tokens=num_new, temperature=0.0)
    return EngineRequest(
        **{
            "request_id": name,
            "prompt_token_ids": prompt,
            "sampling": sampling,
            **fields,
        }  # type: ignore[arg-type]
    )


def expected(prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(MODEL.next_token(tokens))
    return tokens[len(prompt) :]


def run_dry(
    core: EngineCore, each_step: Callable[[], None] = lambda: None
) -> dict[str, list[TokenOutput]]:
    outputs: dict[str, list[TokenOutput]] = {}
    for _ in range(10_000):
        for output in core.take_outputs():
            outputs.setdefault(output.request_id, []).append(output)
        core.pool.check_invariants()
        if not core.has_work:
            break
        core.step()
        each_step()
    assert not core.has_work, "the engine made no progress"
    return outputs


def tokens_of(outputs: list[TokenOutput]) -> list[int]:
    assert [output.finish is not None for output in outputs].count(True) == 1
    assert outputs[-1].finish is not None
    return [token for output in outputs for token in output.token_ids]


@given(
    prompts=st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=60), min_size=1, max_size=8),
    num_new=st.integers(1, 12),
    chunk=st.integers(1, 40),
    max_running=st.integers(1, 8),
    num_blocks=st.integers(18, 60),
    disable_cache=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_text_does_not_depend_on_batching_chunks_cache_or_preemption(
    prompts: list[list[int]],
    num_new: int,
    chunk: int,
    max_running: int,
    num_blocks: int,
    disable_cache: bool,
) -> None:
    core = make_core(
        num_blocks,
        chunked_prefill_size=chunk,
        max_running_requests=max_running,
        disable_radix_cache=disable_cache,
    )
    # Every second prompt begins like the first, so that there are prefixes to share.
    prompts = [p if i % 2 == 0 else [*prompts[0][:20], *p][:60] for i, p in enumerate(prompts)]
    for index, prompt in enumerate(prompts):
        core.submit(request(f"r{index}", prompt, num_new))
    outputs = run_dry(core)
    for index, prompt in enumerate(prompts):
        assert tokens_of(outputs[f"r{index}"]) == expected(prompt, num_new)
    assert core.pool.num_in_use == 0


@pytest.mark.parametrize(
    "choice",
    [
        {"temperature": 0.0},
        {"temperature": 4.0, "seed": 5},
        {"temperature": 4.0, "seed": 5, "frequency_penalty": 2.0, "presence_penalty": 1.0},
        {"temperature": 3.0, "seed": 9, "repetition_penalty": 1.5},
        {"temperature": 6.0, "seed": 1, "stop_token_ids": tuple(range(60)), "min_new_tokens": 6},
    ],
)
def test_another_engine_goes_on_with_what_one_has_begun(choice: dict[str, Any]) -> None:
    """Wherever it broke off, the rest is the rest of the undisturbed run, and so is its end."""
    prompt, sampling = [3, 1, 4, 1, 5], SamplingParams(max_new_tokens=12, **choice)
    whole = make_core()
    whole.submit(request("r", prompt, sampling=sampling))
    undisturbed = run_dry(whole)["r"]
    tokens = tokens_of(undisturbed)
    assert len(tokens) > 4
    for num_made in range(len(tokens)):
        other = make_core(chunked_prefill_size=4)
        made = tokens[:num_made]
        other.submit(request("r", [*prompt, *made], sampling=sampling, num_resumed_tokens=num_made))
        rest = run_dry(other)["r"]
        assert tokens_of(rest) == tokens[num_made:]
        assert rest[-1].finish == undisturbed[-1].finish


@pytest.mark.parametrize("num_blocks", [1, 2, 9])
def test_warming_up_leaves_nothing_behind(num_blocks: int) -> None:
    core = make_core(num_blocks=num_blocks)
    core._runner.warm_up(num_blocks=core.pool.num_blocks, context_length=200)
    core.submit(request("r", [3, 1], 2))
    assert tokens_of(run_dry(core)["r"]) == expected([3, 1], 2)
    assert core.pool.num_cached == core.pool.num_in_use == 0


def test_a_full_pool_preempts_and_everyone_finishes() -> None:
    core = make_core(num_blocks=10)
    for index in range(4):
        core.submit(request(f"r{index}", [index] * 7, 20))
    outputs = run_dry(core)
    assert core.counters.preemptions > 0
    for index in range(4):
        assert tokens_of(outputs[f"r{index}"]) == expected([index] * 7, 20)
    assert core.pool.num_in_use == 0


def test_a_repeated_prompt_is_read_from_the_cache() -> None:
    core = make_core()
    prompt = list(range(30))
    core.submit(request("first", prompt))
    run_dry(core)
    core.submit(request("second", prompt))
    outputs = run_dry(core)["second"]
    assert outputs[0].num_cached_tokens == 28
    assert tokens_of(outputs) == expected(prompt, 5)


def test_better_priority_is_admitted_first() -> None:
    core = make_core(max_running_requests=1)
    for name, priority in (("late", 5), ("soon", -1), ("normal", 0)):
        core.submit(request(name, [1, 2, 3], 2, priority=priority))
    order: list[str] = []
    while core.has_work:
        core.step()
        order += [o.request_id for o in core.take_outputs() if o.finish is not None]
    assert order == ["soon", "normal", "late"]


def test_prompt_logprobs_cover_the_prompt_even_when_it_is_cached_and_chunked() -> None:
    core = make_core(chunked_prefill_size=5)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
    core.submit(request("warm", prompt))
    run_dry(core)
    sampling = SamplingParams(max_new_tokens=1, temperature=0.0, num_top_logprobs=2)
    core.submit(request("asked", prompt, sampling=sampling, prompt_logprobs_start=0))
    output = run_dry(core)["asked"][0]
    assert output.prompt_logprobs is not None
    assert [entry.token_id for entry in output.prompt_logprobs] == prompt
    assert output.prompt_logprobs[0].logprob is None
    best = [entry.top[0][0] for entry in output.prompt_logprobs[1:]]
    assert best == [MODEL.next_token(prompt[:end]) for end in range(1, len(prompt))]


def test_prompt_logprobs_from_a_later_start_reuse_what_lies_before() -> None:
    core = make_core()
    prompt = list(range(20))
    core.submit(request("warm", prompt))
    run_dry(core)
    sampling = SamplingParams(max_new_tokens=1, temperature=0.0, num_top_logprobs=1)
    core.submit(request("asked", prompt, sampling=sampling, prompt_logprobs_start=14))
    output = run_dry(core)["asked"][0]
    assert output.num_cached_tokens == 12
    assert output.prompt_logprobs is not None
    assert [entry.token_id for entry in output.prompt_logprobs] == prompt[14:]


def test_prompt_logprobs_come_once_after_a_preemption_amid_the_prompt() -> None:
    core = make_core(num_blocks=12, chunked_prefill_size=3)
    core.submit(request("grows", [1, 2, 3], 40))
    for _ in range(2):
        core.step()
    prompt = list(range(30))
    core.submit(request("asked", prompt, 1, prompt_logprobs_start=0))
    outputs = run_dry(core)["asked"]
    assert core.counters.preemptions > 0
    assert outputs[0].prompt_logprobs is not None
    assert [entry.token_id for entry in outputs[0].prompt_logprobs] == prompt


def test_a_step_tells_whether_anything_could_run() -> None:
    core = make_core(num_blocks=4)
    core.pool.allocate("somebody else", 4)
    core.submit(request("r", [1, 2, 3], 1))
    assert not core.step()
    core.pool.release("somebody else")
    assert core.step()


def test_stop_tokens_end_a_sequence() -> None:
    core = make_core()
    second = expected([5, 6], 2)[1]
    sampling = SamplingParams(max_new_tokens=9, temperature=0.0, stop_token_ids=(second,))
    core.submit(request("r", [5, 6], sampling=sampling))
    outputs = run_dry(core)["r"]
    assert tokens_of(outputs) == expected([5, 6], 2)
    assert outputs[-1].finish == Finish(reason=FinishReason.STOP, matched_token=second)


@pytest.mark.parametrize("after_steps", [0, 1, 3])
def test_an_ended_request_gives_its_blocks_back(after_steps: int) -> None:
    core = make_core(chunked_prefill_size=8)
    core.submit(request("gone", list(range(20)), 30))
    core.submit(request("stays", [1, 2, 3], 4))
    for _ in range(after_steps):
        core.step()
    sequence = core.find("gone")
    assert sequence is not None
    core.end(sequence, Finish(reason=FinishReason.ABORT))
    outputs = run_dry(core)
    assert outputs["gone"][-1].finish == Finish(reason=FinishReason.ABORT)
    assert tokens_of(outputs["stays"]) == expected([1, 2, 3], 4)
    assert core.pool.num_in_use == 0


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (request("r", []), "no tokens"),
        (request("r", [97]), "outside 0 to 96"),
        (request("r", [1] * 190, 20), "context length of 200"),
        (request("r", [1] * 60, 10), "KV pool holds 64"),
        (request("r", [1], 0), "max_new_tokens"),
    ],
)
def test_a_request_that_cannot_run_is_refused_once(bad: EngineRequest, named: str) -> None:
    core = make_core(num_blocks=16)
    core.submit(bad)
    (output,) = core.take_outputs()
    assert output.finish is not None
    assert output.finish.reason is FinishReason.ERROR
    assert output.finish.status == 400
    assert named in output.finish.message
    assert not core.has_work


def test_more_prompt_logprobs_than_one_answer_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("baton.engine.core.MAX_PROMPT_LOGPROBS", 30)
    sampling = SamplingParams(max_new_tokens=1, num_top_logprobs=2)
    core = make_core()
    core.submit(request("fits", [1] * 12, sampling=sampling, prompt_logprobs_start=2))
    core.submit(request("too many", [1] * 12, sampling=sampling, prompt_logprobs_start=1))
    (refused,) = core.take_outputs()
    assert refused.request_id == "too many"
    assert refused.finish is not None
    assert "33 logprobs" in refused.finish.message


def test_a_name_in_use_is_refused() -> None:
    core = make_core()
    core.submit(request("twin", [1, 2], 3))
    core.submit(request("twin", [3, 4], 3))
    outputs = run_dry(core)["twin"]
    finishes = [output.finish.reason for output in outputs if output.finish is not None]
    assert finishes == [FinishReason.ERROR, FinishReason.LENGTH]
