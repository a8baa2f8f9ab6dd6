"""Random weights in every form that the kernels have, for measuring them.

Elsewhere: the forms' layout (kernels/packing.py), which file has which (models/gguf_blocks.py).

Shapes: F features out, K features in, G groups of inputs in a row.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from baton.kernels.packing import PackedWeight, pack
from baton.kernels.quantized import QuantizedMatrix, quantize_per_channel

_SCALE: Final = 2.0**-6

Draw = Callable[[int, int, np.random.Generator], QuantizedMatrix | torch.Tensor]
"""Values of one form, F by K: `draw(F, K, generator)`."""


def draw_packed(form: str, num_out: int, num_in: int, seed: int) -> PackedWeight:
    """A packed F×K weight of the form `form`, one of FORMS."""
    return pack(FORMS[form](num_out, num_in, np.random.default_rng(seed)))


def repeat_rows(packed: PackedWeight, times: int) -> PackedWeight:
    """A weight of `times` as many features: the same panels over again, each with memory of its
    own."""
    assert packed.num_out % 16 == 0
    raw = np.empty(times * len(packed.data) + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    data = raw[start : start + times * len(packed.data)]
    data.reshape(times, -1)[:] = packed.data
    return PackedWeight(
        packed.form,
        times * packed.num_out,
        packed.num_in,
        packed.group,
        packed.zero_point,
        packed.has_half_scales,
        packed.has_min,
        packed.panel_bytes,
        data,
    )


def _grouped(bits: int, group: int, *, has_min: bool) -> Draw:
    def draw(num_out: int, num_in: int, generator: np.random.Generator) -> QuantizedMatrix:
        q_FK = generator.integers(0, 2**bits, (num_out, num_in), dtype=np.uint8)
        shape = (num_out, num_in // group)
        scales_FG = (_SCALE * generator.random(shape)).astype(np.float16)
        mins_FG = -scales_FG * np.float16(2 ** (bits - 1)) if has_min else None
        zero_point = 0 if has_min else 2 ** (bits - 1)
        return QuantizedMatrix(q_FK, scales_FG, mins_FG, zero_point, group, bits)

    return draw


def _per_channel(num_out: int, num_in: int, generator: np.random.Generator) -> QuantizedMatrix:
    return quantize_per_channel(_floats(num_out, num_in, generator))


def _bfloat16(num_out: int, num_in: int, generator: np.random.Generator) -> torch.Tensor:
    return _floats(num_out, num_in, generator).bfloat16()


def _floats(num_out: int, num_in: int, generator: np.random.Generator) -> torch.Tensor:
    values_FK = generator.standard_normal((num_out, num_in), dtype=np.float32)
    return torch.from_numpy(values_FK * np.float32(_SCALE))


FORMS: Final[dict[str, Draw]] = {
    "int8_per_channel": _per_channel,
    "u4_group32": _grouped(4, 32, has_min=True),  # GGUF's Q4_1 and, unpacked, Q4_K
    "u4_group32_symmetric": _grouped(4, 32, has_min=False),  # Q4_0
    "u8_group32": _grouped(8, 32, has_min=False),  # Q8_0
    "u8_group32_min": _grouped(8, 32, has_min=True),  # Q5_1 and Q5_K
    "u8_group16": _grouped(8, 16, has_min=False),  # Q6_K
    "bfloat16": _bfloat16,
    "float32": _floats,
}
