"""Decode leaves cores to prefill while prompts are computed for it, and only then."""

from collections import deque
from collections.abc import Callable
from typing import cast

import pytest

from baton.core.clock import FakeClock
from baton.core.errors import ConfigError
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.disagg.core_sharing import CoreSharing, SharingRules
from baton.disagg.loop import EngineLoop
from baton.disagg.role import UnifiedRole
from baton.engine.core import EngineCore
from baton.engine.step_pace import StepPace, StepTarget
from baton.ipc.engine_socket import EngineSocket
from baton.messages.engine import FromEngine, Shutdown, Submit, ToEngine
from baton.testing.handover_world import Side

HALF = SharingRules(num_threads=1, share=0.5, longest_rest_s=0.02)


def test_a_step_is_followed_by_a_rest_as_long_as_itself_at_half_the_time() -> None:
    sharing = CoreSharing(HALF, 2, None)
    sharing.end_step(began_s=1.0, now_s=1.01)
    assert sharing.wait_s(1.01, True) == pytest.approx(0.01)
    assert sharing.wait_s(1.015, True) == pytest.approx(0.005)
    assert sharing.wait_s(1.03, True) == 0.0


def test_a_fifth_of_the_time_means_a_rest_of_four_steps() -> None:
    sharing = CoreSharing(SharingRules(share=0.2, longest_rest_s=1.0), 2, None)
    sharing.end_step(began_s=0.0, now_s=0.01)
    assert sharing.wait_s(0.01, True) == pytest.approx(0.04)


def test_no_rest_is_longer_than_the_longest() -> None:
    sharing = CoreSharing(HALF, 2, None)
    sharing.end_step(began_s=1.0, now_s=1.5)
    assert sharing.wait_s(1.5, True) == pytest.approx(0.02)


def test_the_rest_ends_when_no_prompt_is_computed_any_more() -> None:
    sharing = CoreSharing(HALF, 2, None)
    sharing.end_step(began_s=1.0, now_s=1.01)
    assert sharing.wait_s(1.01, False) == 0.0


def test_by_default_decode_never_rests_and_keeps_its_threads() -> None:
    said: list[int] = []
    sharing = CoreSharing(SharingRules(), 2, said.append)
    sharing.begin_step(True)
    sharing.end_step(began_s=1.0, now_s=1.5)
    assert sharing.wait_s(1.5, True) == 0.0
    assert said == []


def test_the_number_of_threads_changes_with_what_is_computed_and_is_said_once() -> None:
    said: list[int] = []
    sharing = CoreSharing(HALF, 2, said.append)
    for prompts_are_computed in (False, True, True, False, False, True):
        sharing.begin_step(prompts_are_computed)
    assert said == [1, 2, 1]


def test_more_threads_than_there_are_is_all_of_them() -> None:
    said: list[int] = []
    CoreSharing(SharingRules(num_threads=8), 2, said.append).begin_step(True)
    assert said == []


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: SharingRules(num_threads=0), "--shared-threads 0"),
        (lambda: SharingRules(share=0.0), "--shared-time 0"),
        (lambda: SharingRules(share=1.5), "--shared-time 1.5"),
        (lambda: SharingRules(share=float("nan")), "--shared-time nan"),
        (lambda: SharingRules(longest_rest_s=-0.001), "--shared-rest-ms -1"),
    ],
)
def test_a_rule_that_makes_no_sense_names_its_flag(
    make: Callable[[], SharingRules], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        make()


class _BusyRole(UnifiedRole):
    """Always has prompts computed elsewhere."""

    prompts_are_computed = True


class _ScriptedSocket:
    """Waiting takes as long as it may."""

    def __init__(self, clock: FakeClock, script: list[list[ToEngine]]):
        self._clock = clock
        self._script = deque(script)
        self.waits_s: list[float] = []

    def wait(self, timeout_s: float) -> None:
        self.waits_s.append(timeout_s)
        self._clock.advance(timeout_s)

    def take(self) -> list[ToEngine]:
        return self._script.popleft() if self._script else [Shutdown()]

    def send(self, message: FromEngine) -> None:
        pass


class _TimedSharing(CoreSharing):
    """Steps take 10 ms."""

    def end_step(self, began_s: float, now_s: float) -> None:
        super().end_step(began_s - 0.01, now_s)


def test_the_loop_sleeps_through_the_rest_and_then_steps() -> None:
    clock = FakeClock()
    side = Side(num_blocks=4, block_size=4, chunk=8, clock=clock)
    request = EngineRequest(
        request_id="r", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_new_tokens=3)
    )
    api = _ScriptedSocket(clock, [[Submit(request=request)], [], [], []])
    sharing = _TimedSharing(HALF, 1, None)
    role = _BusyRole(side.core)
    socket = cast(EngineSocket, api)
    loop = EngineLoop(side.core, role, socket, deque(), [], clock, sharing=sharing)
    loop.run()
    assert side.core.counters.steps == 3
    assert api.waits_s[1:3] == pytest.approx([0.01, 0.01])


def test_a_message_in_the_rest_is_taken_and_starts_no_step() -> None:
    clock = FakeClock()
    side = Side(num_blocks=4, block_size=4, chunk=8, clock=clock)
    request = EngineRequest(
        request_id="r", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_new_tokens=3)
    )
    api = _ScriptedSocket(clock, [[Submit(request=request)], []])
    sharing = _TimedSharing(HALF, 1, None)
    role = _BusyRole(side.core)
    loop = EngineLoop(side.core, role, cast(EngineSocket, api), deque(), [], clock, sharing=sharing)
    loop.turn()
    assert side.core.counters.steps == 1
    loop.turn()
    assert side.core.counters.steps == 1
    clock.advance(0.01)
    loop.turn()
    assert side.core.counters.steps == 2


def test_rests_count_as_time_of_a_step() -> None:
    clock = FakeClock()
    for role_type, num_rows in ((UnifiedRole, 8), (_BusyRole, 4)):
        side = Side(num_blocks=4, block_size=4, chunk=8, clock=clock)
        asked = _AskedCore(side.core)
        loop = EngineLoop(
            cast(EngineCore, asked),
            role_type(side.core),
            cast(EngineSocket, _ScriptedSocket(clock, [])),
            *(deque(), [], clock),
            sharing=CoreSharing(HALF, 1, None),
            step_target=StepTarget(0.08, 0.08, 8),
        )
        request = EngineRequest(
            request_id="r", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_new_tokens=2)
        )
        side.core.submit(request)
        loop.turn()
        loop.turn()
        assert asked.max_rows == [None, num_rows]


class _AskedCore:
    """A hundred rows take a second, it says. It notes what steps may have; everything else is the
    real one's."""

    def __init__(self, core: EngineCore):
        self._core = core
        self.max_rows: list[int | None] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._core, name)

    def step(self, pace: StepPace, max_rows: int | None) -> bool:
        self.max_rows.append(max_rows)
        pace.note(100, 1.0)
        return self._core.step(None, max_rows)
