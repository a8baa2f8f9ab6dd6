"""Floats rounded to 8 bits with one scale per output feature."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kernels.quantized import QuantizedMatrix, quantize_per_channel

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def normal(num_out: int, num_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(seed))


@given(
    num_out=st.integers(1, 40),
    num_groups=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 3e4]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_every_value_is_off_by_half_a_step_at_most(
    num_out: int, num_groups: int, dtype: torch.dtype, magnitude: float, seed: int
) -> None:
    weight = (magnitude * normal(num_out, 32 * num_groups, seed).clamp(-2, 2)).to(dtype)
    matrix = quantize_per_channel(weight)

    exact = weight.double().numpy()
    scales = matrix.scales_FG.astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    # Two roundings of float32: one in the scale, one where the value is divided by it.
    assert np.allclose(scales, largest / 127, rtol=2**-23, atol=0)
    values = scales * (matrix.q_FK.astype(np.float64) - 128)
    assert (np.abs(values - exact) <= scales * (0.5 + 127 * 2**-23)).all()
    assert matrix.dequantized().shape == weight.shape


def test_form() -> None:
    matrix = quantize_per_channel(normal(3, 64))
    assert (matrix.bits, matrix.group, matrix.zero_point, matrix.mins_FG) == (8, 64, 128, None)
    assert matrix.scales_FG.dtype == np.float32
    assert matrix.scales_FG.shape == (3, 1)


def test_the_largest_value_is_127_on_both_sides() -> None:
    weight = torch.zeros(2, 32)
    weight[0, 3], weight[1, 5] = 0.3, -0.7
    q = quantize_per_channel(weight).q_FK
    assert (q[0, 3], q[1, 5], q[0, 0]) == (128 + 127, 128 - 127, 128)


def test_ties_go_to_even() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :5] = torch.tensor([127.0, 0.5, 1.5, -0.5, -2.5])
    assert quantize_per_channel(weight).q_FK[0, :5].tolist() == [255, 128, 130, 128, 126]


@pytest.mark.parametrize("value", [0.0, 1e-45, 100 * SMALLEST_NORMAL])
def test_a_row_too_small_for_a_scale_is_zero(value: float) -> None:
    weight = normal(3, 32)
    weight[1] = value
    matrix = quantize_per_channel(weight)
    assert matrix.scales_FG[1] == 0.0
    assert (matrix.q_FK[1] == 128).all()
    assert (matrix.scales_FG[[0, 2]] > 0.0).all()


def test_rows_do_not_know_each_other() -> None:
    weight = normal(2500, 32)
    whole = quantize_per_channel(weight)
    for row in (0, 1023, 1024, 2499):
        alone = quantize_per_channel(weight[row : row + 1])
        assert np.array_equal(alone.q_FK[0], whole.q_FK[row])
        assert alone.scales_FG[0] == whole.scales_FG[row]


def test_rows_in_another_order() -> None:
    generator = np.random.default_rng(0)
    matrix = QuantizedMatrix(
        generator.integers(0, 16, (6, 64), dtype=np.uint8),
        generator.normal(size=(6, 2)).astype(np.float16),
        generator.normal(size=(6, 2)).astype(np.float16),
        zero_point=0,
        group=32,
        bits=4,
    )
    order = np.array([5, 0, 3, 3])
    assert np.array_equal(matrix.rows(order).dequantized(), matrix.dequantized()[order])
