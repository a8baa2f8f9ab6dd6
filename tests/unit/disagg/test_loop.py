"""The engine's loop sleeps when nothing can run, and only then."""

from collections import deque
from typing import cast

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.disagg.loop import EngineLoop
from baton.disagg.role import UnifiedRole
from baton.ipc.engine_socket import EngineSocket
from baton.messages.engine import FromEngine, Shutdown, Submit, ToEngine
from baton.testing.handover_world import Side


class ScriptedSocket:
    """An api process that says one thing per turn, and notes how long the engine would wait."""

    def __init__(self, script: list[list[ToEngine]]):
        self._script = deque(script)
        self.waits_s: list[float] = []

    def wait(self, timeout_s: float) -> None:
        self.waits_s.append(timeout_s)

    def take(self) -> list[ToEngine]:
        return self._script.popleft() if self._script else [Shutdown()]

    def send(self, message: FromEngine) -> None:
        pass


def test_a_sequence_that_waits_for_room_does_not_make_the_loop_spin() -> None:
    side = Side(num_blocks=4, block_size=4, chunk=8, clock=FakeClock())
    side.core.pool.allocate("a hand-over", 4)
    request = EngineRequest(
        request_id="r", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_new_tokens=2)
    )
    api = ScriptedSocket([[Submit(request=request)], [], []])
    loop = EngineLoop(
        side.core, UnifiedRole(side.core), cast(EngineSocket, api), deque(), [], FakeClock()
    )
    loop.run()
    assert all(wait_s > 0 for wait_s in api.waits_s)
    side.core.pool.release("a hand-over")


def test_the_loop_does_not_wait_between_steps() -> None:
    side = Side(num_blocks=4, block_size=4, chunk=8, clock=FakeClock())
    request = EngineRequest(
        request_id="r", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_new_tokens=3)
    )
    api = ScriptedSocket([[Submit(request=request)], [], [], []])
    loop = EngineLoop(
        side.core, UnifiedRole(side.core), cast(EngineSocket, api), deque(), [], FakeClock()
    )
    loop.run()
    assert [wait_s > 0 for wait_s in api.waits_s] == [True, False, False, True, True]
