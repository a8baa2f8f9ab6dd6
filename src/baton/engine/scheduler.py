"""Which sequences take part in the next step, and how many tokens of each.

Continuous batching with chunked prefill: running sequences that decode get one token each, what is
left of the step's token budget goes to prompts, in order of (priority, due time), so a newcomer may
pass one that is half read. Beside such sequences the budget may be smaller, so that their next
token does not wait long. A sequence is admitted only when the pool has room for all its tokens so
far, so a half-read prompt never waits for another one's blocks. When a decoding sequence finds no
block, the last in line is preempted: its blocks go, and it is computed again later (recompute; by
the exactness contract its text stays the same).

Pure: no clock, no torch, no sockets; state in, decision out.
"""

from bisect import insort
from collections import deque
from dataclasses import dataclass
from typing import Final

from baton.engine.sequence import Sequence, SequenceState
from baton.kvcache.block_pool import BlockPool

_LEAST_PROMPT_TOKENS: Final = 8
"""Of a step, if a prompt is to be read: it goes on however late steps are, and fewer would take
hardly less time."""


@dataclass(frozen=True)
class ScheduledSpan:
    """Compute the next `num_tokens` tokens of `sequence`."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True)
class StepPlan:
    spans: list[ScheduledSpan]
    admitted: list[Sequence]
    preempted: list[Sequence]


class Scheduler:
    """Queues of one engine. Sequences hold blocks under their `holder` name."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_running_requests: int,
        max_tokens_per_step: int,
    ):
        self._pool = pool
        self._block_size = block_size
        self._max_running = max_running_requests
        self._max_tokens = max_tokens_per_step
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_streams(self) -> int:
        """Running sequences whose prompts have been read."""
        return sum(each.num_uncomputed_tokens == 1 for each in self._running)

    @property
    def lone_prompt(self) -> Sequence | None:
        """The one whose prompt is to be read, if there is one and no other."""
        unread = [each for each in self._running if each.num_uncomputed_tokens > 1]
        unread += self._waiting[:2]
        return unread[0] if len(unread) == 1 else None

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence whose tokens are all to be computed."""
        sequence.move_to(SequenceState.WAITING)
        insort(self._waiting, sequence, key=_rank)

    def adopt(self, sequence: Sequence) -> None:
        """Run a sequence whose KV has been handed over; it holds its blocks already."""
        sequence.move_to(SequenceState.RUNNING)
        insort(self._running, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, to finish it or to hold it. Its blocks stay with their holder."""
        queue = self._waiting if sequence.state is SequenceState.WAITING else self._running
        queue.remove(sequence)

    def has_room_for(self, num_new_blocks: int, num_reserved_sequences: int) -> bool:
        """May a hand-over reserve that many blocks now? Sequences preempted here go first, those
        that wait for their first step keep room for themselves, and one block per running sequence
        stays free so that it is not preempted at its next step."""
        if any(sequence.num_output_tokens > 0 for sequence in self._waiting):
            return False
        num_here = len(self._running) + len(self._waiting)
        if num_here + num_reserved_sequences >= self._max_running:
            return False
        num_kept = sum(self._num_blocks_for(sequence.num_tokens) for sequence in self._waiting)
        return self._pool.num_available >= num_new_blocks + num_kept + len(self._running)

    def schedule(self, max_tokens_beside_streams: int | None = None) -> StepPlan:
        """Decide one step. Blocks for everything in the plan are allocated on return. Where
        sequences decode, the step has at most so many tokens, but prompts never get less than
        `_LEAST_PROMPT_TOKENS` of it."""
        plan = StepPlan([], [], [])
        self._schedule_decodes(plan)
        budget = self._max_tokens - len(plan.spans)
        if plan.spans and max_tokens_beside_streams is not None:
            left = max(_LEAST_PROMPT_TOKENS, max_tokens_beside_streams - len(plan.spans))
            budget = min(budget, left)
        half_read = deque(each for each in self._running if each.num_uncomputed_tokens > 1)
        may_admit = not plan.preempted
        while budget > 0:
            may_admit = may_admit and len(self._running) < self._max_running
            first = self._waiting[0] if may_admit and self._waiting else None
            if first is not None and (not half_read or first.rank < half_read[0].rank):
                may_admit = self._admit(first)
                if not may_admit:
                    continue
                plan.admitted.append(self._waiting.pop(0))
            elif half_read:
                first = half_read.popleft()
            else:
                break
            budget -= self._schedule_chunk(plan, first, budget)
        return plan

    def _schedule_decodes(self, plan: StepPlan) -> None:
        for sequence in list(self._running):
            if len(plan.spans) == self._max_tokens:
                return
            if sequence.state is not SequenceState.RUNNING or sequence.num_uncomputed_tokens != 1:
                continue
            if self._grow(sequence, plan):
                plan.spans.append(ScheduledSpan(sequence, 1))

    def _schedule_chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        num_tokens = min(budget, sequence.num_uncomputed_tokens)
        plan.spans.append(ScheduledSpan(sequence, num_tokens))
        return num_tokens

    def _grow(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Make room for the last token; False when the sequence itself had to give way."""
        missing = self._num_blocks_for(sequence.num_tokens) - len(sequence.block_ids)
        while missing > 0:
            blocks = self._pool.allocate(sequence.holder, missing)
            if blocks is not None:
                sequence.block_ids.extend(blocks)
                return True
            victim = self._running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence, plan: StepPlan) -> None:
        self._running.remove(victim)
        # The victim is last in line, so it has not been given a span in this plan unless it stands
        # before the sequence that needs room, which the order of the walk rules out.
        assert all(span.sequence is not victim for span in plan.spans)
        self._pool.release(victim.holder)
        victim.forget_blocks()
        victim.move_to(SequenceState.WAITING)
        insort(self._waiting, victim, key=_rank)
        plan.preempted.append(victim)

    def _admit(self, sequence: Sequence) -> bool:
        """Give the sequence blocks for all its tokens, reusing cached ones; False: no room yet."""
        reusable = sequence.max_reusable_tokens() // self._block_size
        hits = self._pool.lookup(sequence.hashes(self._block_size)[:reusable])
        num_new = self._num_blocks_for(sequence.num_tokens) - len(hits)
        # Held before allocating, so that making room cannot evict the very blocks that were hit.
        self._pool.share(sequence.holder, hits)
        blocks = None
        if self._pool.num_available >= num_new + len(self._running) or not self._running:
            blocks = self._pool.allocate(sequence.holder, num_new)
        if blocks is None:
            self._pool.release(sequence.holder)
            return False
        sequence.block_ids = [*hits, *blocks]
        sequence.num_computed_tokens = len(hits) * self._block_size
        if sequence.num_output_tokens == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        sequence.move_to(SequenceState.RUNNING)
        insort(self._running, sequence, key=_rank)
        return True

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.rank
