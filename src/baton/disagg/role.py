"""What the engine process asks of its role: unified, prefill or decode.

A role decides what happens to a request before and after the scheduler has it. All calls come from
the engine's main thread.
"""

from typing import Protocol

from baton.core.request import EngineRequest, Finish, FinishReason
from baton.engine.core import EngineCore
from baton.ipc.peer_link import PeerEvent
from baton.messages.engine import HandoverStats


class EngineRole(Protocol):
    @property
    def num_handovers(self) -> int:
        """Requests that are neither waiting nor running but on their way from or to a peer."""
        ...

    @property
    def prompts_are_computed(self) -> bool:
        """Whether a prefill worker has to compute prompts for this one now."""
        ...

    @property
    def is_delivering(self) -> bool:
        """Whether a computed prompt's last writes are under way, and decode waits for them."""
        ...

    def submit(self, request: EngineRequest) -> None: ...

    def abort(self, request_id: str, reason: str) -> None:
        """Unknown ids are ignored."""
        ...

    def on_event(self, event: PeerEvent) -> None: ...

    def handover_stats(self) -> HandoverStats: ...

    def tick(self, now_s: float) -> None:
        """Look at transfers, queues and deadlines. Called on every turn of the engine's loop."""
        ...


class UnifiedRole:
    """Every request runs here from beginning to end."""

    num_handovers = 0
    prompts_are_computed = False
    is_delivering = False

    def __init__(self, core: EngineCore):
        self._core = core

    def submit(self, request: EngineRequest) -> None:
        self._core.submit(request)

    def abort(self, request_id: str, reason: str) -> None:
        sequence = self._core.find(request_id)
        if sequence is not None:
            self._core.end(sequence, aborted(reason))

    def on_event(self, event: PeerEvent) -> None:
        pass  # a unified worker has no peers; whoever connects is not answered

    def handover_stats(self) -> HandoverStats:
        return HandoverStats()

    def tick(self, now_s: float) -> None:
        pass


def aborted(reason: str) -> Finish:
    return Finish(reason=FinishReason.ABORT, message=reason, status=499)


def failed(message: str, status: int) -> Finish:
    return Finish(reason=FinishReason.ERROR, message=message, status=status)
