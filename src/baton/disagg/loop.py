"""The engine process's one loop: messages in, one step, outputs out.

Everything that decides runs on this thread; other threads (control connections, transfers) only
leave events behind and wake it.
Elsewhere: building the parts (launch/engine_process.py), requests before and after the scheduler
(prefill.py, decode.py).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import assert_never

import msgspec

from baton.core.clock import Clock
from baton.core.profile import ProfileNotes
from baton.disagg.core_sharing import CoreSharing
from baton.disagg.role import EngineRole
from baton.engine.core import EngineCore
from baton.engine.step_pace import StepPace, StepTarget
from baton.ipc.engine_socket import EngineSocket
from baton.ipc.peer_link import PeerEvent, PeerLink
from baton.messages.engine import (
    Abort,
    EngineStats,
    Explain,
    Explained,
    FlushCache,
    FlushCacheDone,
    ProfilePart,
    ProfileStarted,
    Shutdown,
    StartProfile,
    StepOutputs,
    StopProfile,
    Submit,
    ToEngine,
)
from baton.transfer.protocol import KvTransport, TransportStats

_IDLE_WAIT_S = 0.2
"""Longest sleep: how late a deadline may be noticed."""
_BUSY_STATS_S = 0.25
_DELIVERY_SHARE, _LONGEST_DELIVERY_S = 0.1, 0.005
"""How long the next step lets the last writes of a prompt settle first: this share of the step
before, and no longer than that. Else decode would hear of them a step later."""
_IDLE_STATS_S = 1.0
_RECORDS_PER_PART = 2000


class EngineLoop:
    """Runs until it is told to shut down. `events` is filled by the peer link's thread."""

    def __init__(
        self,
        core: EngineCore,
        role: EngineRole,
        api: EngineSocket,
        events: deque[PeerEvent],
        transports: Sequence[KvTransport],
        clock: Clock,
        link: PeerLink | None = None,
        sharing: CoreSharing | None = None,
        step_target: StepTarget | None = None,
    ):
        self._core = core
        self._role = role
        self._api = api
        self._events = events
        self._transports = transports
        self._clock = clock
        self._link = link
        self._sharing = sharing
        self._step_target = step_target
        self._paces = {is_shared: StepPace() for is_shared in (False, True)}
        self._stats_due_s = 0.0
        self._was_busy = True
        self._is_running = True
        self._made_progress = False
        self._delivery_limit_s = 0.0

    def run(self) -> None:
        """Raises ApiGone when the api process ends."""
        while self._is_running:
            self._api.wait(self._idle_s())
            self.turn()

    def _idle_s(self) -> float:
        # Sequences that wait for room get it by news from outside, which ends the wait.
        can_go_on = self._core.has_work and self._made_progress
        return self._rest_s() if can_go_on else _IDLE_WAIT_S

    def _rest_s(self) -> float:
        """How long the next step has to wait."""
        if self._role.is_delivering:
            return max(0.0, self._delivery_limit_s - self._clock.now_s())
        if self._sharing is None:
            return 0.0
        return self._sharing.wait_s(self._clock.now_s(), self._role.prompts_are_computed)

    def turn(self) -> None:
        """One round without waiting."""
        # Peers first: what is submitted now must not fail for a loss that is known already.
        while self._events:
            self._role.on_event(self._events.popleft())
        for message in self._api.take():
            self._on_message(message)
        self._role.tick(self._clock.now_s())
        if self._core.has_work and not self._rest_s():
            self._step()
            self._role.tick(self._clock.now_s())
        outputs = self._core.take_outputs()
        if outputs:
            self._api.send(StepOutputs(outputs=outputs))
        self._send_stats_when_due()

    def _step(self) -> None:
        is_shared = self._sharing is not None and self._role.prompts_are_computed
        if self._sharing is not None:
            self._sharing.begin_step(is_shared)
        began_s = self._clock.now_s()
        if self._step_target is None:
            self._made_progress = self._core.step()
        else:
            pace = self._paces[is_shared]
            self._made_progress = self._core.step(pace, self._max_rows(pace, is_shared))
        ended_s = self._clock.now_s()
        limit_s = min((ended_s - began_s) * _DELIVERY_SHARE, _LONGEST_DELIVERY_S)
        self._delivery_limit_s = ended_s + limit_s
        if self._sharing is not None:
            self._sharing.end_step(began_s, ended_s)

    def _max_rows(self, pace: StepPace, is_shared: bool) -> int | None:
        assert self._step_target is not None, "asked only where there is one"
        scheduler = self._core.scheduler
        share = self._sharing.share if self._sharing is not None and is_shared else 1.0
        return self._step_target.max_rows(pace, scheduler.lone_prompt, scheduler.num_streams, share)

    def stats(self) -> EngineStats:
        counters, ledger = self._core.counters, self._core.ledger()
        totals = [transport.stats() for transport in self._transports]
        return EngineStats(
            progress_s=self._clock.now_s(),
            num_running=self._core.scheduler.num_running,
            num_waiting=self._core.scheduler.num_waiting,
            num_handover=self._role.num_handovers,
            ledger=ledger,
            num_tokens_in_use=ledger.num_in_use * self._core.block_size,
            total_prompt_tokens=counters.prompt_tokens,
            total_cached_tokens=counters.cached_tokens,
            total_generated_tokens=counters.generated_tokens,
            total_preemptions=counters.preemptions,
            total_steps=counters.steps,
            total_step_seconds=counters.step_seconds,
            total_transferred_bytes=sum(total.num_bytes for total in totals),
            total_transfers=sum(total.num_writes for total in totals),
            total_transfer_failures=sum(total.num_failures for total in totals),
            total_transfer_seconds=sum(total.write_seconds for total in totals),
            total_verified_blocks=counters.verified_blocks,
            total_damaged_blocks=counters.damaged_blocks,
            total_finished=dict(counters.finished),
            total_refused=_refused(self._link, totals),
            handover=self._role.handover_stats(),
        )

    def _on_message(self, message: ToEngine) -> None:
        match message:
            case Submit(request=request):
                self._role.submit(request)
            case Abort(request_id=request_id, reason=reason):
                self._role.abort(request_id, reason)
            case FlushCache(call_id=call_id):
                num_freed = self._core.pool.flush()
                self._api.send(FlushCacheDone(call_id=call_id, num_blocks_freed=num_freed))
            case StartProfile(call_id=call_id, num_steps=num_steps):
                self._core.start_profile(num_steps)
                self._api.send(ProfileStarted(call_id=call_id))
            case StopProfile(call_id=call_id):
                for part in _parts(call_id, self._core.stop_profile()):
                    self._api.send(part)
            case Explain(call_id=call_id, request_ids=request_ids):
                found = [self._core.timeline(request_id) for request_id in request_ids]
                timelines = [timeline for timeline in found if timeline is not None]
                self._api.send(Explained(call_id=call_id, timelines=timelines))
            case Shutdown():
                self._is_running = False
            case _:
                assert_never(message)

    def _send_stats_when_due(self) -> None:
        now_s, busy = self._clock.now_s(), self._core.num_sequences > 0
        if now_s < self._stats_due_s and busy == self._was_busy:
            return
        self._was_busy = busy
        self._stats_due_s = now_s + (_BUSY_STATS_S if busy else _IDLE_STATS_S)
        self._api.send(self.stats())


