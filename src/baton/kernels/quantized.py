"""A weight matrix in quantized form, and how one is made of floats.

A value is `scale * (q - zero_point) + min`: every form that we read or make is this with another
group, number of bits, and minimum or zero point. Nothing is rounded a second time here, so
`dequantized` gives the bits that the checkpoint's own definition gives.
Elsewhere: GGUF's forms (models/gguf_blocks.py), how kernels want them to lie (packing.py).

Shapes: F features out, K features in, G groups of inputs in a row.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

MIN_GROUP: Final = 32
"""Inputs of a quantized matrix come in multiples of this, as activations share scales so."""

_LARGEST_INT8: Final = 127
_ROWS_AT_ONCE: Final = 1024  # bounds the float32 copy that quantizing needs
_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """F×K weights.

    `q_FK` are unsigned values below 2^bits, one to a byte. `scales_FG` and `mins_FG` are float16 or
    float32 (both the same), one per `group` neighbouring inputs of a row. With minimums,
    `zero_point` is 0.
    """

    q_FK: npt.NDArray[np.uint8]
    scales_FG: FloatArray
    mins_FG: FloatArray | None
    zero_point: int
    group: int
    bits: int  # 4 or 8

    def __post_init__(self) -> None:
        num_out, num_in = self.q_FK.shape
        assert self.bits in (4, 8)
        assert num_in % MIN_GROUP == 0
        assert num_in % self.group == 0
        assert self.scales_FG.shape == (num_out, num_in // self.group)
        assert self.scales_FG.dtype in (np.float16, np.float32)
        if self.mins_FG is not None:
            assert self.zero_point == 0
            assert self.mins_FG.shape == self.scales_FG.shape
            assert self.mins_FG.dtype == self.scales_FG.dtype

    @property
    def shape(self) -> tuple[int, int]:
        num_out, num_in = self.q_FK.shape
        return num_out, num_in

    def rows(self, order: npt.NDArray[np.intp]) -> "QuantizedMatrix":
        """The rows `order`, in that order."""
        mins_FG = None if self.mins_FG is None else self.mins_FG[order]
        return replace(
            self, q_FK=self.q_FK[order], scales_FG=self.scales_FG[order], mins_FG=mins_FG
        )

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The F×K values. Each product is exact in float32 when it comes from GGUF (at most 24
        bits), so only adding a minimum rounds."""
        num_out, num_groups = self.scales_FG.shape
        values = self.q_FK.reshape(num_out, num_groups, self.group).astype(np.float32)
        values -= np.float32(self.zero_point)
        values *= self.scales_FG.astype(np.float32)[:, :, None]
        if self.mins_FG is not None:
            values += self.mins_FG.astype(np.float32)[:, :, None]
        return values.reshape(self.shape)


def quantize_per_channel(weight_FK: torch.Tensor) -> QuantizedMatrix:
    """Round a floating matrix to 8 bits with one scale per row, max|w| / 127.

    Symmetric, to nearest with ties to even: SGLang's `w8a8_int8`. A row whose scale would be a
    denormal, which kernels take for zero, becomes zero. K must be a multiple of 32.
    """
    num_out, num_in = weight_FK.shape
    q_FK = np.empty((num_out, num_in), dtype=np.uint8)
    scales_F1 = np.empty((num_out, 1), dtype=np.float32)
    for start in range(0, num_out, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values = weight_FK[rows].float().cpu()
        scales = values.abs().amax(dim=1, keepdim=True) / _LARGEST_INT8
        is_zero = scales < _SMALLEST_NORMAL
        scales.masked_fill_(is_zero, 0.0)
        values = (values / scales).masked_fill_(is_zero, 0.0)
        # The largest divided by its own 127th part may miss 127 by a rounding; half a step is far.
        q_FK[rows] = values.round_().add_(_LARGEST_INT8 + 1).to(torch.uint8).numpy()
        scales_F1[rows] = scales.numpy()
    return QuantizedMatrix(
        q_FK, scales_F1, None, zero_point=_LARGEST_INT8 + 1, group=num_in, bits=8
    )
