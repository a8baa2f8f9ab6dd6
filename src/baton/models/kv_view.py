"""The KV pool's bytes as the tensor that attention reads and writes in place.

Elsewhere: the bytes (kvcache/storage.py), their meaning (kvcache/layout.py).
"""

import torch

from baton.kvcache.layout import KvLayout

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def kv_view(buffer: memoryview, layout: KvLayout, num_blocks: int) -> torch.Tensor:
    """N×L×2×S×K×D over the first `num_blocks` blocks of a writable buffer, without copying.

    Layer l's keys are `view[:, l, 0]` and its values `view[:, l, 1]`, both N×S×K×D. The tensor
    keeps the buffer alive.
    """
    num_bytes = num_blocks * layout.block_bytes
    assert buffer.nbytes >= num_bytes, f"{buffer.nbytes} bytes are no room for {num_bytes}"
    assert not buffer.readonly, "the pool is written to"
    flat = torch.frombuffer(buffer[:num_bytes], dtype=_DTYPES[layout.dtype])
    return flat.view(
        num_blocks,
        layout.num_layers,
        2,
        layout.block_size,
        layout.num_kv_heads,
        layout.head_dim,
    )
