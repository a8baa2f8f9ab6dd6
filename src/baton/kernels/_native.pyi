"""Signatures of the C++ module (csrc/bindings.cpp). Sizes are checked: ValueError names what is
wrong. Arrays are taken in place; outputs are written to `y`, `out`, `logits`.

Shapes as in csrc/kernels.h.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

def available_isas() -> list[str]:
    """Instruction sets that this CPU runs, best first: of avx512, avx2, portable."""

class Weight:
    """`PackedWeight`; keeps `data` alive."""

    num_out: int
    num_in: int
    def __init__(
        self,
        form: int,
        num_out: int,
        num_in: int,
        group: int,
        zero_point: int,
        has_half_scales: bool,
        has_min: bool,
        panel_bytes: int,
        data: Bytes,
    ) -> None: ...

class Linear:
    num_out: int
    num_in: int
    def __init__(self, parts: list[tuple[Weight, Floats | None]]) -> None: ...

class Pool:
    """KV blocks over `memory`, in the `lanes` form."""

    num_blocks: int
    def __init__(
        self,
        memory: Bytes,
        num_layers: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        is_int8: bool,
    ) -> None: ...

class Kernels:
    """One instruction set's kernels and the threads to run them on. Not reentrant."""

    isa: str
    num_threads: int
    def __init__(
        self,
        num_threads: int,
        isa: str | None = None,
        cores: list[int] = ...,
        spin_us: float = ...,
    ) -> None: ...
    def limit_threads(self, num_working: int) -> None:
        """From now on only so many of the threads work, the caller's among them; no result depends
        on it."""

    def linear(
        self,
        linear: Linear,
        x: Floats,
        y: Floats,
        epilogue: int = 0,
        norm_weight: Floats | None = None,
        eps: float = 0.0,
        keeps_remainder: bool = False,
    ) -> None:
        """y = x Wᵀ (+ bias), with `norm_weight` of x normalized. Epilogue 0 stores, 1 adds to y,
        2 is silu(gate) * up over panels of gate and up in turn. `keeps_remainder`: where x is
        rounded to int8, what that leaves is rounded and multiplied, too."""

    def rms_norm(self, x: Floats, weight: Floats, eps: float, y: Floats) -> None: ...
    def silu_mul(self, gate: Floats, up: Floats, y: Floats) -> None: ...
    def embed(self, table: Weight, ids: Int64s, y: Floats) -> None: ...
    def rotary_write(
        self,
        pool: Pool,
        layer: int,
        qkv: Floats,
        num_heads: int,
        q_norm: Floats | None,
        k_norm: Floats | None,
        eps: float,
        cos: Floats,
        sin: Floats,
        slots: Int64s,
    ) -> None: ...
    def attention(
        self,
        pool: Pool,
        layer: int,
        q: Floats,
        num_heads: int,
        spans: list[tuple[int, int, int]],
        block_ids: list[list[int]],
        scale: float,
        window: int,
        out: Floats,
    ) -> None:
        """`spans`: (first row, rows, context length) each; `window` 0: all keys."""

class Decoder:
    def __init__(
        self,
        kernels: Kernels,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        hidden_size: int,
        intermediate_size: int,
        eps: float,
        window: int,
        embedding: Weight,
        norm: Floats,
        lm_head: Linear,
    ) -> None: ...
    def add_layer(
        self,
        attention_norm: Floats,
        qkv: Linear,
        q_norm: Floats | None,
        k_norm: Floats | None,
        o: Linear,
        mlp_norm: Floats,
        gate_up: Linear,
        down: Linear,
    ) -> None: ...
    def forward(
        self,
        pool: Pool,
        token_ids: Int64s,
        slots: Int64s,
        cos: Floats,
        sin: Floats,
        spans: list[tuple[int, int, int]],
        block_ids: list[list[int]],
        logit_rows: Int64s,
        logits: Floats,
    ) -> None: ...
    def stage_seconds(self) -> dict[str, float]:
        """Time spent in each stage of `forward` since the start."""

class Sampler:
    """Chooses tokens on the threads of `kernels` (None: on the calling thread). Not reentrant."""

    def __init__(self, kernels: Kernels | None = None) -> None: ...
    def choose(
        self, rows: list[Floats], choices: list[tuple[float, int, float, float, int, int]]
    ) -> list[int]:
        """The token of each row of logits. A choice is (temperature, top_k, top_p, min_p, seed,
        position); temperature 0 is greedy, others are from 1e-6. -1: the row has a NaN or no finite
        best logit."""

    def logprobs(
        self, rows: list[Floats], tokens: list[int], num_top: list[int]
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """Log-softmax at each row's token, and the `num_top` best tokens with theirs."""

def random_bits(seed: int, position: int) -> int:
    """53 bits, of the stream that numpy's Philox(key=seed, counter=[position, 0, 0, 0]) begins."""

def __getattr__(name: str) -> Any: ...

class CopyRun:
    """Copies ranges in order; `copies` has a source offset, a target offset and a number of bytes
    for each. Addresses must stay mapped. `advance` on one thread at a time, without the
    interpreter's lock; `stop` from any."""

    is_finished: bool
    num_bytes_moved: int
    def __init__(
        self,
        source: int,
        source_bytes: int,
        target: int,
        target_bytes: int,
        copies: array[int],
    ) -> None: ...
    def advance(self, max_bytes: int) -> None:
        """Until so much is copied (a piece of 1 MiB more at most), all is, or it was stopped."""

    def stop(self) -> None: ...

class SendRun:
    """What goes into a socket: texts, and (start, end) ranges of a region between them."""

    num_bytes: int
    def __init__(self, address: int, num_bytes: int) -> None: ...
    def add_text(self, text: bytes) -> None: ...
    def add_ranges(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    def clear(self) -> None: ...
    def send(self, fd: int, max_bytes: int) -> int:
        """Without blocking, until so much is sent (a system call's more at most) or the socket
        takes no more; how much. Raises OSError."""

class ReceiveRun:
    """(start, end) ranges of a region, filled in order with what comes out of a socket."""

    num_bytes_left: int
    def __init__(self, address: int, num_bytes: int) -> None: ...
    def expect(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    def expect_unwanted(self, num_bytes: int) -> None:
        """So many bytes that the caller will skip."""

    def receive(self, fd: int, max_bytes: int, beyond: memoryview) -> int:
        """Without blocking; how much, 0 for nothing now, -1 at the end of the stream. What follows
        the ranges goes to `beyond`. Raises OSError."""

    def store(self, content: memoryview) -> None:
        """Put it where the next bytes go, without counting it."""

    def skip(self, num_bytes: int) -> None:
        """As if so many had been received."""
