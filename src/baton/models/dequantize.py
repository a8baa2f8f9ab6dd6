"""GGUF tensors as float32, fast for the types that small models come in.

Q4_0, Q4_1 and Q8_0 are done in torch with every thread (about five times faster than
`GgufFile.dequantize`, which does the others), with the same float32 operations and so the same
bits. Formats: ggml-quants of the ggml project; all have blocks of 32 elements.
"""

from collections.abc import Callable

import numpy as np
import torch

from baton.checkpoint import GgufFile


def gguf_to_float32(file: GgufFile, name: str) -> torch.Tensor:
    """Values of tensor `name` in its torch shape. Raises CheckpointError when there is none."""
    tensor = file.tensors.get(name)
    decode = None if tensor is None else _DECODERS.get(tensor.type_name)
    if tensor is None or decode is None:
        return torch.from_numpy(file.dequantize(name))
    blocks = torch.from_numpy(np.array(tensor.data)).view(-1, _BLOCK_BYTES[tensor.type_name])
    return decode(blocks).view(tensor.shape)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    scale = _half(blocks, 0)
    return blocks[:, 2:].view(torch.int8).float().mul_(scale)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[:, 2:]).sub_(8.0).mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[:, 4:]).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _half(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """The float16 at `offset` of each block, as a column."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """16 bytes hold 32 values: the low nibbles are the first half, the high ones the second."""
    values = torch.empty(packed.shape[0], 32)
    values[:, :16] = packed & 15
    values[:, 16:] = packed >> 4
    return values


_DECODERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
}
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
