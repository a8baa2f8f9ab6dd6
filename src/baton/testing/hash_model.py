"""A model whose every next token depends on all KV before it, and which costs nothing to run.

It keeps token ids in the KV pool and derives each next token from what it reads back through the
block table: a block that is lost, misplaced, overwritten or handed over wrongly changes the text.
"""

import numpy as np
import torch

from baton.kernels.interface import ForwardBatch, Logits
from baton.kvcache.layout import KvLayout

# N blocks, L layers, S block size, K kv heads, D head dim, V vocabulary


class HashModel:
    """Two layers of one head of width 4, so that a block has more than one part."""

    def __init__(self, vocab_size: int = 97):
        self.vocab_size = vocab_size

    def kv_layout(self, block_size: int) -> KvLayout:
        return KvLayout(
            model_id="hash-model",
            dtype="float32",
            block_size=block_size,
            num_layers=2,
            num_kv_heads=1,
            head_dim=4,
        )

    def kv_view(self, buffer: memoryview, layout: KvLayout, num_blocks: int) -> torch.Tensor:
        flat = torch.frombuffer(buffer, dtype=torch.float32)
        return flat[: num_blocks * layout.block_bytes // 4].view(
            num_blocks, layout.num_layers, 2, layout.block_size, 1, layout.head_dim
        )

    def next_token(self, token_ids: list[int]) -> int:
        """What greedy decoding must give after `token_ids`."""
        total = sum((token + 1) * (index % 31 + 1) for index, token in enumerate(token_ids))
        return total % self.vocab_size

    def forward(self, batch: ForwardBatch, kv_pool: torch.Tensor) -> Logits:
        block_size = kv_pool.shape[3]
        blocks, offsets = batch.slots_T // block_size, batch.slots_T % block_size
        token_ids_T = torch.from_numpy(batch.token_ids_T)
        for layer in range(2):
            for part in range(2):
                values = (token_ids_T + layer + 2 * part).float()
                kv_pool[blocks, layer, part, offsets] = values[:, None, None].expand(-1, 1, 4)
        logits = np.zeros((len(batch.token_ids_T), self.vocab_size), dtype=np.float32)
        for span in batch.spans:
            held = kv_pool[span.block_ids]
            first_new = span.context_len - span.num_tokens
            for row in range(span.num_tokens):
                length = first_new + row + 1
                logits[span.start + row, self._chosen(held, length)] = 10.0
        return logits[batch.logit_rows]

    def _chosen(self, held: torch.Tensor, length: int) -> int:
        block_size = held.shape[3]
        tokens = []
        for index in range(length):
            cell = held[index // block_size, :, :, index % block_size, 0]
            token = int(cell[0, 0, 0])
            consistent = all(
                bool((cell[layer, part] == token + layer + 2 * part).all())
                for layer in range(2)
                for part in range(2)
            )
            tokens.append(token if consistent else token + 1)
        return self.next_token(tokens)
