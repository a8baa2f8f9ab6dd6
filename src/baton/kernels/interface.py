"""What a forward pass is given, and the ops that the reference model is written in.

The ops run on any torch device. On the CPU the whole decoder is one C++ object instead
(models/native_llama.py), and these ops are what it is checked against.

Contract of every op: row-deterministic. An output row has the same bits whatever the number of
rows, the other rows, and where the chunk boundaries fall (docs/architecture.md, exactness).

Shapes: T tokens, E hidden size, F features out, H query heads, K kv heads, D head dim,
N blocks, S block size, B sequences, V vocabulary, L layers.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Tensor = torch.Tensor
Int64s = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SequenceSpan:
    """One sequence's part of a batch: rows [start, start + num_tokens) are its positions
    [context_len - num_tokens, context_len). `block_ids` cover positions [0, context_len)."""

    start: int
    num_tokens: int
    context_len: int
    block_ids: list[int]


@dataclass(frozen=True)
class ForwardBatch:
    """Input of one model step. `slots_T[i]` = block_id * S + offset where token i's KV is written.
    `logit_rows`: which rows' logits are wanted, in order."""

    token_ids_T: Int64s
    positions_T: Int64s
    slots_T: Int64s
    spans: list[SequenceSpan]
    logit_rows: Int64s


class Ops(Protocol):
    """Everything a transformer block needs. Activations are float32 on the CPU."""

    def pack_weight(self, weight_FE: Tensor) -> Tensor:
        """The weight in the form `linear` wants it, made once while loading. Optional for the
        caller: `linear` takes a plain weight too and gives the same bits."""
        ...

    def embedding(self, ids_T: Tensor, table_VE: Tensor) -> Tensor: ...

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        """Also used per head: normalizes the last dimension, whatever the leading ones."""
        ...

    def linear(self, x_TE: Tensor, weight_FE: Tensor, bias_F: Tensor | None = None) -> Tensor: ...

    def rotary(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Rotate the two halves of each head against each other (the NeoX convention)."""
        ...

    def write_kv(
        self, k_TKD: Tensor, v_TKD: Tensor, k_NSKD: Tensor, v_NSKD: Tensor, slots_T: Tensor
    ) -> None:
        """Store new keys and values in place, rounded to the pool's dtype."""
        ...

    def paged_attention(
        self,
        q_THD: Tensor,
        k_NSKD: Tensor,
        v_NSKD: Tensor,
        spans: list[SequenceSpan],
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Causal attention of each span over its own blocks; `window` keeps only the last that
        many keys (None: all). Returns T×H×D."""
        ...

    def silu_mul(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor: ...
