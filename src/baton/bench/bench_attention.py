"""Attention of a whole prompt over the paged pool, against torch's on contiguous tensors.

torch gets what suits it best: keys and values in one piece, of its own type, outputs in bfloat16.

Shapes: T tokens, H query heads, K kv heads, D head dim, B blocks.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from baton.bench.report import Findings
from baton.bench.shapes import HEAD_DIM, NUM_HEADS, NUM_KV_HEADS
from baton.bench.timing import Sample, interleave, rate
from baton.core.clock import Clock
from baton.kernels import _native
from baton.kernels.native import open_kernels
from baton.kvcache.layout import KvLayout

NUM_TOKENS: Final = 2048
_BLOCK_SIZE: Final = 16
_CHUNK: Final = 512  # the engine's default
_SCALE: Final = HEAD_DIM**-0.5
_FLOOR: Final = 1.5
_SDPA: Final = ("sdpa_gqa", "sdpa_expanded")
_KILO: Final = 1e3


def measure_attention(findings: Findings, rounds: int, num_threads: int, clock: Clock) -> None:
    """Causal attention of NUM_TOKENS queries over as many keys, in thousand tokens/s."""
    torch.set_num_threads(num_threads)
    kernels = open_kernels(num_threads)
    work = NUM_TOKENS / _KILO
    cases: dict[str, Sample] = {
        f"attention_{NUM_TOKENS}": rate(_paged(kernels, "bfloat16", NUM_TOKENS), work, clock),
        f"attention_{NUM_TOKENS}_chunks": rate(_paged(kernels, "bfloat16", _CHUNK), work, clock),
        f"attention_{NUM_TOKENS}_int8": rate(_paged(kernels, "int8", NUM_TOKENS), work, clock),
    }
    cases |= {name: rate(_sdpa(name), work, clock) for name in _SDPA}
    with torch.inference_mode():
        for name, samples in interleave(cases, rounds).items():
            findings.add(name, samples, "thousand tokens/s per layer")
    ours = f"attention_{NUM_TOKENS}"
    way = findings.strictest(ours, _SDPA)
    reference = f"torch SDPA on contiguous bfloat16, {num_threads} threads, the faster way: {way}"
    findings.compare(f"attention_prefill_{NUM_TOKENS}", ours, way, _FLOOR, reference)


def _paged(kernels: _native.Kernels, dtype: str, chunk: int) -> Callable[[], None]:
    """Queries in chunks of `chunk`, blocks in shuffled order."""
    num_blocks = NUM_TOKENS // _BLOCK_SIZE
    layout = KvLayout("bench", dtype, _BLOCK_SIZE, 1, NUM_KV_HEADS, HEAD_DIM, form="lanes")
    memory = np.zeros(num_blocks * layout.block_bytes, dtype=np.uint8)
    pool = _native.Pool(memory, 1, _BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype == "int8")
    generator = np.random.default_rng(0)
    blocks = generator.permutation(num_blocks)
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    qkv = generator.standard_normal((NUM_TOKENS, width), dtype=np.float32)
    slots = (blocks[:, None] * _BLOCK_SIZE + np.arange(_BLOCK_SIZE)).reshape(-1)
    cos = np.ones((NUM_TOKENS, HEAD_DIM // 2), dtype=np.float32)
    kernels.rotary_write(
        pool, 0, qkv, NUM_HEADS, None, None, 0.0, cos, np.zeros_like(cos), slots.astype(np.int64)
    )
    out = np.empty((NUM_TOKENS, NUM_HEADS * HEAD_DIM), dtype=np.float32)
    steps = [
        ((0, chunk, end), blocks[: end // _BLOCK_SIZE].tolist(), slice(end - chunk, end))
        for end in range(chunk, NUM_TOKENS + 1, chunk)
    ]

    def run() -> None:
        for span, ids, rows in steps:
            kernels.attention(pool, 0, qkv[rows], NUM_HEADS, [span], [ids], _SCALE, 0, out[rows])

    return run


def _sdpa(way: str) -> Callable[[], None]:
    """`way`: repeated kv heads given as they are (`sdpa_gqa`) or written out before."""
    generator = torch.Generator().manual_seed(0)

    def heads(number: int) -> torch.Tensor:
        return torch.randn(1, number, NUM_TOKENS, HEAD_DIM, generator=generator).bfloat16()

    q, k, v = heads(NUM_HEADS), heads(NUM_KV_HEADS), heads(NUM_KV_HEADS)
    is_grouped = way == "sdpa_gqa"
    if not is_grouped:
        repeats = NUM_HEADS // NUM_KV_HEADS
        k, v = (each.repeat_interleave(repeats, dim=1).contiguous() for each in (k, v))

    def run() -> None:
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=is_grouped
        )

    return run
