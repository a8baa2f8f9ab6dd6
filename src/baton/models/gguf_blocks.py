"""Quantized GGUF tensors as QuantizedMatrix: unpacked, and nothing rounded.

Each type's block is a numpy record, field for field the struct of ggml-common.h (the ggml
project); how its bits make values is `dequantize_row_*` of ggml-quants.c.
Elsewhere: the file (checkpoint/gguf.py), which tensor is which (gguf_source.py).

Shapes: F features out, K features in, B blocks in a row, G groups in a row.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from baton.checkpoint import GgufTensor
from baton.kernels.quantized import FloatArray, QuantizedMatrix

Blocks = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def is_quantized(tensor: GgufTensor) -> bool:
    """Whether `matrix_of` can take the tensor; the others have a float for each value."""
    return tensor.type_name in _FORMS and len(tensor.shape) == 2


def matrix_of(tensor: GgufTensor) -> QuantizedMatrix:
    """The F×K weights that `tensor` holds, in their own precision."""
    record, read = _FORMS[tensor.type_name]
    return read(tensor.data.view(record))


def _q4_0(blocks: Blocks) -> QuantizedMatrix:
    return QuantizedMatrix(
        _flat(_nibbles(blocks["qs"], 16)), _copy(blocks["d"]), None, zero_point=8, group=32, bits=4
    )


def _q4_1(blocks: Blocks) -> QuantizedMatrix:
    return QuantizedMatrix(
        _flat(_nibbles(blocks["qs"], 16)),
        _copy(blocks["d"]),
        _copy(blocks["m"]),
        zero_point=0,
        group=32,
        bits=4,
    )


def _q5_0(blocks: Blocks) -> QuantizedMatrix:
    return QuantizedMatrix(
        _flat(_five_bits(blocks)), _copy(blocks["d"]), None, zero_point=16, group=32, bits=8
    )


def _q5_1(blocks: Blocks) -> QuantizedMatrix:
    return QuantizedMatrix(
        _flat(_five_bits(blocks)),
        _copy(blocks["d"]),
        _copy(blocks["m"]),
        zero_point=0,
        group=32,
        bits=8,
    )


def _q8_0(blocks: Blocks) -> QuantizedMatrix:
    signed_FB32 = blocks["qs"]
    q_FB32 = np.bitwise_xor(signed_FB32, np.uint8(0x80))  # int8 + 128
    return QuantizedMatrix(
        _flat(q_FB32), _copy(blocks["d"]), None, zero_point=128, group=32, bits=8
    )


def _q4_k(blocks: Blocks) -> QuantizedMatrix:
    scales_FG, mins_FG = _k_scales(blocks)
    q_FK = _flat(_nibbles(blocks["qs"], 32))
    return QuantizedMatrix(q_FK, scales_FG, mins_FG, zero_point=0, group=32, bits=4)


def _q5_k(blocks: Blocks) -> QuantizedMatrix:
    scales_FG, mins_FG = _k_scales(blocks)
    q_FK = _nibbles(blocks["qs"], 32)
    groups = q_FK.reshape(*blocks.shape, 8, 32)
    fifth_FB32 = blocks["qh"]  # bit g of byte i belongs to value i of group g
    for group in range(8):
        groups[..., group, :] |= (fifth_FB32 >> group & 1) << 4
    return QuantizedMatrix(_flat(q_FK), scales_FG, mins_FG, zero_point=0, group=32, bits=8)


def _q6_k(blocks: Blocks) -> QuantizedMatrix:
    """Two halves of 128 values; in each, byte i of 64 has the low bits of values i and i + 64, and
    byte i of 32 the high bits of values i, i + 32, i + 64 and i + 96."""
    q_FK = _nibbles(blocks["ql"], 64)
    quarters = q_FK.reshape(*blocks.shape, 2, 4, 32)
    high = blocks["qh"].reshape(*blocks.shape, 2, 32)
    for quarter in range(4):
        quarters[..., quarter, :] |= (high >> 2 * quarter & 3) << 4
    scales_FBG = blocks["d"].astype(np.float32)[..., None] * blocks["scales"].astype(np.float32)
    return QuantizedMatrix(_flat(q_FK), _flat(scales_FBG), None, zero_point=32, group=16, bits=8)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """A `run` of bytes holds the low nibbles of `run` values, then the high ones of as many."""
    rows, num_blocks = packed.shape[:2]
    runs = packed.reshape(rows, num_blocks, -1, run)
    values = np.empty((rows, num_blocks, runs.shape[2], 2, run), dtype=np.uint8)
    np.bitwise_and(runs, 15, out=values[..., 0, :])
    np.right_shift(runs, 4, out=values[..., 1, :])
    return values


def _five_bits(blocks: Blocks) -> Bytes:
    """Nibbles, with the fifth bit of value i in bit i of `qh`."""
    values = _nibbles(blocks["qs"], 16)
    fifth = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
    fifth <<= 4
    values |= fifth.reshape(values.shape)
    return values


def _k_scales(blocks: Blocks) -> tuple[FloatArray, FloatArray]:
    """Scales d * sc and minimums -dmin * m of the 8 groups of a block: 17 bits, exact in float32.

    Of 12 bytes, 0..3 hold sc of groups 0..3 in their low 6 bits, 4..7 m of the same; 8..11 hold the
    low nibbles of sc and m of groups 4..7, whose high 2 bits are on top of 0..3 and 4..7.
    """
    first, second, third = (blocks["scales"][..., start : start + 4] for start in (0, 4, 8))
    sc = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=-1)
    m = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=-1)
    d, dmin = (blocks[name].astype(np.float32)[..., None] for name in ("d", "dmin"))
    return _flat(d * sc.astype(np.float32)), _flat(-dmin * m.astype(np.float32))


def _flat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One dimension per row."""
    return values.reshape(len(values), -1)


def _copy(halves: npt.NDArray[Any]) -> FloatArray:
    return np.ascontiguousarray(halves, dtype=np.float16)


_Form = tuple[np.dtype[Any], Callable[[Blocks], QuantizedMatrix]]
_K_HEADER: Final = [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12)]
_FORMS: Final[dict[str, _Form]] = {
    "Q4_0": (np.dtype([("d", "<f2"), ("qs", "u1", 16)]), _q4_0),
    "Q4_1": (np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]), _q4_1),
    "Q5_0": (np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]), _q5_0),
    "Q5_1": (np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]), _q5_1),
    "Q8_0": (np.dtype([("d", "<f2"), ("qs", "u1", 32)]), _q8_0),
    "Q4_K": (np.dtype([*_K_HEADER, ("qs", "u1", 128)]), _q4_k),
    "Q5_K": (np.dtype([*_K_HEADER, ("qh", "u1", 32), ("qs", "u1", 128)]), _q5_k),
    "Q6_K": (
        np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
        _q6_k,
    ),
}