def _parts(call_id: int, notes: ProfileNotes | None) -> Iterator[ProfilePart]:
    """Small enough for a frame each, however many requests a step has."""
    if notes is None:
        yield ProfilePart(call_id=call_id, notes=None, is_last=True)
        return
    num_parts = max(1, -(-max(len(notes.steps), len(notes.requests)) // _RECORDS_PER_PART))
    for index in range(num_parts):
        records = slice(index * _RECORDS_PER_PART, (index + 1) * _RECORDS_PER_PART)
        part = msgspec.structs.replace(
            notes, steps=notes.steps[records], requests=notes.requests[records]
        )
        yield ProfilePart(call_id=call_id, notes=part, is_last=index + 1 == num_parts)


def _refused(link: PeerLink | None, totals: Sequence[TransportStats]) -> dict[str, dict[str, int]]:
    """Nothing where nobody can connect."""
    if link is None:
        return {}
    num_strangers = sum(total.num_strangers for total in totals)
    num_bad = sum(total.num_bad_connections for total in totals)
    return {
        "control": {
            "malformed": link.num_bad_connections,
            "secret": link.num_wrong_secrets,
            "layout": link.num_other_layouts,
        },
        "kv": {"malformed": num_bad - num_strangers, "secret": num_strangers},
    }
