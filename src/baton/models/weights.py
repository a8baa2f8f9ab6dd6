"""Tensors of a checkpoint under one set of names (Hugging Face's), whatever file holds them.

Invariant: a tensor is handed out only in the shape that the model expects, and `check_all_taken`
raises if the file holds one that the model did not ask for: a checkpoint that only looks like
the model is refused, never half used.
Elsewhere: which tensors there are (llama.py), the files (gguf_source.py, safetensors_source.py).
"""

from pathlib import Path
from typing import Final, Protocol

import torch

from baton.core.errors import CheckpointError
from baton.kernels.quantized import MIN_GROUP, QuantizedMatrix, quantize_per_channel

ROPE_FACTORS: Final = "rope_freqs.weight"
"""Divisors of the rope frequencies: the one tensor that only GGUF has, under GGUF's name."""

_MAX_NAMES_SHOWN: Final = 5


class TensorSource(Protocol):
    """The tensors of one checkpoint by canonical name. `path` opens error messages."""

    path: Path

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, name: str) -> torch.Tensor:
        """In the file's floating type; float32 when it is stored quantized. Not shared."""
        ...

    def read_matrix(self, name: str) -> QuantizedMatrix | torch.Tensor:
        """A matrix with the values that the file has, in a form that can be packed: quantized as
        it is stored, or bfloat16 or float32 (float16 becomes float32, exactly). Not shared."""
        ...


class Weights:
    """Hands out a source's tensors once each, on `device`."""

    def __init__(self, source: TensorSource, device: str):
        self._source = source
        self._device = device
        self._shapes = source.shapes()
        self._left = set(self._shapes)

    def has(self, name: str) -> bool:
        return name in self._shapes

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """In float32. Raises CheckpointError naming the tensor, the expected and found shape."""
        return self.take_as_stored(name, *shape).float()

    def take_as_stored(self, name: str, *shape: int) -> torch.Tensor:
        """In the floating type it is stored in: half the memory where half is stored."""
        self._take(name, shape)
        return self._source.read(name).to(self._device)

    def take_matrix(
        self, name: str, num_out: int, num_in: int, *, to_int8: bool = False
    ) -> QuantizedMatrix | torch.Tensor:
        """As the source has it (`TensorSource.read_matrix`), in the CPU's memory, to be packed.

        `to_int8` quantizes a floating matrix per output channel; one that is stored quantized
        stays as it is. Raises CheckpointError for another shape, or one that cannot be quantized.
        """
        self._take(name, (num_out, num_in))
        matrix = self._source.read_matrix(name)
        if not to_int8 or isinstance(matrix, QuantizedMatrix):
            return matrix
        if num_in % MIN_GROUP:
            raise CheckpointError(
                f"{self._source.path}: tensor {name} has {num_in} inputs, which is not a multiple "
                f"of {MIN_GROUP}, so it cannot be quantized to int8; load the model unquantized"
            )
        return quantize_per_channel(matrix)

    def pass_over(self, name: str) -> None:
        """Mark a tensor as known but not needed; it need not be there."""
        self._left.discard(name)

    def check_all_taken(self) -> None:
        """Raises CheckpointError for tensors that nobody took."""
        if not self._left:
            return
        names = sorted(self._left)
        shown = ", ".join(f"{name} {self._shapes[name]}" for name in names[:_MAX_NAMES_SHOWN])
        more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
        raise CheckpointError(
            f"{self._source.path}: the model has no place for tensor {shown}{more}; the checkpoint "
            "does not match its configuration"
        )

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._shapes.get(name)
        if found != shape:
            shown = "it is not there" if found is None else f"found {found}"
            raise CheckpointError(
                f"{self._source.path}: tensor {name} should have shape {shape}; {shown}"
            )
        self._left.discard(name)
