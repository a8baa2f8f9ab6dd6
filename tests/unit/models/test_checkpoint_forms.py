"""The same weights give the same model from every form a checkpoint comes in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton.checkpoint import read_model_card
from baton.models.registry import load_model
from baton.models.rope import inverse_frequencies
from baton.testing.model_stepper import ModelStepper
from baton.testing.tiny_gguf import TensorTypeName, write_tiny_gguf
from baton.testing.tiny_models import Architecture, write_tiny_model

Folder = Callable[[Architecture], Path]
Open = Callable[..., ModelStepper]
PROMPT = [(37 * index) % 300 for index in range(50)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_gguf_equals_hugging_face(
    tmp_path: Path, tiny_folder: Folder, open_stepper: Open, architecture: Architecture
) -> None:
    """F32, so that only names and the order of rows can differ; those are put right exactly.
    The norm's epsilon is 1e-5 in JSON and its float32 neighbour in GGUF."""
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", architecture, tensor_type="F32")
    expected = open_stepper(tiny_folder(architecture)).prefill(PROMPT)[1]
    assert torch.allclose(open_stepper(gguf).prefill(PROMPT)[1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("tensor_type", "error"),
    # Root mean square of the logits' error, where the logits' own is 1. A type's relative rounding
    # is 2^-11 (F16), 2^-8 (BF16, Q8_0: half a step of 1/127) and 1/30 (4 bits), and it grows about
    # tenfold over 21 products.
    [("F16", 0.01), ("BF16", 0.08), ("Q8_0", 0.08), ("Q4_0", 0.8), ("Q4_1", 0.8)],
)
def test_quantized_gguf_is_close(
    tmp_path: Path,
    tiny_folder: Folder,
    open_stepper: Open,
    tensor_type: TensorTypeName,
    error: float,
) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=tensor_type)
    expected = open_stepper(tiny_folder("llama")).prefill(PROMPT)[1]
    logits = open_stepper(gguf).prefill(PROMPT)[1]
    assert (logits - expected).square().mean().sqrt() < error * expected.square().mean().sqrt()


def test_shards_equal_one_file(tmp_path: Path, tiny_folder: Folder, open_stepper: Open) -> None:
    sharded = write_tiny_model(tmp_path / "sharded", "llama", num_shards=3)
    expected = open_stepper(tiny_folder("llama")).prefill(PROMPT)[1]
    assert torch.equal(open_stepper(sharded).prefill(PROMPT)[1], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "llama3"])
def test_half_precision_is_widened_exactly(
    tmp_path: Path, open_stepper: Open, architecture: Architecture, dtype: torch.dtype
) -> None:
    half = write_tiny_model(tmp_path / "half", architecture, dtype=dtype)
    wide = write_tiny_model(tmp_path / "wide", architecture, dtype=dtype)
    _widen(wide / "model.safetensors")
    expected = open_stepper(wide).prefill(PROMPT)[1]
    assert torch.equal(open_stepper(half).prefill(PROMPT)[1], expected)


def test_frequency_factors_of_gguf(tmp_path: Path, tiny_folder: Folder, open_stepper: Open) -> None:
    """llama.cpp writes Llama 3's rope scaling as divisors of the frequencies."""
    scaled = load_model(read_model_card(tiny_folder("llama3"))).config
    factors = (1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)) / inverse_frequencies(scaled)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    gguf = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        "llama3",
        tensor_type="F32",
        extra_tensors={"rope_freqs.weight": factors},
    )
    expected = open_stepper(tiny_folder("llama3")).prefill(PROMPT)[1]
    assert torch.allclose(open_stepper(gguf).prefill(PROMPT)[1], expected, atol=1e-4)


def _widen(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)
