"""Attention of the C++ kernels: right, and with the same bits however the work is cut.

Elsewhere: how keys and values get into the pool (test_native_rotary.py), the same properties of the
torch ops (test_paged_attention.py).

Shapes: T tokens, H query heads, K kv heads, D head dim, F = (H + 2K)·D.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kernels import _native, reference
from baton.kvcache.layout import KvLayout
from baton.testing.native_kernels import assert_same_bits, name_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

NUM_LAYERS, LAYER = 2, 1
NOT_A_NUMBER = 0xFF
"""A byte that makes NaN of every bf16 and every scale."""

TILE, SEGMENT = 64, 512
"""Keys of a tile and of a segment in csrc/attention.cpp: sizes around them are worth a try."""
LENGTHS = [1, 2, 15, 16, 17, 63, TILE, 65, 130, 200, SEGMENT - 1, SEGMENT, SEGMENT + 1, 600, 1100]

real_settings = settings(deadline=None, derandomize=True, max_examples=60)


@dataclass(frozen=True)
class Shape:
    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int
    is_int8: bool
    window: int = 0

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def block_bytes(self) -> int:
        return KvLayout(
            model_id="",
            dtype="int8" if self.is_int8 else "bfloat16",
            block_size=self.block_size,
            num_layers=NUM_LAYERS,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        ).block_bytes

    def random_rows(self, num_tokens: int, generator: np.random.Generator) -> Floats:
        """Queries, keys and values side by side, T×F; some keys stand out, so that peaks move."""
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        rows_TF = generator.normal(size=(num_tokens, width))
        rows_TF *= generator.choice([0.3, 1.0, 1.0, 3.0], size=(num_tokens, 1))
        return rows_TF.astype(np.float32)


@dataclass(frozen=True)
class World:
    """A pool, and who has which blocks of it."""

    shape: Shape
    memory: Bytes
    pool: _native.Pool
    tables: list[list[int]]

    @staticmethod
    def make(shape: Shape, lengths: list[int], garbage: int, seed: int) -> "World":
        """Blocks of sequences lie anywhere; what nobody has written is `garbage`."""
        needed = [-(-length // shape.block_size) for length in lengths]
        num_blocks = sum(needed) + 2
        memory = np.full(num_blocks * shape.block_bytes, garbage, np.uint8)
        order = np.random.default_rng(seed).permutation(num_blocks).tolist()
        ends = list(itertools.accumulate(needed))
        tables = [order[end - count : end] for end, count in zip(ends, needed, strict=True)]
        pool = _native.Pool(
            memory, NUM_LAYERS, shape.block_size, shape.num_kv_heads, shape.head_dim, shape.is_int8
        )
        return World(shape, memory, pool, tables)

    def write(self, kernels: _native.Kernels, rows_TF: Floats, who: int, start: int) -> None:
        """Keys and values of `who` from position `start` on; the rotation is by no angle."""
        shape = self.shape
        positions = np.arange(start, start + len(rows_TF))
        blocks = np.array(self.tables[who])[positions // shape.block_size]
        slots = blocks * shape.block_size + positions % shape.block_size
        half = (len(rows_TF), shape.head_dim // 2)
        kernels.rotary_write(
            self.pool, LAYER, rows_TF.copy(), shape.num_heads, None, None, 0.0,
            np.ones(half, np.float32), np.zeros(half, np.float32), slots.astype(np.int64),
        )  # fmt: skip

    def attend(
        self, kernels: _native.Kernels, rows_TF: Floats, spans: list["Chunk"]
    ) -> list[Floats]:
        """What each span's rows of `rows_TF` (one span after the other) attend to."""
        shape = self.shape
        out = np.full((len(rows_TF), shape.num_heads * shape.head_dim), np.nan, np.float32)
        starts = [0, *itertools.accumulate(span.num_tokens for span in spans)]
        kernels.attention(
            self.pool,
            LAYER,
            rows_TF,
            shape.num_heads,
            [
                (start, span.num_tokens, span.end)
                for start, span in zip(starts, spans, strict=False)
            ],
            [self.tables[span.who][: -(-span.end // shape.block_size)] for span in spans],
            shape.scale,
            shape.window,
            out,
        )
        return np.split(out, starts[1:-1])

    def compute(self, kernels: _native.Kernels, rows_TF: Floats, who: int) -> Floats:
        """A whole sequence in one step."""
        self.write(kernels, rows_TF, who, 0)
        return self.attend(kernels, rows_TF, [Chunk(who, 0, len(rows_TF))])[0]

    def poison(self, kernels: _native.Kernels, who: int, start: int, end: int) -> None:
        """NaN for keys and values of positions [start, end) of `who`, and for nobody else's."""
        width = (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim
        self.write(kernels, np.full((end - start, width), np.nan, np.float32), who, start)


@dataclass(frozen=True)
class Chunk:
    """Positions [start, end) of sequence `who` in one step."""

    who: int
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass
class Progress:
    """Sequences on their way through random steps."""

    lengths: list[int]
    generator: np.random.Generator
    done: list[int] = field(default_factory=list)

    def steps(self) -> list[list[Chunk]]:
        self.done = [0] * len(self.lengths)
        result = []
        while self.done != self.lengths:
            step = [self._take(who) for who in range(len(self.lengths)) if self._is_chosen(who)]
            result.append(step)
        return [step for step in result if step]

    def _is_chosen(self, who: int) -> bool:
        return self.done[who] < self.lengths[who] and self.generator.random() < 0.8

    def _take(self, who: int) -> Chunk:
        left = self.lengths[who] - self.done[who]
        wanted = int(self.generator.choice([1, 2, 3, 17, 100, left - 1, left]))
        start = self.done[who]
        self.done[who] += min(max(wanted, 1), left)
        return Chunk(who, start, self.done[who])


def exact_attention(shape: Shape, rows_TF: Floats) -> tuple[Doubles, Doubles]:
    """In float64, of queries, keys and values as they are rounded: the result (T×HD), and what a
    relative change of every weight by one changes at most (the weighted mean of |v|)."""
    num_tokens, dim = len(rows_TF), shape.head_dim
    q_THD, k_TKD, v_TKD = np.split(
        rows_TF.reshape(num_tokens, -1, dim), [shape.num_heads, -shape.num_kv_heads], axis=1
    )
    queries = reference.bf16(q_THD).astype(np.float64)
    keys, values = (rounded_kv(shape, each) for each in (k_TKD, v_TKD))
    position = np.arange(num_tokens)
    distance = position[:, None] - position
    is_seen = (distance >= 0) & ((distance < shape.window) | (shape.window == 0))
    results, bounds = np.empty_like(queries), np.empty_like(queries)
    for head in range(shape.num_heads):
        kv_head = head // shape.group
        scores = np.where(is_seen, queries[:, head] @ keys[:, kv_head].T * shape.scale, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        results[:, head] = weights @ values[:, kv_head]
        bounds[:, head] = weights @ np.abs(values[:, kv_head])
    return results.reshape(num_tokens, -1), bounds.reshape(num_tokens, -1)


def rounded_kv(shape: Shape, x_TKD: Floats) -> Doubles:
    if not shape.is_int8:
        return reference.bf16(np.ascontiguousarray(x_TKD)).astype(np.float64)
    rounded = reference.quantize(x_TKD.reshape(-1, shape.head_dim), shape.head_dim)
    values: Doubles = rounded.q_TK.astype(np.float64) * rounded.scales_TG
    return values.reshape(x_TKD.shape)


shapes = st.builds(
    Shape,
    num_kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 4, 5, 7, 16]),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 128, 256]),
    block_size=st.sampled_from([16, 32, 64, 128]),
    is_int8=st.booleans(),
    window=st.sampled_from([0, 0, 0, 1, 5, 64, 100, 500, 600]),
)
seeds = st.integers(0, 999)


@real_settings
@given(shape=shapes, length=st.sampled_from(LENGTHS), seed=seeds)
def test_is_right(all_kernels: list[_native.Kernels], shape: Shape, length: int, seed: int) -> None:
    rows_TF = shape.random_rows(length, np.random.default_rng(seed))
    out = World.make(shape, [length], NOT_A_NUMBER, seed).compute(all_kernels[0], rows_TF, 0)
    expected, bound = exact_attention(shape, rows_TF)
    # Each weight is rounded to bf16, by 2^-8 of itself at most; all float32 sums together, and the
    # exponential, are off by far less than a fiftieth of that.
    assert np.all(np.abs(out - expected) <= 1.02 * 2.0**-8 * bound)


@real_settings
@given(
    shape=shapes,
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3),
    seed=seeds,
    garbage=st.sampled_from([NOT_A_NUMBER, 0x5A, 0x7F]),
    data=st.data(),
)
def test_same_bits_in_any_batch_and_chunks(
    all_kernels: list[_native.Kernels],
    shape: Shape,
    lengths: list[int],
    seed: int,
    garbage: int,
    data: st.DataObject,
) -> None:
    """Each sequence at once and alone, against steps that mix chunks of all of them, on any kernels
    and in other blocks. What is written later, or has left the window, is garbage."""
    generator = np.random.default_rng(seed)
    sequences = [shape.random_rows(length, generator) for length in lengths]
    alone = World.make(shape, lengths, NOT_A_NUMBER, seed)
    expected = [alone.compute(all_kernels[0], rows, who) for who, rows in enumerate(sequences)]

    kernels = data.draw(st.sampled_from(all_kernels), label="kernels")
    world = World.make(shape, lengths, garbage, seed + 1)
    for step in Progress(lengths, generator).steps():
        for chunk in step:
            if shape.window:
                passed = max(0, chunk.start + 1 - shape.window)
                world.poison(kernels, chunk.who, 0, passed)
            world.write(
                kernels, sequences[chunk.who][chunk.start : chunk.end], chunk.who, chunk.start
            )
        rows_TF = np.concatenate([sequences[each.who][each.start : each.end] for each in step])
        for chunk, out in zip(step, world.attend(kernels, rows_TF, step), strict=True):
            whole = expected[chunk.who][chunk.start : chunk.end]
            assert_same_bits(out, whole, f"{chunk} on {name_of(kernels)}")


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_same_bits_of_all_kernels(
    all_kernels: list[_native.Kernels], head_dim: int, is_int8: bool
) -> None:
    """Prefill and decode side by side, over three segments, on every instruction set and number of
    threads."""
    shape = Shape(num_kv_heads=2, group=3, head_dim=head_dim, block_size=16, is_int8=is_int8)
    lengths = [2 * SEGMENT + 70, 300, 3 * TILE]
    generator = np.random.default_rng(0)
    sequences = [shape.random_rows(length, generator) for length in lengths]
    world = World.make(shape, lengths, NOT_A_NUMBER, 0)
    whole = [world.compute(all_kernels[0], rows, who) for who, rows in enumerate(sequences)]
    spans = [Chunk(who, max(0, length - 120), length) for who, length in enumerate(lengths)]
    spans += [Chunk(who, length - 1, length) for who, length in enumerate(lengths)]
    rows_TF = np.concatenate([sequences[each.who][each.start : each.end] for each in spans])
    for kernels in all_kernels:
        for span, out in zip(spans, world.attend(kernels, rows_TF, spans), strict=True):
            assert_same_bits(out, whole[span.who][span.start : span.end], name_of(kernels))


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("window", [0, 7, 8])
def test_a_broken_key_harms_only_who_sees_it(
    all_kernels: list[_native.Kernels], window: int, is_int8: bool
) -> None:
    """NaN in one sequence, at an odd and at an even position: not before, not past the window, and
    in no other sequence."""
    shape = Shape(1, group=2, head_dim=32, block_size=16, is_int8=is_int8, window=window)
    length = 100
    generator = np.random.default_rng(0)
    sequences = [shape.random_rows(length, generator) for _ in range(2)]
    world = World.make(shape, [length, length], 0, 0)
    whole = [world.compute(all_kernels[0], rows, who) for who, rows in enumerate(sequences)]
    spans = [Chunk(who, 0, length) for who in range(2)]
    for kernels, broken in itertools.product(all_kernels, (41, 70)):
        world.poison(kernels, 1, broken, broken + 1)
        good, bad = world.attend(kernels, np.concatenate(sequences), spans)
        world.write(kernels, sequences[1][broken : broken + 1], 1, broken)
        assert_same_bits(good, whole[0], name_of(kernels))
        end = broken + window if window else length
        for part in (slice(0, broken), slice(end, length)):
            assert_same_bits(bad[part], whole[1][part], name_of(kernels))
        assert np.isnan(bad[broken:end]).all(), f"the pool was not read by {name_of(kernels)}"


def test_large_scores_do_not_overflow(all_kernels: list[_native.Kernels]) -> None:
    """Scores in the thousands: one key has all the weight, wherever it lies."""
    shape = Shape(num_kv_heads=1, group=1, head_dim=16, block_size=16, is_int8=False)
    length = SEGMENT + 100
    rows_TF = np.zeros((length, 48), np.float32)
    rows_TF[:, 0] = 300.0
    rows_TF[:, 16] = np.random.default_rng(0).permutation(length) * 8.0
    rows_TF[:, 32] = np.arange(length) % 128
    out_TD = World.make(shape, [length], NOT_A_NUMBER, 0).compute(all_kernels[0], rows_TF, 0)
    keys = reference.bf16(rows_TF[:, 16])
    for position in range(length):
        seen = keys[: position + 1]
        ties = rows_TF[: position + 1, 32][seen == seen.max()]
        assert abs(out_TD[position, 0] - ties.mean()) <= 2.0**-8 * ties.mean()
