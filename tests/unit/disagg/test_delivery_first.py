"""The last writes of a prompt settle before the next step, so that decode hears of them now and not
a step later; but no step waits for them for long."""

from collections import deque
from typing import cast

import pytest

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.disagg.loop import EngineLoop
from baton.disagg.role import UnifiedRole
from baton.engine.core import EngineCore
from baton.ipc.engine_socket import EngineSocket
from baton.messages.engine import FromEngine, Submit, ToEngine
from baton.testing.handover_world import Side

STEP_S = 0.02


class _WritingRole(UnifiedRole):
    """Writes are under way until they settle, which is seen by a tick."""

    is_delivering = False

    def __init__(self, core: EngineCore):
        super().__init__(core)
        self.settled = False

    def tick(self, now_s: float) -> None:
        self.is_delivering = self.is_delivering and not self.settled


class _Socket:
    def __init__(self) -> None:
        self.messages: list[ToEngine] = []

    def take(self) -> list[ToEngine]:
        taken, self.messages = self.messages, []
        return taken

    def send(self, message: FromEngine) -> None:
        pass


class World:
    """Each step takes STEP_S."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_s: float = STEP_S):
        self.clock, self.api = FakeClock(), _Socket()
        self.side = Side(num_blocks=16, block_size=4, chunk=8, clock=self.clock)
        self.role = _WritingRole(self.side.core)
        step = self.side.core.step

        def timed_step() -> bool:
            self.clock.advance(step_s)
            return step()

        monkeypatch.setattr(self.side.core, "step", timed_step)
        socket = cast(EngineSocket, self.api)
        self.loop = EngineLoop(self.side.core, self.role, socket, deque(), [], self.clock)
        request = EngineRequest(
            request_id="r", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_new_tokens=9)
        )
        self.api.messages.append(Submit(request=request))
        self.loop.turn()
        assert self.num_steps == 1
        self.role.is_delivering = True

    @property
    def num_steps(self) -> int:
        return self.side.core.counters.steps


def test_the_next_step_waits_for_writes_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.loop.turn()
    assert world.num_steps == 1
    world.role.settled = True
    world.loop.turn()
    assert world.num_steps == 2


def test_it_waits_no_longer_than_a_tenth_of_the_step_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.clock.advance(0.09 * STEP_S)
    world.loop.turn()
    assert world.num_steps == 1
    world.clock.advance(0.02 * STEP_S)
    world.loop.turn()
    assert world.num_steps == 2


def test_it_never_waits_longer_than_five_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, step_s=0.5)
    world.clock.advance(0.0051)
    world.loop.turn()
    assert world.num_steps == 2
