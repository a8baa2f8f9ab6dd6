"""What the C++ kernel does between a product and attention: head norms, rotation, rounding keys and
values, and writing them to their slots in the pool.

Elsewhere: reading them back (test_native_attention.py), the layout (kernels/reference.py).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kernels import _native, reference
from baton.kvcache.layout import KvLayout
from baton.testing.native_kernels import assert_same_bits, name_of

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
NUM_LAYERS, LAYER, NUM_BLOCKS = 3, 1, 7
EPS = 1e-6

exact = settings(deadline=None, derandomize=True, max_examples=60)


@dataclass(frozen=True)
class Shape:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    is_int8: bool

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

    @property
    def num_slots(self) -> int:
        return NUM_BLOCKS * self.block_size

    def read(self, memory: Bytes) -> reference.PoolKv:
        return reference.read_pool(
            memory,
            num_layers=NUM_LAYERS,
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            is_int8=self.is_int8,
        )


@dataclass(frozen=True)
class Rows:
    """Arguments of `rotary_write`."""

    qkv_TF: Floats
    cos_TD: Floats
    sin_TD: Floats
    slots_T: npt.NDArray[np.int64]
    norms: tuple[Floats, Floats] | None

    def choose(self, rows: npt.NDArray[np.intp]) -> "Rows":
        return Rows(
            self.qkv_TF[rows], self.cos_TD[rows], self.sin_TD[rows], self.slots_T[rows], self.norms
        )


def make_rows(shape: Shape, num_rows: int, has_norms: bool, seed: int) -> Rows:
    """Also rows of zeros and of very large and very small values."""
    generator = np.random.default_rng(seed)
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    qkv = generator.normal(size=(num_rows, width))
    qkv *= 10.0 ** generator.choice([-42, -37, -20, 0, 0, 0, 4, 30], size=(num_rows, 1))
    qkv[generator.random(num_rows) < 0.1] = 0.0
    angles = generator.uniform(-np.pi, np.pi, (num_rows, shape.head_dim // 2))
    slots = generator.choice(shape.num_slots, num_rows, replace=False)
    norms = generator.normal(size=(2, shape.head_dim)).astype(np.float32)
    return Rows(
        qkv.astype(np.float32),
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
        slots.astype(np.int64),
        (norms[0], norms[1]) if has_norms else None,
    )


def empty_memory(shape: Shape) -> Bytes:
    """No slot is ever 0xA5 in all its bytes by chance."""
    return np.full(NUM_BLOCKS * shape.block_bytes, 0xA5, np.uint8)


def run(kernels: _native.Kernels, shape: Shape, rows: Rows, memory: Bytes) -> Floats:
    """Writes to `memory`; returns the rotated rows."""
    pool = _native.Pool(
        memory, NUM_LAYERS, shape.block_size, shape.num_kv_heads, shape.head_dim, shape.is_int8
    )
    qkv_TF = rows.qkv_TF.copy()
    q_norm, k_norm = rows.norms or (None, None)
    kernels.rotary_write(
        pool, LAYER, qkv_TF, shape.num_heads, q_norm, k_norm, EPS,
        rows.cos_TD, rows.sin_TD, rows.slots_T,
    )  # fmt: skip
    return qkv_TF


def expected_rows(shape: Shape, rows: Rows) -> Floats:
    heads_THD = rows.qkv_TF.reshape(len(rows.qkv_TF), -1, shape.head_dim)
    bounds = [shape.num_heads, shape.num_heads + shape.num_kv_heads]
    *turned, values = np.split(heads_THD, bounds, axis=1)
    for index, norm_D in enumerate(rows.norms or ()):
        flat = turned[index].reshape(-1, shape.head_dim)
        turned[index] = reference.rms_norm(flat, norm_D, EPS).reshape(turned[index].shape)
    rotated = [reference.rotary(each, rows.cos_TD, rows.sin_TD) for each in turned]
    return np.concatenate([*rotated, values], axis=1).reshape(rows.qkv_TF.shape)


shapes = st.builds(
    Shape,
    num_heads=st.integers(1, 5),
    num_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 128, 256]),
    block_size=st.sampled_from([16, 32, 64]),
    is_int8=st.booleans(),
)


@exact
@given(shape=shapes, num_rows=st.integers(1, 60), has_norms=st.booleans(), seed=st.integers(0, 999))
def test_rows_and_pool(
    all_kernels: list[_native.Kernels], shape: Shape, num_rows: int, has_norms: bool, seed: int
) -> None:
    rows = make_rows(shape, num_rows, has_norms, seed)
    memory = empty_memory(shape)
    result = run(all_kernels[0], shape, rows, memory)
    assert_same_bits(result, expected_rows(shape, rows), "against the reference")
    assert_pool_holds(shape, memory, rows.slots_T, result)

    order = np.random.default_rng(seed).permutation(num_rows)
    for kernels in all_kernels:
        for chosen in (np.arange(num_rows), order):
            own_memory = empty_memory(shape)
            own = run(kernels, shape, rows.choose(chosen), own_memory)
            assert_same_bits(own, result[chosen], name_of(kernels))
            assert np.array_equal(own_memory, memory), f"pool of {name_of(kernels)}"
    one_by_one = empty_memory(shape)
    for row in range(num_rows):
        own = run(all_kernels[0], shape, rows.choose(order[row : row + 1]), one_by_one)
        assert_same_bits(own[0], result[order[row]], f"row {order[row]} alone")
    assert np.array_equal(one_by_one, memory), "pool written row by row"


def assert_pool_holds(
    shape: Shape, memory: Bytes, slots_T: npt.NDArray[np.int64], qkv_TF: Floats
) -> None:
    """The keys and values of these rows at these slots, and nothing else touched."""
    pool, before = shape.read(memory), shape.read(empty_memory(shape))
    heads_THD = qkv_TF.reshape(len(qkv_TF), -1, shape.head_dim)[:, shape.num_heads :]
    keys_TKD, values_TKD = np.split(heads_THD, 2, axis=1)
    blocks, offsets = np.divmod(slots_T, shape.block_size)
    for written, scales, empty, source in (
        (pool.keys, pool.key_scales, before.keys, keys_TKD),
        (pool.values, pool.value_scales, before.values, values_TKD),
    ):
        # Advanced indices apart from each other put their own dimension first: T×K×D.
        own = written[blocks, LAYER, :, offsets]
        if scales is None:
            assert_same_bits(own, reference.bf16(source), "pool")
        else:
            rounded = reference.quantize(source.reshape(-1, shape.head_dim), shape.head_dim)
            own_scales = scales[blocks, LAYER, :, offsets]
            assert_same_bits(own_scales, rounded.scales_TG.reshape(own_scales.shape), "scales")
            has_scale = (own_scales > 0)[:, :, None]
            assert np.array_equal(own * has_scale, rounded.q_TK.reshape(own.shape) * has_scale)
        written[blocks, LAYER, :, offsets] = empty[blocks, LAYER, :, offsets]
        assert np.array_equal(written, empty, equal_nan=True), "another slot was touched"


@pytest.mark.parametrize("is_int8", [False, True])
def test_a_broken_row_harms_no_other(all_kernels: list[_native.Kernels], is_int8: bool) -> None:
    """Rows 2 and 3 share registers of the pool with the others."""
    shape = Shape(2, 2, 32, 16, is_int8)
    rows = make_rows(shape, 16, True, 0)
    rows.slots_T[:] = np.arange(16)
    whole = empty_memory(shape)
    expected = run(all_kernels[0], shape, rows, whole)
    rows.qkv_TF[[2, 3], ::7] = np.nan
    others = np.delete(np.arange(16), [2, 3])
    for kernels in all_kernels:
        memory = empty_memory(shape)
        result = run(kernels, shape, rows, memory)
        assert_same_bits(result[others], expected[others], name_of(kernels))
        assert_pool_holds_same(shape, memory, whole, others)


def assert_pool_holds_same(
    shape: Shape, memory: Bytes, other: Bytes, offsets: npt.NDArray[np.intp]
) -> None:
    one, two = shape.read(memory), shape.read(other)
    for name in ("keys", "values", "key_scales", "value_scales"):
        if getattr(one, name) is not None:
            mine, theirs = (getattr(pool, name)[0, LAYER][:, offsets] for pool in (one, two))
            assert np.array_equal(mine, theirs), name
