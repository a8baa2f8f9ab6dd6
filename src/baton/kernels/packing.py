"""Weights as the kernels want them to lie: panels of 16 output features, one to a lane.

The layout is that of `PackedWeight` in csrc/kernels.h; a panel is a run of numpy records, one per
group of inputs (a dense matrix is a single group without scales). A lane takes 32 bits at a time,
whatever the form: four inputs of 8 bits, eight of 4, a pair of bf16 or one float32. So packing is
always the same transposition of 32-bit words.

Invariant: `unpack(pack(w))` has the values of `w`, to the bit.
Elsewhere: the values (quantized.py), who reads the panels (csrc/linear.cpp, csrc/rows.cpp).

Shapes: F features out, K features in, P panels, L lanes (16), G groups, W words of a group.
"""

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from baton.kernels.quantized import QuantizedMatrix

PANEL_ROWS: Final = 16
ALIGNMENT_BYTES: Final = 64

_WORD: Final = np.dtype("<u4")
_LOW_NIBBLES: Final = np.uint32(0x0F0F0F0F)

Array = npt.NDArray[Any]


class WeightForm(IntEnum):
    """`WeightForm` of csrc/kernels.h."""

    UINT4 = 0
    UINT8 = 1
    BF16 = 2
    F32 = 3


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """`PackedWeight` of csrc/kernels.h, field by field. `data` is aligned to 64 bytes.

    An odd K of BF16 is filled up with a column of zeros, which `num_in` counts.
    """

    form: WeightForm
    num_out: int
    num_in: int
    group: int  # 0 for BF16 and F32
    zero_point: int
    has_half_scales: bool
    has_min: bool
    panel_bytes: int
    data: npt.NDArray[np.uint8]

    @property
    def num_panels(self) -> int:
        return -(-self.num_out // PANEL_ROWS)

    def records(self) -> Array:
        """The panels as P×G records, in place: `scales` and `mins` of 16 lanes where there are
        any, and `words` of W×16."""
        record = _record(self)
        return self.data.view(record).reshape(self.num_panels, self.panel_bytes // record.itemsize)


def pack(matrix: QuantizedMatrix | torch.Tensor) -> PackedWeight:
    """A new packed copy of F×K weights: quantized, bfloat16 or float32."""
    if isinstance(matrix, QuantizedMatrix):
        return _pack_quantized(matrix)
    if matrix.dtype == torch.bfloat16:
        return _pack_dense(WeightForm.BF16, _even_columns(matrix))
    assert matrix.dtype == torch.float32, matrix.dtype
    return _pack_dense(WeightForm.F32, matrix)


def unpack(packed: PackedWeight) -> npt.NDArray[np.float32]:
    """The values, F×K: what `pack` was given, as float32."""
    records = packed.records()
    words_FGW = _from_lanes(records["words"], packed.num_out)
    if packed.form is WeightForm.F32:
        return words_FGW.view("<f4").reshape(packed.num_out, packed.num_in)
    if packed.form is WeightForm.BF16:
        upper_half = words_FGW.view("<u2").astype(_WORD) << np.uint32(16)
        return upper_half.view("<f4").reshape(packed.num_out, packed.num_in)

    def per_group(field: str) -> Array:
        return _from_lanes(records[field][:, :, None], packed.num_out)[:, :, 0]

    return QuantizedMatrix(
        _values_of_words(words_FGW, packed.form).reshape(packed.num_out, packed.num_in),
        per_group("scales"),
        per_group("mins") if packed.has_min else None,
        packed.zero_point,
        packed.group,
        bits=4 if packed.form is WeightForm.UINT4 else 8,
    ).dequantized()


def can_interleave(gate: PackedWeight, up: PackedWeight) -> bool:
    """Whether `interleave_gate_up` takes them: whole panels, of one form and size."""
    return gate.num_out % PANEL_ROWS == 0 and _header(gate) == _header(up)


def interleave_gate_up(gate: PackedWeight, up: PackedWeight) -> PackedWeight:
    """One weight of twice the features: 16 rows of gate, 16 of up, 16 of gate, ... (`kSiluMul`)."""
    assert can_interleave(gate, up)
    both = replace(gate, num_out=2 * gate.num_out, data=_aligned_zeros(2 * len(gate.data)))
    panels = both.data.reshape(gate.num_panels, 2, gate.panel_bytes)
    panels[:, 0] = gate.data.reshape(gate.num_panels, gate.panel_bytes)
    panels[:, 1] = up.data.reshape(up.num_panels, up.panel_bytes)
    return both


def _pack_dense(form: WeightForm, matrix: torch.Tensor) -> PackedWeight:
    num_out, num_in = matrix.shape
    packed = _allocate(form, num_out, num_in)
    words_FW = matrix.cpu().contiguous().view(torch.int32).numpy().view(_WORD)
    _to_lanes(words_FW[:, None], packed.records()["words"])
    return packed


def _pack_quantized(matrix: QuantizedMatrix) -> PackedWeight:
    num_out, num_in = matrix.shape
    packed = _allocate(
        WeightForm.UINT4 if matrix.bits == 4 else WeightForm.UINT8,
        num_out,
        num_in,
        group=matrix.group,
        zero_point=matrix.zero_point,
        has_half_scales=matrix.scales_FG.dtype == np.float16,
        has_min=matrix.mins_FG is not None,
    )
    words_FW = np.ascontiguousarray(matrix.q_FK).view(_WORD)  # 4 values each
    if matrix.bits == 4:
        words_FW = words_FW[:, 0::2] | (words_FW[:, 1::2] << np.uint32(4))
    records = packed.records()
    _to_lanes(words_FW.reshape(num_out, num_in // matrix.group, -1), records["words"])
    _to_lanes(matrix.scales_FG[:, :, None], records["scales"][:, :, None])
    if matrix.mins_FG is not None:
        _to_lanes(matrix.mins_FG[:, :, None], records["mins"][:, :, None])
    return packed


def _even_columns(matrix: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(matrix, (0, 1)) if matrix.shape[1] % 2 else matrix


def _values_of_words(words: Array, form: WeightForm) -> npt.NDArray[np.uint8]:
    if form is WeightForm.UINT4:
        pairs = (words & _LOW_NIBBLES, (words >> np.uint32(4)) & _LOW_NIBBLES)
        words = np.stack(pairs, axis=-1)
    return words.view(np.uint8)


def _to_lanes(rows_FGW: Array, lanes_PGWL: Array) -> None:
    """Put feature f into lane f mod 16 of panel f div 16; lanes without a feature stay."""
    num_out, num_groups, num_words = rows_FGW.shape
    whole = num_out // PANEL_ROWS
    panels = rows_FGW[: whole * PANEL_ROWS].reshape(whole, PANEL_ROWS, num_groups, num_words)
    lanes_PGWL[:whole] = panels.transpose(0, 2, 3, 1)
    if rest := num_out % PANEL_ROWS:
        lanes_PGWL[whole, :, :, :rest] = rows_FGW[-rest:].transpose(1, 2, 0)


def _from_lanes(lanes_PGWL: Array, num_out: int) -> Array:
    _, num_groups, num_words, _ = lanes_PGWL.shape
    rows = lanes_PGWL.transpose(0, 3, 1, 2).reshape(-1, num_groups, num_words)
    return np.ascontiguousarray(rows[:num_out])


def _record(header: PackedWeight) -> np.dtype[Any]:
    """What a panel holds of one group of inputs."""
    fields: list[tuple[str, Any, Any]] = []
    if header.group:
        scale = "<f2" if header.has_half_scales else "<f4"
        fields.append(("scales", scale, PANEL_ROWS))
        if header.has_min:
            fields.append(("mins", scale, PANEL_ROWS))
    num_words = (header.group or header.num_in) // _INPUTS_PER_WORD[header.form]
    fields.append(("words", _WORD, (num_words, PANEL_ROWS)))
    return np.dtype(fields)


def _header(packed: PackedWeight) -> tuple[Any, ...]:
    """Everything but the values."""
    return tuple(getattr(packed, each.name) for each in fields(packed) if each.name != "data")


def _allocate(
    form: WeightForm,
    num_out: int,
    num_in: int,
    *,
    group: int = 0,
    zero_point: int = 0,
    has_half_scales: bool = False,
    has_min: bool = False,
) -> PackedWeight:
    """A weight of zeros."""
    header = PackedWeight(
        form, num_out, num_in, group, zero_point, has_half_scales, has_min, 0, _aligned_zeros(0)
    )
    panel_bytes = _record(header).itemsize * (num_in // group if group else 1)
    data = _aligned_zeros(header.num_panels * panel_bytes)
    return replace(header, panel_bytes=panel_bytes, data=data)


def _aligned_zeros(num_bytes: int) -> npt.NDArray[np.uint8]:
    raw = np.zeros(num_bytes + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + num_bytes]


_INPUTS_PER_WORD: Final = {
    WeightForm.UINT4: 8,
    WeightForm.UINT8: 4,
    WeightForm.BF16: 2,
    WeightForm.F32: 1,
}
