"""What one KV block looks like in memory.

A block is one contiguous run of bytes with all layers of its tokens, so that moving a block is one
copy and the transfer layer never looks inside:

    block = [layer 0 | layer 1 | ...],  layer = [K of S tokens | V of S tokens | scales]

Scales, one float32 per token and head for K and as many for V, are there for int8 only. How K and V
lie within a layer is the form: `rows` has one token after the other (the reference in torch),
`lanes` puts 16 tokens side by side (csrc/kernels.h).

Invariant: two engines may exchange blocks exactly when their `layout_hash` is equal. Engines tell
each other its fields one by one (disagg/terms.py), so that a difference can be named.
Elsewhere: the bytes themselves (storage.py), ownership (block_pool.py).
"""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from baton.core.errors import ConfigError

VERSION: Final = 1
"""Of what this file says about the bytes of a block; larger with every change of it."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_SCALE_BYTES = 4

KvForm = Literal["rows", "lanes"]


@dataclass(frozen=True)
class KvLayout:
    """Layout of the KV cache of one rank.

    `model_id` is a digest of the checkpoint (weights and quantization), so that KV of different
    models is never mixed. `rank_split` is (tp_rank, tp_size).
    """

    model_id: str
    dtype: str
    block_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    rank_split: tuple[int, int] = (0, 1)
    form: KvForm = "rows"

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"--page-size {self.block_size} is not a power of two; try 16")
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"--kv-cache-dtype {self.dtype} is not known; try one of {', '.join(DTYPE_BYTES)}"
            )

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer in one block: K and V of block_size tokens."""
        head_bytes = self.head_dim * DTYPE_BYTES[self.dtype]
        if self.dtype == "int8":
            head_bytes += _SCALE_BYTES
        return 2 * self.block_size * self.num_kv_heads * head_bytes

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def token_bytes(self) -> int:
        return self.block_bytes // self.block_size

    def layer_range(self, layer: int) -> tuple[int, int]:
        """Byte range [start, end) of one layer inside a block."""
        return layer * self.layer_bytes, (layer + 1) * self.layer_bytes

    @property
    def layout_hash(self) -> str:
        fields = (
            VERSION,
            self.model_id,
            self.dtype,
            self.block_size,
            self.num_layers,
            self.num_kv_heads,
            self.head_dim,
            *self.rank_split,
            self.form,
        )
        return hashlib.sha256(repr(fields).encode()).hexdigest()[:32]
