"""Quantized GGUF tensors, unpacked: the bits of the gguf package, from blocks and from files."""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.checkpoint import GgufFile, GgufTensor, HfFolder, read_model_card
from baton.core.errors import CheckpointError
from baton.kernels.packing import pack, unpack
from baton.kernels.quantized import QuantizedMatrix
from baton.models.config_gguf import config_from_gguf
from baton.models.gguf_blocks import is_quantized, matrix_of
from baton.models.gguf_source import GgufSource, halves_from_neighbours
from baton.models.registry import load_model
from baton.models.safetensors_source import SafetensorsSource
from baton.models.weights import Weights
from baton.testing.k_quants import KQuantName, quantize_k
from baton.testing.tiny_gguf import TENSOR_TYPES, TensorTypeName, write_tiny_gguf
from baton.testing.tiny_models import Architecture, write_tiny_model

# Where a block has halves (byte offsets), and what its matrix is: bits, zero point, group, half.
TYPES = {
    "Q4_0": ((0,), (4, 8, 32, np.float16)),
    "Q4_1": ((0, 2), (4, 0, 32, np.float16)),
    "Q5_0": ((0,), (8, 16, 32, np.float16)),
    "Q5_1": ((0, 2), (8, 0, 32, np.float16)),
    "Q8_0": ((0,), (8, 128, 32, np.float16)),
    "Q4_K": ((0, 2), (4, 0, 32, np.float32)),
    "Q5_K": ((0, 2), (8, 0, 32, np.float32)),
    "Q6_K": ((208,), (8, 32, 16, np.float32)),
}
QUANTIZED = [name for name in TENSOR_TYPES if name in TYPES]
LARGEST_HALF = 0x7BFF


def same_bits(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@st.composite
def raw_tensors(draw: st.DrawFn, type_name: str) -> GgufTensor:
    """Random bytes, with halves that are finite: zeros of both signs, denormals, the largest."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    num_rows, num_blocks = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = generator.integers(0, 256, (num_rows * num_blocks, block_bytes), dtype=np.uint8)
    extremes = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, LARGEST_HALF, 0xFBFF]
    for offset in TYPES[type_name][0]:
        halves = generator.integers(0, LARGEST_HALF + 1, len(blocks), dtype=np.uint16)
        halves |= generator.integers(0, 2, len(blocks), dtype=np.uint16) << 15
        halves[0] = draw(st.sampled_from(extremes))
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    shape = (num_rows, num_blocks * block_size)
    return GgufTensor("w", type_name, shape, blocks.reshape(num_rows, -1))


@pytest.mark.parametrize("type_name", QUANTIZED)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_values_have_the_bits_of_the_gguf_package(type_name: str, data: st.DataObject) -> None:
    tensor = data.draw(raw_tensors(type_name))
    kind = gguf.GGMLQuantizationType[type_name]
    expected = gguf.quants.dequantize(tensor.data, kind)
    matrix = matrix_of(tensor)
    assert matrix.shape == tensor.shape
    assert same_bits(matrix.dequantized(), expected)
    assert same_bits(unpack(pack(matrix)), expected)


@pytest.mark.parametrize("type_name", QUANTIZED)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_scales_are_kept_exactly(type_name: str, data: st.DataObject) -> None:
    """In float64, where nothing here can round: the form has the real value that ggml defines."""
    tensor = data.draw(raw_tensors(type_name))
    matrix = matrix_of(tensor)
    bits, zero_point, group, scale_type = TYPES[type_name][1]
    assert (matrix.bits, matrix.zero_point, matrix.group) == (bits, zero_point, group)
    assert matrix.scales_FG.dtype == scale_type
    assert matrix.q_FK.max() < 2**bits
    q = matrix.q_FK.astype(np.float64).reshape(*matrix.scales_FG.shape, group) - zero_point
    values = q * matrix.scales_FG.astype(np.float64)[:, :, None]
    if matrix.mins_FG is not None:
        values += matrix.mins_FG.astype(np.float64)[:, :, None]
    # One float32 rounding is all that lies between the real value and the dequantized one.
    rounded = values.astype(np.float32).reshape(matrix.shape)
    assert np.array_equal(rounded, matrix.dequantized())


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_written_k_quants_are_near_the_floats(kind: KQuantName) -> None:
    values = np.random.default_rng(0).normal(size=(7, 512)).astype(np.float32)
    raw = quantize_k(values, kind)
    read = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    # A group of normal values spans about 4: in 15, 31 or 63 steps, each off by a third at most.
    error = np.sqrt(np.square(read - values).mean())
    assert error < {"Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.023}[kind]
    assert not quantize_k(np.zeros((2, 256), np.float32), kind)[:, :2].any()


def open_source(path: Path) -> GgufSource:
    file = GgufFile(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return GgufSource(file, config_from_gguf(file.metadata, shapes, str(path)))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tensor_type", TENSOR_TYPES)
def test_a_matrix_has_the_values_that_read_gives(
    tmp_path: Path, tensor_type: TensorTypeName, architecture: Architecture
) -> None:
    """Also where rows are put back in order."""
    source = open_source(
        write_tiny_gguf(tmp_path / "tiny.gguf", architecture, tensor_type=tensor_type)
    )
    matrices = [(name, shape) for name, shape in source.shapes().items() if len(shape) == 2]
    assert len(matrices) == 2 + 3 * 7
    for name, shape in matrices:
        matrix = source.read_matrix(name)
        assert tuple(matrix.shape) == shape
        assert isinstance(matrix, QuantizedMatrix) == (tensor_type in TYPES)
        if isinstance(matrix, torch.Tensor):
            expected = torch.bfloat16 if tensor_type == "BF16" else torch.float32
            assert matrix.dtype == expected
        assert same_bits(unpack(pack(matrix)), source.read(name).numpy())


@pytest.mark.parametrize("tensor_type", TENSOR_TYPES)
def test_a_model_of_each_type_loads(tmp_path: Path, tensor_type: TensorTypeName) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3", tensor_type=tensor_type)
    load_model(read_model_card(path))


def test_types_can_differ_within_a_layer(tmp_path: Path) -> None:
    """As llama.cpp's Q4_K_M has it."""
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf", tensor_type="Q4_K", other_types={"v_proj": "Q6_K"}
    )
    types = {tensor.type_name for tensor in GgufFile(path).tensors.values()}
    assert types == {"Q4_K", "Q6_K", "F32"}
    value = open_source(path).read_matrix("model.layers.1.self_attn.v_proj.weight")
    assert isinstance(value, QuantizedMatrix)
    assert value.group == 16


