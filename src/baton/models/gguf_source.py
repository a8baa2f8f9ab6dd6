"""A GGUF file as a TensorSource: its names translated, its rows put back in order.

llama.cpp's converter reorders the rows of Llama's query and key projections, because its rotation
pairs neighbours (0,1), (2,3), ... where the original pairs halves (0, D/2), (1, D/2 + 1), ... Ours
pairs halves, so reading undoes it. Qwen files are not reordered.
Elsewhere: metadata (config_gguf.py), values (gguf_blocks.py, dequantize.py), the format
(checkpoint/gguf.py).
"""

import re
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from baton.checkpoint import GgufFile
from baton.kernels.quantized import QuantizedMatrix
from baton.models.config import ModelConfig
from baton.models.dequantize import gguf_to_float32
from baton.models.gguf_blocks import is_quantized, matrix_of

_REORDERED_MODEL_TYPES: Final = ("llama",)

_TOP_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR: Final = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_TOP_TENSOR: Final = re.compile(r"(\w+)\.(weight|bias)")


def canonical_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; a name we do not know stays as it is."""
    if match := _LAYER_TENSOR.fullmatch(name):
        layer, part, kind = match.groups()
        if part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    elif match := _TOP_TENSOR.fullmatch(name):
        part, kind = match.groups()
        if part in _TOP_NAMES:
            return f"{_TOP_NAMES[part]}.{kind}"
    return name


class GgufSource:
    """Implements `weights.TensorSource`."""

    def __init__(self, file: GgufFile, config: ModelConfig):
        self.path = file.path
        self._file = file
        self._config = config
        self._names = {canonical_name(name): name for name in file.tensors}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._file.tensors[own].shape for name, own in self._names.items()}

    def read(self, name: str) -> torch.Tensor:
        values = gguf_to_float32(self._file, self._names[name])
        order = self._row_order(name)
        return values if order is None else values[torch.from_numpy(order)]

    def read_matrix(self, name: str) -> QuantizedMatrix | torch.Tensor:
        tensor = self._file.tensors[self._names[name]]
        order = self._row_order(name)
        if is_quantized(tensor):
            matrix = matrix_of(tensor)
            return matrix if order is None else matrix.rows(order)
        if tensor.type_name != "BF16":
            return self.read(name)
        values = torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16)
        return values if order is None else values[torch.from_numpy(order)]

    def _row_order(self, name: str) -> npt.NDArray[np.intp] | None:
        """Which rows of the file's tensor to take, or None: as they are."""
        if self._config.model_type not in _REORDERED_MODEL_TYPES:
            return None
        num_rows = self._file.tensors[self._names[name]].shape[0]
        if ".q_proj." in name:
            return halves_from_neighbours(num_rows, self._config.num_heads)
        if ".k_proj." in name:
            return halves_from_neighbours(num_rows, self._config.num_kv_heads)
        return None


def halves_from_neighbours(num_rows: int, num_heads: int) -> npt.NDArray[np.intp]:
    """The order of rows that puts rows 0, 2, 4, ... of each head before its rows 1, 3, 5, ..."""
    return np.arange(num_rows).reshape(num_heads, -1, 2).transpose(0, 2, 1).reshape(-1)
