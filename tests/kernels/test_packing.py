"""Packed weights, read byte by byte as csrc/kernels.h describes them, and turned back."""

import struct

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kernels.packing import (
    PackedWeight,
    WeightForm,
    can_interleave,
    interleave_gate_up,
    pack,
    unpack,
)
from baton.kernels.quantized import QuantizedMatrix, quantize_per_channel

Weight = QuantizedMatrix | torch.Tensor


def quantized(
    num_out: int,
    num_in: int,
    *,
    bits: int = 4,
    group: int = 32,
    half: bool = True,
    has_min: bool = False,
    zero_point: int = 0,
    seed: int = 0,
) -> QuantizedMatrix:
    """Random values; as in K quants, float32 scales are halves times a few bits."""
    generator = np.random.default_rng(seed)
    num_groups = num_in // group

    def floats() -> npt.NDArray[np.floating]:
        halves = generator.normal(size=(num_out, num_groups)).astype(np.float16)
        if half:
            return halves
        return halves.astype(np.float32) * generator.integers(1, 32, halves.shape, np.uint8)

    q_FK = generator.integers(0, 2**bits, (num_out, num_in), dtype=np.uint8)
    return QuantizedMatrix(q_FK, floats(), floats() if has_min else None, zero_point, group, bits)


def dense(num_out: int, num_in: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_out, num_in, generator=generator).to(dtype)


def values_of(weight: Weight) -> npt.NDArray[np.float32]:
    return weight.dequantized() if isinstance(weight, QuantizedMatrix) else weight.float().numpy()


