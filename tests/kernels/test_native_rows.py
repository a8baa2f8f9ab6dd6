"""The C++ kernels that work on single rows: norm, embedding, the MLP's gate.

Elsewhere: products (test_native_linear.py), rotation and the KV pool (test_native_rotary.py).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kernels import _native, reference
from baton.kernels.native import native_weight
from baton.kernels.packing import pack
from baton.kernels.quantized import QuantizedMatrix, quantize_per_channel
from baton.testing.native_kernels import assert_same_bits, name_of

Floats = npt.NDArray[np.float32]
Run = Callable[[_native.Kernels, Floats], Floats]

exact = settings(deadline=None, derandomize=True, max_examples=60)
widths = st.integers(1, 40).map(lambda count: 16 * count)
row_counts = st.integers(1, 70)
seeds = st.integers(0, 2**16)


def rows_of_all_magnitudes(num_rows: int, width: int, seed: int) -> Floats:
    """Also rows of zeros, of denormals, and of values whose squares are infinite."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(num_rows, width))
    rows *= 10.0 ** generator.choice([-42, -37, -20, 0, 0, 0, 4, 30], size=(num_rows, 1))
    rows[generator.random(num_rows) < 0.2] = 0.0
    return rows.astype(np.float32)


def vector(width: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=width).astype(np.float32)


def assert_rows_are_independent(
    run: Run, x: Floats, seed: int, all_kernels: list[_native.Kernels]
) -> Floats:
    """Every instruction set, in another order, and each row alone. Returns the result."""
    result = run(all_kernels[0], x)
    shuffled = np.random.default_rng(seed).permutation(len(x))
    for kernels in all_kernels:
        assert_same_bits(run(kernels, x), result, name_of(kernels))
        assert_same_bits(run(kernels, x[shuffled]), result[shuffled], name_of(kernels))
    for index in range(len(x)):
        alone = run(all_kernels[0], x[index : index + 1])
        assert_same_bits(alone[0], result[index], f"row {index} alone")
    return result


@exact
@given(num_rows=row_counts, width=widths, eps=st.sampled_from([1e-5, 1e-6, 0.0]), seed=seeds)
def test_rms_norm(
    all_kernels: list[_native.Kernels], num_rows: int, width: int, eps: float, seed: int
) -> None:
    x_TK, weight_K = rows_of_all_magnitudes(num_rows, width, seed), vector(width, seed + 1)

    def run(kernels: _native.Kernels, x: Floats) -> Floats:
        y = np.empty_like(x)
        kernels.rms_norm(x, weight_K, eps, y)
        return y

    result = assert_rows_are_independent(run, x_TK, seed, all_kernels)
    assert_same_bits(result, reference.rms_norm(x_TK, weight_K, eps), "against the reference")


@pytest.mark.parametrize("width", [16, 576, 4096])
def test_the_norm_of_the_reference_is_a_norm(width: int) -> None:
    """In float64. The sum's terms are positive, so its relative error is at most that of width/16
    additions in a lane and 4 across; a root halves it, and 5 roundings follow."""
    x_TK = rows_of_all_magnitudes(20, width, 1)
    x_TK = x_TK[(np.abs(x_TK).max(axis=1) < 1e6) & (np.abs(x_TK).max(axis=1) > 1e-6)]
    weight_K = vector(width, 2)
    exact_x = x_TK.astype(np.float64)
    rms = np.sqrt(np.square(exact_x).mean(axis=1, keepdims=True) + 1e-5)
    expected = exact_x / rms * weight_K
    error = np.abs(reference.rms_norm(x_TK, weight_K, 1e-5) - expected)
    assert (error <= ((width / 16 + 4) / 2 + 5) * 2.0**-24 * np.abs(expected)).all()


@exact
@given(num_rows=row_counts, width=widths, seed=seeds)
def test_silu_mul(all_kernels: list[_native.Kernels], num_rows: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    gate = generator.uniform(-120, 120, (num_rows, width)).astype(np.float32)
    gate[generator.random(gate.shape) < 0.5] /= 30
    up = rows_of_all_magnitudes(num_rows, width, seed)

    def run(kernels: _native.Kernels, both: Floats) -> Floats:
        y = np.empty_like(gate[: len(both)])
        own_gate, own_up = map(np.ascontiguousarray, np.split(both, 2, axis=1))
        kernels.silu_mul(own_gate, own_up, y)
        return y

    both = np.concatenate([gate, up], axis=1)
    result = assert_rows_are_independent(run, both, seed, all_kernels)
    exact_result = reference.silu_mul(gate, reference.flush(up))
    # A float32 exponential of g is off by 2^-24 |g| from its argument alone; the rest is a few
    # roundings. The kernels' sigmoid stops at 2^-126.
    bound = (4 + np.abs(gate)) * 2.0**-23 * np.abs(exact_result)
    floor = 2.0**-125 * np.maximum(np.abs(gate), 1.0) * np.maximum(np.abs(up), 1.0)
    assert (np.abs(result - exact_result) <= bound + floor).all()


def quantized(num_out: int, num_in: int, *, bits: int, group: int, has_min: bool, seed: int,
              dtype: type[np.floating]) -> QuantizedMatrix:  # fmt: skip
    generator = np.random.default_rng(seed)
    q_FK = generator.integers(0, 2**bits, (num_out, num_in), dtype=np.uint8)
    scales, mins = generator.normal(size=(2, num_out, num_in // group)).astype(dtype)
    zero_point = 0 if has_min else 2 ** (bits - 1)
    return QuantizedMatrix(q_FK, scales, mins if has_min else None, zero_point, group, bits)


def dense(num_out: int, num_in: int, seed: int) -> torch.Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(seed))


@exact
@given(
    num_out=st.integers(1, 70),
    num_in=st.integers(1, 6).map(lambda count: 32 * count),
    name=st.sampled_from(["u4", "u8", "u8 of 16", "per channel", "bf16", "f32"]),
    has_min=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32]),
    seed=seeds,
)
def test_embed(
    all_kernels: list[_native.Kernels],
    num_out: int,
    num_in: int,
    name: str,
    has_min: bool,
    dtype: type[np.floating],
    seed: int,
) -> None:
    """Rows of the table as the checkpoint's own definition has them."""
    table: reference.Weight = dense(num_out, num_in, seed)
    if name == "per channel":
        table = quantize_per_channel(dense(num_out, num_in, seed))
    elif name == "bf16":
        table = dense(num_out, num_in, seed).bfloat16()
    elif name != "f32":
        group = 16 if name == "u8 of 16" else 32
        table = quantized(num_out, num_in, bits=int(name[1]), group=group,
                          has_min=has_min and group == 32, dtype=dtype, seed=seed)  # fmt: skip
    is_quantized = isinstance(table, QuantizedMatrix)
    expected = table.dequantized() if is_quantized else table.float().numpy()
    ids = np.random.default_rng(seed).integers(0, num_out, 50)
    for kernels in all_kernels:
        y = np.empty((50, num_in), np.float32)
        kernels.embed(native_weight(pack(table)), ids, y)
        assert_same_bits(y, expected[ids], name_of(kernels))