def test_vectors_and_floats_are_not_quantized(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type="Q4_0")
    tensors = GgufFile(path).tensors
    assert is_quantized(tensors["blk.0.attn_q.weight"])
    assert not is_quantized(tensors["blk.0.attn_norm.weight"])


@given(num_heads=st.integers(1, 5), half=st.integers(1, 8))
def test_halves_from_neighbours(num_heads: int, half: int) -> None:
    order = halves_from_neighbours(2 * half * num_heads, num_heads)
    for head in range(num_heads):
        start = 2 * half * head
        own = order[start : start + 2 * half].tolist()
        assert own[:half] == [start + 2 * index for index in range(half)]
        assert own[half:] == [start + 2 * index + 1 for index in range(half)]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type="Q8_0")
    return Weights(open_source(path), "cpu")


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def test_take_matrix(weights: Weights) -> None:
    matrix = weights.take_matrix(Q_PROJ, 64, 64)
    assert isinstance(matrix, QuantizedMatrix)
    assert matrix.zero_point == 128
    with pytest.raises(CheckpointError) as caught:
        weights.check_all_taken()
    assert Q_PROJ not in str(caught.value)


def test_take_matrix_of_another_shape(weights: Weights) -> None:
    with pytest.raises(CheckpointError, match=r"should have shape \(64, 96\); found \(64, 64\)"):
        weights.take_matrix(Q_PROJ, 64, 96)
    with pytest.raises(CheckpointError, match=r"nowhere.* it is not there"):
        weights.take_matrix("nowhere", 64, 96)


def test_what_is_quantized_already_stays_so(weights: Weights) -> None:
    matrix = weights.take_matrix(Q_PROJ, 64, 64, to_int8=True)
    assert isinstance(matrix, QuantizedMatrix)
    assert matrix.group == 32


class OneTensor:
    """Implements `weights.TensorSource`."""

    path = Path("model.safetensors")

    def __init__(self, values: torch.Tensor):
        self._values = values

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": tuple(self._values.shape)}

    def read(self, name: str) -> torch.Tensor:
        return self._values.clone()

    read_matrix = read


def test_floats_are_quantized_on_demand() -> None:
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    as_stored = Weights(OneTensor(values), "cpu").take_matrix("w", 5, 64)
    assert isinstance(as_stored, torch.Tensor)
    assert torch.equal(as_stored, values)
    matrix = Weights(OneTensor(values), "cpu").take_matrix("w", 5, 64, to_int8=True)
    assert isinstance(matrix, QuantizedMatrix)
    assert (matrix.group, matrix.zero_point) == (64, 128)


def test_inputs_that_no_group_divides() -> None:
    weights = Weights(OneTensor(torch.zeros(5, 40)), "cpu")
    with pytest.raises(CheckpointError, match="tensor w has 40 inputs, which is not a multiple"):
        weights.take_matrix("w", 5, 40, to_int8=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_can_be_packed(tmp_path: Path, dtype: torch.dtype) -> None:
    source = SafetensorsSource(HfFolder(write_tiny_model(tmp_path / "tiny", dtype=dtype)))
    matrix = source.read_matrix(Q_PROJ)
    assert matrix.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert same_bits(unpack(pack(matrix)), source.read(Q_PROJ).float().numpy())
