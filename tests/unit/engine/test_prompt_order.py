"""In which order prompts are read: first come, first served, or short ones before long ones."""

import msgspec
import pytest

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.disagg.role import UnifiedRole
from baton.engine.sequence import Sequence
from baton.engine.step_pace import StepPace, StepTarget
from baton.testing.handover_world import MODEL, Side

BLOCK_SIZE = 4


def _side(prompt_slack_ms: float, num_blocks: int = 80) -> Side:
    side = Side(num_blocks, BLOCK_SIZE, 16, FakeClock(), prompt_slack_ms=prompt_slack_ms)
    side.role = UnifiedRole(side.core)
    return side


def _request(name: str, num_tokens: int, first: int, num_new: int = 1) -> EngineRequest:
    """`first` tells it from the others, so that none has the beginning of another."""
    return EngineRequest(
        request_id=name,
        prompt_token_ids=[first, *range(1, num_tokens)],
        sampling=SamplingParams(max_new_tokens=num_new, temperature=0.0),
    )


def _ended_in_order(side: Side) -> list[str]:
    while side.core.has_work:
        side.turn()
    return [each.request_id for each in side.outputs if each.finish is not None]


@pytest.mark.parametrize(
    ("prompt_slack_ms", "expected"), [(0.0, ["long", "short"]), (2.0, ["short", "long"])]
)
def test_a_short_prompt_passes_a_long_one_that_is_being_read(
    prompt_slack_ms: float, expected: list[str]
) -> None:
    side = _side(prompt_slack_ms)
    side.core.submit(_request("long", 64, 1))
    side.turn()
    side.clock.advance(0.01)
    side.core.submit(_request("short", 8, 2))
    assert _ended_in_order(side) == expected


def test_who_has_waited_for_as_long_as_its_length_allows_goes_first() -> None:
    side = _side(prompt_slack_ms=2.0)
    side.core.submit(_request("long", 64, 1))
    side.turn()
    side.clock.advance(0.113)  # 64 - 8 tokens, 2 ms each, and one more
    side.core.submit(_request("short", 8, 2))
    assert _ended_in_order(side) == ["long", "short"]


def test_what_is_cached_does_not_make_a_prompt_long() -> None:
    side = _side(prompt_slack_ms=2.0)
    side.core.submit(_request("earlier", 64, 1))
    _ended_in_order(side)
    side.core.submit(_request("long", 60, 2))
    side.core.submit(_request("short", 48, 3))
    side.core.submit(_request("cached", 64, 1))
    side.outputs.clear()
    assert _ended_in_order(side) == ["cached", "short", "long"]


def test_priorities_stand_above_lengths() -> None:
    side = _side(prompt_slack_ms=2.0)
    request = msgspec.structs.replace(_request("long", 64, 1), priority=-1)
    side.core.submit(_request("short", 8, 2))
    side.core.submit(request)
    assert _ended_in_order(side) == ["long", "short"]


def test_tokens_are_the_same_in_any_order() -> None:
    prompts = {"long": (64, 1), "short": (8, 2), "other": (30, 3)}
    for prompt_slack_ms in (0.0, 2.0):
        side = _side(prompt_slack_ms)
        for name, (num_tokens, first) in prompts.items():
            side.core.submit(_request(name, num_tokens, first, num_new=5))
            side.turn()
        _ended_in_order(side)
        for name, (num_tokens, first) in prompts.items():
            tokens = [first, *range(1, num_tokens)]
            for _ in range(5):
                tokens.append(MODEL.next_token(tokens))
            made = [t for each in side.outputs if each.request_id == name for t in each.token_ids]
            assert made == tokens[num_tokens:]


def test_the_only_prompt_is_known_whether_it_waits_or_is_half_read() -> None:
    side = _side(prompt_slack_ms=0.0)
    scheduler = side.core.scheduler
    assert scheduler.lone_prompt is None
    side.core.submit(_request("first", 40, 1, num_new=9))
    assert scheduler.lone_prompt is side.core.find("first")
    side.turn()
    assert scheduler.lone_prompt is side.core.find("first")
    side.core.submit(_request("second", 40, 2))
    assert scheduler.lone_prompt is None
    while side.core.find("second") is not None:
        side.turn()
    assert scheduler.lone_prompt is None, "a stream is no prompt"


@pytest.mark.parametrize(
    ("num_tokens", "num_cached", "num_streams", "share", "expected"),
    [
        (513, 0, 3, 1.0, 25),
        (513, 0, 3, 0.4, 10),
        (512, 0, 3, 1.0, 70),
        (513, 1, 3, 1.0, 70),
        (513, 0, 2, 1.0, 70),  # too few streams gain by it
        (513, 0, 10, 1.0, 30),  # two of its own for each stream's
        (513, 0, 99, 1.0, 70),
    ],
)
def test_a_long_prompt_that_is_alone_is_read_in_smooth_steps(
    num_tokens: int, num_cached: int, num_streams: int, share: float, expected: int
) -> None:
    pace = StepPace()
    target = StepTarget(usual_s=0.07, smooth_s=0.025, long_tokens=512)
    lone = Sequence(_request("lone", num_tokens, 1), 0)
    lone.num_cached_tokens = num_cached
    assert target.max_rows(pace, lone, num_streams, share) is None, "nothing was measured yet"
    pace.note(1000, 1.0)
    assert target.max_rows(pace, lone, num_streams, share) == expected
    assert target.max_rows(pace, None, num_streams) == 70


def test_a_smooth_step_is_never_longer_than_another() -> None:
    pace = StepPace()
    pace.note(1000, 1.0)
    target = StepTarget(usual_s=0.01, smooth_s=0.025, long_tokens=512)
    assert target.max_rows(pace, Sequence(_request("lone", 513, 1), 0), 3) == 10


def test_who_decodes_is_a_stream_and_who_is_read_is_not() -> None:
    side = _side(prompt_slack_ms=0.0)
    side.core.submit(_request("first", 8, 1, num_new=9))
    side.turn()
    side.core.submit(_request("second", 40, 2))
    side.turn()
    assert side.core.scheduler.num_streams == 1