def value_at(packed: PackedWeight, feature: int, index: int) -> float:
    """One value by the words of csrc/kernels.h, in exact arithmetic but for a last rounding."""
    panel = packed.data.tobytes()[feature // 16 * packed.panel_bytes :]
    lane = feature % 16
    if packed.form is WeightForm.F32:  # [K][16]
        return struct.unpack_from("<f", panel, 4 * (16 * index + lane))[0]
    if packed.form is WeightForm.BF16:  # [K/2][16][2]
        at = 2 * (32 * (index // 2) + 2 * lane + index % 2)
        return struct.unpack("<f", b"\0\0" + panel[at : at + 2])[0]
    is_nibble = packed.form is WeightForm.UINT4
    scale_format, scale_bytes = ("<e", 2) if packed.has_half_scales else ("<f", 4)
    header_bytes = 16 * scale_bytes * (2 if packed.has_min else 1)
    group_bytes = header_bytes + 16 * packed.group // (2 if is_nibble else 1)
    group = panel[index // packed.group * group_bytes :]
    scale = struct.unpack_from(scale_format, group, scale_bytes * lane)[0]
    least = struct.unpack_from(scale_format, group, scale_bytes * (16 + lane))[0]
    values = group[header_bytes:]
    inner = index % packed.group
    if is_nibble:
        both = values[64 * (inner // 8) + 4 * lane + inner % 4]
        q = both & 15 if inner % 8 < 4 else both >> 4
    else:
        q = values[64 * (inner // 4) + 4 * lane + inner % 4]
    return float(np.float32(scale * (q - packed.zero_point) + (least if packed.has_min else 0.0)))


FORMS: dict[str, Weight] = {
    "Q4_0": quantized(20, 64, zero_point=8),
    "Q4_1": quantized(20, 64, has_min=True),
    "Q4_K": quantized(20, 64, half=False, has_min=True),
    "Q5_0": quantized(20, 64, bits=8, zero_point=16),
    "Q5_1": quantized(20, 64, bits=8, has_min=True),
    "Q5_K": quantized(20, 64, bits=8, half=False, has_min=True),
    "Q6_K": quantized(20, 64, bits=8, group=16, half=False, zero_point=32),
    "Q8_0": quantized(20, 64, bits=8, zero_point=128),
    "per channel": quantize_per_channel(dense(20, 64, torch.float32)),
    "bf16": dense(20, 64, torch.bfloat16),
    "f32": dense(20, 64, torch.float32),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_value_is_where_the_kernels_look(name: str) -> None:
    weight = FORMS[name]
    packed = pack(weight)
    expected = values_of(weight)
    for feature in range(20):
        for index in range(64):
            assert value_at(packed, feature, index) == expected[feature, index]


@pytest.mark.parametrize("name", FORMS)
def test_lanes_without_a_feature_are_zero(name: str) -> None:
    packed = pack(FORMS[name])
    assert packed.num_panels == 2
    for field in packed.records().dtype.names or ():
        assert not packed.records()[field][1, ..., 4:].any()
        assert packed.records()[field][1, ..., :4].any()


@pytest.mark.parametrize("name", FORMS)
def test_data_is_an_aligned_copy(name: str) -> None:
    weight = FORMS[name]
    packed = pack(weight)
    assert packed.data.ctypes.data % 64 == 0
    assert len(packed.data) == packed.num_panels * packed.panel_bytes
    source = (
        weight.q_FK if isinstance(weight, QuantizedMatrix) else weight.view(torch.uint8).numpy()
    )
    assert not np.shares_memory(packed.data, source)


@pytest.mark.parametrize(
    ("name", "panel_bytes"),
    [
        ("Q4_0", 2 * (32 + 256)),
        ("Q4_1", 2 * (64 + 256)),
        ("Q4_K", 2 * (128 + 256)),
        ("Q6_K", 4 * (64 + 256)),
        ("Q8_0", 2 * (32 + 512)),
        ("per channel", 64 + 1024),
        ("bf16", 2048),
        ("f32", 4096),
    ],
)
def test_panel_bytes(name: str, panel_bytes: int) -> None:
    assert pack(FORMS[name]).panel_bytes == panel_bytes


quantized_matrices = st.builds(
    quantized,
    num_out=st.integers(1, 70),
    num_in=st.sampled_from([32, 64, 96, 256]),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([16, 32]),
    half=st.booleans(),
    has_min=st.just(False),
    zero_point=st.integers(0, 128),
    seed=st.integers(0, 1000),
)
dense_matrices = st.builds(
    dense,
    num_out=st.integers(1, 70),
    num_in=st.integers(1, 70),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)


@given(weight=st.one_of(quantized_matrices, dense_matrices))
@settings(max_examples=150, deadline=None)
def test_there_and_back(weight: Weight) -> None:
    values = unpack(pack(weight))
    expected = values_of(weight)
    assert np.array_equal(values[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("num_out", [1, 15, 16, 17, 32])
def test_there_and_back_with_minimums(num_out: int) -> None:
    weight = quantized(num_out, 96, has_min=True)
    assert np.array_equal(unpack(pack(weight)), weight.dequantized())


def test_bits_of_floats_are_kept() -> None:
    """Infinities, NaN payloads, negative zeros and denormals."""
    bits = torch.tensor([0x7F800000, 0x7FC12345, -0x80000000, 1, 0x3F800001], dtype=torch.int32)
    weight = bits.repeat(3, 1).view(torch.float32)
    assert np.array_equal(unpack(pack(weight)).view(np.int32), weight.view(torch.int32).numpy())
    bf16 = (bits >> 16).to(torch.int16).repeat(3, 2).view(torch.bfloat16)
    expected = bf16.float().view(torch.int32).numpy()
    assert np.array_equal(unpack(pack(bf16)).view(np.int32), expected)


def test_an_odd_number_of_bf16_inputs_is_filled_up() -> None:
    weight = dense(5, 7, torch.bfloat16)
    packed = pack(weight)
    assert (packed.num_in, packed.panel_bytes) == (8, 4 * 16 * 2 * 2)
    values = unpack(packed)
    assert np.array_equal(values[:, :7], weight.float().numpy())
    assert not values[:, 7].any()


def test_a_view_of_a_tensor() -> None:
    weight = dense(40, 64, torch.float32).t()
    assert np.array_equal(unpack(pack(weight)), weight.numpy())


@pytest.mark.parametrize("name", FORMS)
def test_gate_and_up_alternate(name: str) -> None:
    weight = FORMS[name]
    rows = np.resize(np.arange(20), 32)
    gate_weight, up_weight = _rows(weight, rows), _rows(weight, rows[::-1].copy())
    gate, up = pack(gate_weight), pack(up_weight)
    both = interleave_gate_up(gate, up)
    assert both.num_out == 64
    assert both.data.ctypes.data % 64 == 0
    panels = unpack(both).reshape(2, 2, 16, 64)
    assert np.array_equal(panels[:, 0].reshape(32, 64), values_of(gate_weight))
    assert np.array_equal(panels[:, 1].reshape(32, 64), values_of(up_weight))


def _rows(weight: Weight, order: npt.NDArray[np.intp]) -> Weight:
    return weight.rows(order) if isinstance(weight, QuantizedMatrix) else weight[order]


def test_what_cannot_be_interleaved() -> None:
    gate = pack(quantized(32, 64))
    assert can_interleave(gate, pack(quantized(32, 64, seed=1)))
    others = [
        quantized(48, 64),
        quantized(32, 96),
        quantized(32, 64, bits=8),
        quantized(32, 64, group=16),
        quantized(32, 64, zero_point=8),
        quantized(32, 64, half=False),
        quantized(32, 64, has_min=True),
    ]
    for other in others:
        assert not can_interleave(gate, pack(other))
    partial = pack(quantized(20, 64))
    assert not can_interleave(partial, partial)
