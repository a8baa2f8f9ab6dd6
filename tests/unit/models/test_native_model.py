"""The model on the C++ kernels: near the reference, and the same bits however it is run.

How far it may be off is a bound on the error's root mean square over that of the logits, about 1.6
times what independent roundings add up to. A wrong head, position or scale gives an error near 1.
- One bfloat16 rounding is off by 8e-4 of a value; three layers round queries, keys, values and
  weights of attention: sqrt(12) * 8e-4 = 3e-3, and a little more as layers pass errors on.
- A group of normal values rounded to int8 is off by its largest / 127 / sqrt(12): 4.5e-3 for a
  head of 16 dims, 5e-3 for a group of 32, 6e-3 for a row of 64.

Elsewhere: each kernel (tests/kernels), the embedded model (test_embedded_model.py).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton.checkpoint import read_model_card
from baton.core.errors import ConfigError
from baton.kernels import _native
from baton.kernels.native import ISA_VARIABLE
from baton.models.registry import LoadOptions, Quantization, load_model
from baton.testing.model_stepper import ModelStepper, SteppedSequence
from baton.testing.tiny_gguf import TENSOR_TYPES, TensorTypeName, write_tiny_gguf
from baton.testing.tiny_models import TINY_ARCHITECTURES, Architecture
from baton.testing.transformers_reference import prompt_of, reference_logits, reference_model

Folder = Callable[[Architecture], Path]
Open = Callable[..., ModelStepper]

VARIANTS: dict[str, tuple[str, Quantization, float]] = {
    "bf16 KV": ("bfloat16", "none", 0.008),
    "int8 KV": ("int8", "none", 0.02),
    "int8 weights": ("bfloat16", "w8a8_int8", 0.07),
    "int8 both": ("int8", "w8a8_int8", 0.07),
}
"""KV's number format, what is done to weights, and the relative error that both may cost."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def native(path: Path, quantization: Quantization = "none", num_threads: int = 1) -> object:
    options = LoadOptions(backend="native", quantization=quantization, num_threads=num_threads)
    return load_model(read_model_card(path), options)


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_transformers(
    tiny_folder: Folder, open_stepper: Open, architecture: Architecture, variant: str
) -> None:
    """The prompts are longer than Mistral's window (24), Llama 3's original context (64) and, the
    second, than a segment of attention (512)."""
    kv_dtype, quantization, bound = VARIANTS[variant]
    folder = tiny_folder(architecture)
    stepper = open_stepper(native(folder, quantization), dtype=kv_dtype)
    reference = reference_model(folder)
    for length, chunk in ((90, 13), (600, 250)):
        prompt = prompt_of(length, seed=length)
        logits = stepper.prefill(prompt, chunk)[1]
        assert relative_error(logits, reference_logits(reference, prompt)) < bound


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tensor_type", TENSOR_TYPES)
def test_gguf_types(
    tmp_path: Path, open_stepper: Open, architecture: Architecture, tensor_type: TensorTypeName
) -> None:
    """Against the torch reference on the same weights and the same KV format. Products of quantized
    weights round their inputs to int8 in groups of 32, four times a layer and once more for the
    logits: sqrt(13) * 5e-3; those of bfloat16 weights to bfloat16."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", architecture, tensor_type=tensor_type)
    bound = {"F32": 0.008, "F16": 0.008, "BF16": 0.012}.get(tensor_type, 0.04)
    prompt = prompt_of(90)
    expected = open_stepper(path, dtype="bfloat16").prefill(prompt)[1]
    logits = open_stepper(native(path), dtype="bfloat16").prefill(prompt, 13)[1]
    assert relative_error(logits, expected) < bound


def test_types_differ_within_a_layer(tmp_path: Path, open_stepper: Open) -> None:
    """Queries, keys and values, and gate and up, are one product each over several forms."""
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        tensor_type="Q4_K",
        other_types={"v_proj": "Q6_K", "k_proj": "F32", "up_proj": "Q8_0", "lm_head": "BF16"},
    )
    prompt = prompt_of(90)
    expected = open_stepper(path, dtype="bfloat16").prefill(prompt)[1]
    logits = open_stepper(native(path), dtype="bfloat16").prefill(prompt, 13)[1]
    assert relative_error(logits, expected) < 0.04


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_do_not_depend_on_threads_instruction_set_or_blocks(
    tiny_folder: Folder,
    open_stepper: Open,
    monkeypatch: pytest.MonkeyPatch,
    architecture: Architecture,
    variant: str,
) -> None:
    kv_dtype, quantization, _ = VARIANTS[variant]
    folder, prompt = tiny_folder(architecture), prompt_of(570, seed=3)
    stepper = open_stepper(native(folder, quantization), dtype=kv_dtype)
    expected = logits_of_prompt_and_token(stepper, prompt, 0)
    for isa in _native.available_isas():
        monkeypatch.setenv(ISA_VARIABLE, isa)
        for num_threads, num_blocks, block_size, chunk in (
            (1, 40, 32, 0),
            (2, 50, 16, 129),
            (3, 20, 64, 64),
            (2, 50, 16, 16),
            (3, 50, 16, 31),
        ):
            model = native(folder, quantization, num_threads)
            other = open_stepper(
                model, dtype=kv_dtype, num_blocks=num_blocks, block_size=block_size
            )
            logits = logits_of_prompt_and_token(other, prompt, chunk)
            assert torch.equal(logits, expected), (isa, num_threads, block_size, chunk)


def logits_of_prompt_and_token(
    stepper: ModelStepper, prompt: list[int], chunk: int
) -> torch.Tensor:
    """Of each row of the prompt, and of a token decoded after it."""
    sequence, logits = stepper.prefill(prompt, chunk)
    return torch.cat((logits, stepper.step([(sequence, [5])])))


@pytest.mark.parametrize("tensor_type", TENSOR_TYPES)
def test_bits_of_each_gguf_type(
    tmp_path: Path,
    open_stepper: Open,
    monkeypatch: pytest.MonkeyPatch,
    tensor_type: TensorTypeName,
) -> None:
    """Chunks, company in the batch, threads and instruction set at once."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=tensor_type)
    prompt = prompt_of(70, seed=4)
    _, expected = open_stepper(native(path), dtype="int8").prefill(prompt)
    for isa in _native.available_isas():
        monkeypatch.setenv(ISA_VARIABLE, isa)
        stepper = open_stepper(native(path, num_threads=2), dtype="int8")
        mate, _ = stepper.prefill(prompt_of(33, seed=5), chunk=8)
        sequence, first = stepper.prefill(prompt[:50], chunk=11)
        newcomer = SteppedSequence()
        both = stepper.step(
            [(mate, [7]), (sequence, prompt[50:]), (newcomer, prompt)], all_rows=True
        )
        assert torch.equal(first, expected[:50]), isa
        assert torch.equal(both[1:21], expected[50:]), isa
        assert torch.equal(both[21:], expected), isa


def test_an_instruction_set_that_is_not_there(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(ConfigError, match="BATON_CPU_ISA=sse9 does not run on this CPU; it has "):
        native(tiny_folder("llama"))
