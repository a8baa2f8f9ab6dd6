"""Reading model files: GGUF and Hugging Face folders, their identity, and where they come from.

Elsewhere: turning tensors into a runnable model (models/), text to token ids (tokenizer/).
"""

from baton.checkpoint.card import open_checkpoint, read_model_card
from baton.checkpoint.gguf import GgufFile, GgufTensor
from baton.checkpoint.hf import HfFolder
from baton.checkpoint.source import default_cache_dir, resolve_model

__all__ = [
    "GgufFile",
    "GgufTensor",
    "HfFolder",
    "default_cache_dir",
    "open_checkpoint",
    "read_model_card",
    "resolve_model",
]
