"""What the api process must know of a model, without loading its weights."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ModelCard:
    """`path`: the GGUF file or Hugging Face folder. `model_id`: digest of the checkpoint's
    identity (see checkpoint/identity.py). `context_length` is what the model was trained for."""

    path: Path
    model_id: str
    architecture: str
    model_type: str
    context_length: int
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...] = field(default=())
