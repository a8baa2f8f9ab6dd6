"""The safetensors files of a Hugging Face folder as a TensorSource: one file or many shards.

Elsewhere: which files (checkpoint/hf.py), what the tensors are for (llama.py).
"""

from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from baton.checkpoint import HfFolder
from baton.core.errors import CheckpointError, UnsupportedModel

_FLOAT_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_COMPUTED_SUFFIX: Final = ".rotary_emb.inv_freq"
"""Saved by old versions of transformers; it follows from the configuration."""


class SafetensorsSource:
    """Implements `weights.TensorSource`."""

    def __init__(self, folder: HfFolder):
        self.path = folder.path
        self._shards: dict[str, Any] = {}
        for path in folder.weight_files:
            try:
                shard = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"cannot read {path}: {error}; fetch it again") from error
            for name in _names(shard):
                if name in self._shards:
                    raise CheckpointError(f"{self.path}: tensor {name} is in two weight files")
                if not name.endswith(_COMPUTED_SUFFIX):
                    self._shards[name] = shard

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(shard.get_slice(name).get_shape()) for name, shard in self._shards.items()
        }

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._shards[name].get_tensor(name)
        if tensor.dtype not in _FLOAT_DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOAT_DTYPES)
            raise UnsupportedModel(
                f"{self.path}: tensor {name} has type {str(tensor.dtype).removeprefix('torch.')}; "
                f"supported: {known}"
            )
        return tensor

    def read_matrix(self, name: str) -> torch.Tensor:
        values = self.read(name)
        return values.float() if values.dtype == torch.float16 else values


def _names(shard: Any) -> list[str]:
    names: list[str] = shard.keys()
    return names
