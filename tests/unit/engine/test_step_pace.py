"""Prompts beside running streams come in pieces that fit a step's time, and change no token."""

import pytest

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest, FinishReason
from baton.core.sampling import SamplingParams
from baton.engine.scheduler import Scheduler
from baton.engine.sequence import Sequence
from baton.engine.step_pace import StepPace
from baton.kvcache.block_pool import BlockPool
from baton.testing.handover_world import MODEL, Side

BLOCK_SIZE = 4


def test_before_the_first_measurement_nothing_is_known() -> None:
    assert StepPace().rows_within(0.08) is None


def test_as_many_rows_as_took_that_long() -> None:
    pace = StepPace()
    pace.note(512, 0.256)
    assert pace.rows_within(0.08) == 160


@pytest.mark.parametrize("fixed_s", [0.0, 0.01, 0.02])
@pytest.mark.parametrize("seconds_per_row", [2e-4, 5e-4, 2e-3])
@pytest.mark.parametrize("first", [16, 2048])
def test_settles_where_a_step_takes_the_target(
    fixed_s: float, seconds_per_row: float, first: int
) -> None:
    pace, num_rows = StepPace(), first
    for _ in range(20):
        pace.note(num_rows, fixed_s + num_rows * seconds_per_row)
        rows = pace.rows_within(0.08)
        assert rows is not None
        num_rows = rows
    assert fixed_s + num_rows * seconds_per_row == pytest.approx(0.08, rel=0.1)


def _sequence(name: str, num_tokens: int, num_new: int = 30) -> EngineRequest:
    """The name's length is the first token, so that none has the beginning of another."""
    return EngineRequest(
        request_id=name,
        prompt_token_ids=[len(name), *range(1, num_tokens)],
        sampling=SamplingParams(max_new_tokens=num_new, temperature=0.0),
    )


def _expected(prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(MODEL.next_token(tokens))
    return tokens[len(prompt) :]


def test_a_prompt_is_cut_only_while_streams_run_and_its_tokens_stay_the_same() -> None:
    core = Side(num_blocks=40, block_size=BLOCK_SIZE, chunk=32, clock=FakeClock()).core
    core.submit(_sequence("a stream", 32))
    core.step(max_rows=8)
    assert core.counters.prompt_tokens == 32, "nobody waits beside it"
    core.submit(_sequence("prompt", 28, num_new=3))
    for wanted in (10, 10, 8):  # one of eleven rows is the stream's
        before = core.counters.prompt_tokens
        core.step(max_rows=11)
        assert core.counters.prompt_tokens - before == wanted
    while core.has_work:
        core.step()
    outputs = [each for each in core.take_outputs() if each.request_id == "prompt"]
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == _expected([len("prompt"), *range(1, 28)], 3)


def test_a_prompt_goes_on_by_some_tokens_however_late_a_step_is() -> None:
    side = Side(num_blocks=40, block_size=BLOCK_SIZE, chunk=32, clock=FakeClock())
    side.core.submit(_sequence("a stream", 8))
    side.core.step()
    side.core.submit(_sequence("prompt", 12, num_new=1))
    before = side.core.counters.prompt_tokens
    side.core.step(max_rows=0)
    assert side.core.counters.prompt_tokens - before == 8


def test_steps_tell_the_pace_only_when_they_compute_prompts() -> None:
    clock = FakeClock()
    side = Side(num_blocks=40, block_size=BLOCK_SIZE, chunk=32, clock=clock)
    pace = _CountingPace()
    side.core.submit(_sequence("r", 8, num_new=3))
    while side.core.has_work:
        side.core.step(pace)
    assert pace.noted == [8]
    (last,) = [output.finish for output in side.core.take_outputs() if output.finish]
    assert last.reason is FinishReason.LENGTH


class _CountingPace(StepPace):
    def __init__(self) -> None:
        super().__init__()
        self.noted: list[int] = []

    def note(self, num_rows: int, seconds: float) -> None:
        self.noted.append(num_rows)
        super().note(num_rows, seconds)


def _scheduler(num_blocks: int) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks),
        block_size=BLOCK_SIZE,
        max_running_requests=4,
        max_tokens_per_step=32,
    )


def test_a_hand_over_passes_prompts_that_wait_but_takes_none_of_their_room() -> None:
    scheduler = _scheduler(num_blocks=10)
    scheduler.add(Sequence(_sequence("waits", 16), 0, 0.0))
    assert scheduler.has_room_for(6, 0)
    assert not scheduler.has_room_for(7, 0)


def test_waiting_prompts_count_among_those_that_may_run() -> None:
    scheduler = _scheduler(num_blocks=40)
    for number in range(3):
        scheduler.add(Sequence(_sequence(str(number), 4), number, 0.0))
    assert scheduler.has_room_for(1, 0)
    assert not scheduler.has_room_for(1, 1)


def test_a_hand_over_waits_for_those_that_were_preempted() -> None:
    scheduler = _scheduler(num_blocks=40)
    sequence = Sequence(_sequence("preempted", 4), 0, 0.0)
    sequence.token_ids.append(1)
    scheduler.add(sequence)
    assert not scheduler.has_room_for(1, 0)
