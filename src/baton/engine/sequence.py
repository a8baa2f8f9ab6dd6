"""One token stream while the engine works on it.

Invariant: `num_computed_tokens` tokens have their KV in `block_ids`; the rest of `token_ids` is
still to be computed. Every sequence goes through the states by the moves in `_LEGAL`, and emits its
one `Finish` on entering FINISHED.
Elsewhere: who may run (scheduler.py), hand-over states (disagg/).
"""

import enum

from baton.core.request import EngineRequest
from baton.core.timeline import Timeline
from baton.kvcache.block_hash import BlockHash, extend_hashes
from baton.messages.engine import TokenOutput


class SequenceState(enum.Enum):
    NEW = "new"
    """Known, but not the scheduler's yet: its hand-over is being prepared."""
    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"
    """Prompt computed; its blocks are being written to a decode worker."""
    FINISHED = "finished"


_LEGAL = {
    SequenceState.NEW: {SequenceState.WAITING, SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.WAITING: {SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.RUNNING: {SequenceState.WAITING, SequenceState.HELD, SequenceState.FINISHED},
    SequenceState.HELD: {SequenceState.FINISHED},
    SequenceState.FINISHED: set(),
}


class Sequence:
    """Progress of one request. `order`: how many came before. `due_s`: among equal priorities, who
    is due sooner goes first. Resumed output is computed like a prompt, so it counts among
    `num_prompt_tokens` here. `held_output` is a prefill leg's one token, until it is delivered.
    `now_s`: when it came."""

    def __init__(self, request: EngineRequest, order: int, now_s: float = 0.0):
        self.request = request
        self.timeline = Timeline.begin(request.request_id, "accepted", now_s)
        self.order = order
        self.due_s = now_s
        self.state = SequenceState.NEW
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.block_ids: list[int] = []
        self.held_output: TokenOutput | None = None
        self._num_sealed_blocks = 0
        self._hashes: list[BlockHash] = []

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def holder(self) -> str:
        """Its name in the block ledger. Clients choose request ids, so those are marked: none can
        pose as one of the ledger's other holders."""
        return f"request:{self.request.request_id}"

    @property
    def is_prefill_leg(self) -> bool:
        """Computed here, continued by a decode worker."""
        handover = self.request.handover
        return handover is not None and not handover.peer_address

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_made_tokens(self) -> int:
        """Output tokens, with those that another worker made: what lengths and penalties count."""
        return len(self.token_ids) - self.request.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sort key: who goes first."""
        return self.request.priority, self.due_s, self.order

    def move_to(self, state: SequenceState) -> None:
        assert state in _LEGAL[self.state], f"{self.request_id}: {self.state} -> {state}"
        self.state = state

    def hashes(self, block_size: int) -> list[BlockHash]:
        """Hashes of all full blocks of the tokens so far."""
        extend_hashes(self._hashes, self.token_ids, block_size, self.request.cache_salt)
        return self._hashes

    def max_reusable_tokens(self) -> int:
        """How much of the front may come from a cache: at least one token must be computed, since
        the next is chosen from its logits, and so must those whose prompt logprobs are wanted."""
        limit = self.num_tokens - 1
        start = self.request.prompt_logprobs_start
        if start is not None and self.num_output_tokens == 0:
            limit = min(limit, max(0, start - 1))
        return limit

    def newly_full_blocks(self, block_size: int) -> list[tuple[int, BlockHash]]:
        """Blocks whose tokens have all been computed since the last call, with their hashes."""
        num_full = self.num_computed_tokens // block_size
        hashes = self.hashes(block_size)
        fresh = range(self._num_sealed_blocks, num_full)
        self._num_sealed_blocks = max(self._num_sealed_blocks, num_full)
        return [(self.block_ids[index], hashes[index]) for index in fresh]

    def forget_blocks(self) -> None:
        """The blocks were taken away (preemption): everything is to be computed again."""
        self.block_ids = []
        self.num_computed_tokens = 0
        self._num_sealed_blocks = 0
