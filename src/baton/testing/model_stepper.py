"""Drives a model over a paged pool by hand: which tokens of which sequence go into each step is
the caller's choice, as a test of chunking and batching needs it.

Elsewhere: the engine, which makes those choices (engine/).
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from baton.kernels.interface import ForwardBatch, SequenceSpan
from baton.kvcache.storage import SharedSegment
from baton.models.registry import Model


@dataclass
class SteppedSequence:
    """`block_ids` are handed out one by one as the sequence grows."""

    block_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0


class ModelStepper:
    """A model and a pool of its own. Blocks are dealt out from a shuffled deck, so that
    neighbouring positions lie apart."""

    def __init__(
        self, model: Model, *, num_blocks: int = 128, block_size: int = 16, dtype: str = "float32"
    ):
        self._model = model
        self._block_size = block_size
        layout = model.kv_layout("test", dtype, block_size)
        self._segment = SharedSegment(num_blocks * layout.block_bytes)
        self.pool = model.kv_view(self._segment.view(), layout, num_blocks)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0))
        self._free_blocks = order.tolist()

    def close(self) -> None:
        del self.pool
        self._segment.close()

    def step(
        self, work: list[tuple[SteppedSequence, list[int]]], *, all_rows: bool = False
    ) -> torch.Tensor:
        """Append tokens to sequences in one forward pass. Logits of each one's last row, or of
        all rows."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last_rows: list[int] = []
        spans = []
        for sequence, tokens in work:
            first, end = sequence.num_tokens, sequence.num_tokens + len(tokens)
            self._reserve(sequence, end)
            spans.append(SequenceSpan(len(token_ids), len(tokens), end, list(sequence.block_ids)))
            token_ids += tokens
            positions += range(first, end)
            slots += [self._slot(sequence, position) for position in range(first, end)]
            last_rows.append(len(token_ids) - 1)
            sequence.num_tokens = end
        batch = ForwardBatch(
            token_ids_T=np.array(token_ids, dtype=np.int64),
            positions_T=np.array(positions, dtype=np.int64),
            slots_T=np.array(slots, dtype=np.int64),
            spans=spans,
            logit_rows=np.array(range(len(token_ids)) if all_rows else last_rows, dtype=np.int64),
        )
        return torch.from_numpy(self._model.forward(batch, self.pool).copy())

    def prefill(self, prompt: list[int], chunk: int = 0) -> tuple[SteppedSequence, torch.Tensor]:
        """A new sequence and the logits of each of its rows, computed `chunk` tokens at a time
        (0: at once)."""
        sequence, size = SteppedSequence(), chunk or len(prompt)
        rows = [
            self.step([(sequence, prompt[low : low + size])], all_rows=True)
            for low in range(0, len(prompt), size)
        ]
        return sequence, torch.cat(rows)

    def greedy(self, prompt: list[int], num_new_tokens: int, chunk: int = 0) -> list[int]:
        """The tokens that follow, each the most likely one."""
        sequence, logits = self.prefill(prompt, chunk)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < num_new_tokens:
            tokens.append(int(self.step([(sequence, tokens[-1:])])[0].argmax()))
        return tokens

    def _reserve(self, sequence: SteppedSequence, num_tokens: int) -> None:
        while len(sequence.block_ids) * self._block_size < num_tokens:
            sequence.block_ids.append(self._free_blocks.pop())

    def _slot(self, sequence: SteppedSequence, position: int) -> int:
        block = sequence.block_ids[position // self._block_size]
        return block * self._block_size + position % self._block_size
