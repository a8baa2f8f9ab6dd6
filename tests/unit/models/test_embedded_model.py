"""The embedded model, SmolLM2-135M-Instruct in Q4_1, against transformers on the same weights: the
torch reference closely, the C++ kernels, which round activations, as far as rounding goes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baton.checkpoint import GgufFile, default_cache_dir, read_model_card, resolve_model
from baton.checkpoint.progress import SilentProgress
from baton.models.gguf_source import GgufSource
from baton.models.registry import LoadOptions, load_model, read_config
from baton.testing.model_stepper import ModelStepper, SteppedSequence

NUM_NEW_TOKENS = 64
# Thirty layers of float32 sums in another order, and logits within ±40, whose spacing is 4e-6.
LOGITS_ATOL = 2e-3

# Of the spread of the logits: thirty layers round the inputs of four products each to int8, in
# groups of 32 (5e-3 of a value): sqrt(121) * 5e-3 = 0.055. Attention's operands come on top.
NATIVE_ERROR = {"bfloat16": 0.12, "int8": 0.16}

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about a relay race.",
    "Explain in simple words why the sky is blue, and then why sunsets are red.",
)


@dataclass
class Embedded:
    path: Path
    stepper: ModelStepper
    reference: Any
    tokenizer: Tokenizer

    def prompt(self, question: str) -> list[int]:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


@pytest.fixture(scope="module")
def embedded() -> Iterator[Embedded]:
    path = resolve_model(None, cache_dir=default_cache_dir(os.environ), progress=SilentProgress())
    file = GgufFile(path)
    stepper = ModelStepper(load_model(read_model_card(path), LoadOptions(backend="torch")))
    yield Embedded(path, stepper, reference_model(file), tokenizer_of(file.metadata))
    stepper.close()


def reference_model(file: GgufFile) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = read_config(file)
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    )
    source = GgufSource(file, config)
    tensors = {name: source.read(name) for name in source.shapes()}
    missing, unexpected = reference.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return reference.eval()


def tokenizer_of(metadata: dict[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in tokens[:3]])
    return tokenizer


@torch.no_grad()
def reference_greedy(model: Any, prompt: list[int], num_new_tokens: int) -> list[int]:
    tokens: list[int] = []
    output = model(torch.tensor([prompt]), use_cache=True)
    while True:
        tokens.append(int(output.logits[0, -1].argmax()))
        if len(tokens) == num_new_tokens:
            return tokens
        output = model(
            torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
        )


@pytest.mark.parametrize("question", QUESTIONS)
def test_logits_and_greedy_tokens(embedded: Embedded, question: str) -> None:
    prompt = embedded.prompt(question)
    _, logits = embedded.stepper.prefill(prompt, chunk=7)
    with torch.no_grad():
        expected = embedded.reference(torch.tensor([prompt]), use_cache=False).logits[0]
    assert torch.allclose(logits, expected, atol=LOGITS_ATOL)

    tokens = embedded.stepper.greedy(prompt, NUM_NEW_TOKENS)
    assert tokens == reference_greedy(embedded.reference, prompt, NUM_NEW_TOKENS)


def test_it_makes_sense(embedded: Embedded) -> None:
    """The one check that does not share our reading of the file with the reference."""
    answer = embedded.stepper.greedy(embedded.prompt(QUESTIONS[0]), 12)
    assert "Paris" in embedded.tokenizer.decode(answer)


@pytest.fixture(params=["bfloat16", "int8"])
def open_native(
    embedded: Embedded, request: pytest.FixtureRequest
) -> Iterator[Callable[[int], ModelStepper]]:
    """Makes steppers of the C++ kernels on so many threads, with either KV format."""
    opened = []

    def make(num_threads: int) -> ModelStepper:
        options = LoadOptions(backend="native", num_threads=num_threads)
        model = load_model(read_model_card(embedded.path), options)
        opened.append(ModelStepper(model, dtype=request.param))
        return opened[-1]

    yield make
    for stepper in opened:
        stepper.close()


def test_the_kernels_are_near(
    embedded: Embedded,
    open_native: Callable[[int], ModelStepper],
    request: pytest.FixtureRequest,
) -> None:
    kv_dtype = request.node.callspec.params["open_native"]
    stepper = open_native(1)
    for question in QUESTIONS:
        prompt = embedded.prompt(question)
        expected = embedded.stepper.prefill(prompt)[1]
        error = (stepper.prefill(prompt, chunk=7)[1] - expected).square().mean().sqrt()
        spread = (expected - expected.mean(dim=1, keepdim=True)).square().mean().sqrt()
        assert error / spread < NATIVE_ERROR[kv_dtype]
    answer = stepper.greedy(embedded.prompt(QUESTIONS[0]), 12)
    assert "Paris" in embedded.tokenizer.decode(answer)


def test_bits_of_the_kernels_do_not_depend_on_chunks_batch_or_threads(
    embedded: Embedded, open_native: Callable[[int], ModelStepper]
) -> None:
    prompts = [embedded.prompt(question) for question in QUESTIONS]
    alone, together = open_native(1), open_native(2)
    expected = [alone.prefill(prompt)[1] for prompt in prompts]
    for prompt, rows in zip(prompts, expected, strict=True):
        assert torch.equal(together.prefill(prompt, chunk=5)[1], rows)
    work = [(SteppedSequence(), prompt) for prompt in prompts]
    assert torch.equal(together.step(work, all_rows=True), torch.cat(expected))


def test_bits_do_not_depend_on_chunks_batch_or_threads(
    embedded: Embedded, set_threads: Callable[[int], None]
) -> None:
    """The exactness contract at the size of a real model."""
    prompts = [embedded.prompt(question) for question in QUESTIONS]
    set_threads(1)
    sequences, expected = zip(*map(embedded.stepper.prefill, prompts), strict=True)
    next_rows = [embedded.stepper.step([(each, [260])])[0] for each in sequences]
    set_threads(2)
    for prompt, rows in zip(prompts, expected, strict=True):
        assert torch.equal(embedded.stepper.prefill(prompt, chunk=5)[1], rows)
    again = [embedded.stepper.prefill(prompt)[0] for prompt in prompts]
    assert torch.equal(
        embedded.stepper.step([(each, [260]) for each in again]), torch.stack(next_rows)
    )
