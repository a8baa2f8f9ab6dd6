"""Each architecture on its tiny model against transformers, the reference implementation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton.checkpoint import read_model_card
from baton.models.registry import KernelBackend, LoadOptions, load_model
from baton.testing.model_stepper import ModelStepper, SteppedSequence
from baton.testing.tiny_models import TINY_ARCHITECTURES, VOCAB_SIZE, Architecture
from baton.testing.transformers_reference import (
    prompt_of,
    reference_greedy,
    reference_logits,
    reference_model,
)

# Both compute in float32 and differ in the order of sums only. Logits here are within ±10, whose
# float32 spacing is 1e-6, and three layers of sums over 64 to 96 terms add up to about 2e-5.
LOGITS_ATOL = 1e-4
NUM_NEW_TOKENS = 32

Folder = Callable[[Architecture], Path]
Open = Callable[..., ModelStepper]


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_logits_and_greedy_tokens(
    tiny_folder: Folder, open_stepper: Open, architecture: Architecture
) -> None:
    """Prefill in chunks of 13, decode one by one. The prompt is longer than Mistral's window (24)
    and than Llama 3's original context (64)."""
    folder = tiny_folder(architecture)
    reference, stepper = reference_model(folder), open_stepper(folder)
    prompt = prompt_of(90)

    _, logits = stepper.prefill(prompt, chunk=13)
    assert torch.allclose(logits, reference_logits(reference, prompt), atol=LOGITS_ATOL)

    tokens = stepper.greedy(prompt, NUM_NEW_TOKENS, chunk=13)
    assert tokens == reference_greedy(reference, prompt, NUM_NEW_TOKENS)
    assert len(set(tokens)) > 3, "a model that repeats itself tests little"


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_several_tiles_of_keys(
    tiny_folder: Folder, open_stepper: Open, architecture: Architecture
) -> None:
    """600 tokens: attention walks three tiles."""
    folder = tiny_folder(architecture)
    prompt = prompt_of(600, seed=1)
    _, logits = open_stepper(folder).prefill(prompt, chunk=250)
    expected = reference_logits(reference_model(folder), prompt)
    assert torch.allclose(logits, expected, atol=LOGITS_ATOL)


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("torch", "float32"),
        ("torch", "bfloat16"),
        ("native", "bfloat16"),
        ("native", "int8"),
    ],
)
def test_bits_do_not_depend_on_chunks_or_batch(
    tiny_folder: Folder,
    open_stepper: Open,
    architecture: Architecture,
    backend: KernelBackend,
    dtype: str,
) -> None:
    """The exactness contract through the whole model: a chunk of any size, a decode step and
    company in the batch all give the same logits to the last bit."""
    stepper = open_stepper(
        load_model(read_model_card(tiny_folder(architecture)), LoadOptions(backend=backend)),
        dtype=dtype,
    )
    prompt = prompt_of(70, seed=2)
    _, expected = stepper.prefill(prompt)
    for chunk in (1, 7, 32):
        assert torch.equal(stepper.prefill(prompt, chunk)[1], expected)

    mates = [stepper.prefill(prompt_of(length, seed=length))[0] for length in (3, 40, 65)]
    sequence, _ = stepper.prefill(prompt[:-1])
    newcomer = SteppedSequence()
    work = [(mate, [5]) for mate in mates] + [(sequence, prompt[-1:]), (newcomer, prompt)]
    logits = stepper.step(work)
    assert torch.equal(logits[-2], expected[-1])
    assert torch.equal(logits[-1], expected[-1])


# Attention of the C++ kernels is in bfloat16, off by 2^-9, and logits are within ±1.
@pytest.mark.parametrize(("backend", "atol"), [("torch", LOGITS_ATOL), ("native", 4e-3)])
def test_all_biases_and_a_config_of_transformers_own(
    tmp_path: Path, open_stepper: Open, backend: KernelBackend, atol: float
) -> None:
    """Llama with attention_bias and mlp_bias, in a folder that transformers itself has written (its
    newer versions write rope_parameters, its older ones rope_theta)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        attention_bias=True,
        mlp_bias=True,
        attn_implementation="eager",
    )
    reference = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    reference.save_pretrained(tmp_path)

    prompt = prompt_of(30)
    model = load_model(read_model_card(tmp_path), LoadOptions(backend=backend))
    dtype = "float32" if backend == "torch" else "bfloat16"
    logits = open_stepper(model, dtype=dtype).prefill(prompt)[1]
    expected = reference_logits(reference, prompt)
    assert torch.allclose(logits, expected, atol=atol, rtol=0)


def test_only_wanted_rows_are_returned(tiny_folder: Folder, open_stepper: Open) -> None:
    stepper = open_stepper(tiny_folder("llama"))
    first, second = SteppedSequence(), SteppedSequence()
    logits = stepper.step([(first, prompt_of(5)), (second, prompt_of(9))])
    assert logits.shape == (2, VOCAB_SIZE)
    assert logits.dtype == torch.float32
