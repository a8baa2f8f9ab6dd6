"""What Hugging Face's transformers, the reference implementation, makes of a tiny model."""

import importlib
from pathlib import Path
from typing import Any

import torch

from baton.testing.tiny_models import VOCAB_SIZE


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
    return tokens


def reference_model(folder: Path) -> Any:
    """The model in a Hugging Face folder, in float32 and with the plainest attention."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@torch.no_grad()
def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Of every position, T×V."""
    logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def reference_greedy(model: Any, prompt: list[int], num_new_tokens: int) -> list[int]:
    """The tokens that follow, each the most likely one."""
    tokens = list(prompt)
    for _ in range(num_new_tokens):
        tokens.append(int(reference_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
