"""Paged pools with random keys and values, for kernel tests."""

from dataclasses import dataclass

import torch

from baton.kernels.interface import SequenceSpan

NUM_LAYERS = 2
LAYER = 1


@dataclass(frozen=True)
class PagedCase:
    """One sequence's queries, keys and values for every position, and a pool that holds them.

    The pool's other slots are NaN: no op may read what does not belong to its sequence.
    """

    q_THD: torch.Tensor
    pool_NL2SKD: torch.Tensor
    block_ids: list[int]
    block_size: int

    @property
    def k_NSKD(self) -> torch.Tensor:
        return self.pool_NL2SKD[:, LAYER, 0]

    @property
    def v_NSKD(self) -> torch.Tensor:
        return self.pool_NL2SKD[:, LAYER, 1]

    def dense_kv(self, context_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first `context_len` positions, T×K×D in float32."""
        k_TKD = self.k_NSKD[self.block_ids].flatten(0, 1)[:context_len].float()
        v_TKD = self.v_NSKD[self.block_ids].flatten(0, 1)[:context_len].float()
        return k_TKD, v_TKD

    def span(self, start: int, first: int, end: int) -> SequenceSpan:
        blocks = self.block_ids[: -(-end // self.block_size)]
        return SequenceSpan(start, end - first, end, blocks)


def make_pool(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> torch.Tensor:
    shape = (num_blocks, NUM_LAYERS, 2, block_size, num_kv_heads, head_dim)
    return torch.full(shape, torch.nan, dtype=dtype)


def add_sequence(
    pool_NL2SKD: torch.Tensor, block_ids: list[int], num_tokens: int, num_heads: int, seed: int
) -> PagedCase:
    """Fill `block_ids` with the keys and values of one random sequence."""
    block_size, num_kv_heads, head_dim = pool_NL2SKD.shape[3:]
    generator = torch.Generator().manual_seed(seed)
    case = PagedCase(
        torch.randn(num_tokens, num_heads, head_dim, generator=generator),
        pool_NL2SKD,
        block_ids,
        block_size,
    )
    for position in range(num_tokens):
        block, offset = block_ids[position // block_size], position % block_size
        for plane in (case.k_NSKD, case.v_NSKD):
            plane[block, offset] = torch.randn(num_kv_heads, head_dim, generator=generator)
    return case


def reference_attention(
    q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attention of every position over those before it, in float64 and in the plainest way."""
    num_tokens, num_heads, head_dim = q_THD.shape
    group_size = num_heads // k_TKD.shape[1]
    k_HTD = k_TKD.repeat_interleave(group_size, dim=1).double().transpose(0, 1)
    v_HTD = v_TKD.repeat_interleave(group_size, dim=1).double().transpose(0, 1)
    scores = q_THD.double().transpose(0, 1) @ k_HTD.transpose(1, 2) / head_dim**0.5
    age = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)[None, :]
    hidden = (age < 0) | (age >= (window or num_tokens))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    out_THD: torch.Tensor = (weights @ v_HTD).transpose(0, 1).float()
    return out_THD
