"""Floats as Q4_K, Q5_K and Q6_K blocks, which the gguf package reads but does not write.

Plain rounding in one pass: llama.cpp searches for better scales, so its files are more precise.
Layouts: ggml-common.h of the ggml project. Elsewhere: reading them (models/gguf_blocks.py).

Shapes: F rows, B blocks of 256 values in a row.
"""

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

KQuantName = Literal["Q4_K", "Q5_K", "Q6_K"]
K_BLOCK: Final = 256

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def quantize_k(values_FK: Floats, kind: KQuantName) -> Bytes:
    """The raw rows, F×bytes; K must be a multiple of 256."""
    num_rows = len(values_FK)
    blocks = values_FK.reshape(num_rows, -1, K_BLOCK)
    if kind == "Q6_K":
        return _q6_k(blocks).reshape(num_rows, -1)
    return _q45_k(blocks, num_bits=4 if kind == "Q4_K" else 5).reshape(num_rows, -1)


def _q45_k(blocks: Floats, num_bits: int) -> Bytes:
    groups = blocks.reshape(*blocks.shape[:2], 8, 32)
    largest_q = 2**num_bits - 1
    low = -np.minimum(groups.min(axis=-1), 0.0)
    step = (groups.max(axis=-1) + low) / largest_q
    d, sc = _two_levels(step, 63)
    dmin, m = _two_levels(low, 63)
    scale, least = d * sc, dmin * m
    q = _divide(groups + least[..., None], scale[..., None]).round().clip(0, largest_q)
    q = q.astype(np.uint8)
    parts: list[npt.NDArray[Any]] = [
        _half(d),
        _half(dmin),
        _pack_scales(sc.astype(np.uint8), m.astype(np.uint8)),
    ]
    if num_bits == 5:
        fifth = (q >> 4) * np.left_shift(1, np.arange(8))[:, None]
        parts.append(fifth.sum(axis=2).astype(np.uint8))  # bit g of byte i: value i of group g
    pairs = (q & 15).reshape(*blocks.shape[:2], 4, 2, 32)
    parts.append((pairs[..., 0, :] | (pairs[..., 1, :] << 4)).reshape(*blocks.shape[:2], 128))
    return np.concatenate(parts, axis=-1)


def _q6_k(blocks: Floats) -> Bytes:
    leading = blocks.shape[:2]
    groups = blocks.reshape(*leading, 16, 16)
    d, sc = _two_levels(np.abs(groups).max(axis=-1) / 31, 127)
    q = _divide(groups, (d * sc)[..., None]).round().clip(-32, 31) + 32
    halves = q.astype(np.uint8).reshape(*leading, 2, 4, 32)
    low, high = halves & 15, halves >> 4
    low_bytes = low[..., :2, :] | (low[..., 2:, :] << 4)
    high_bytes = np.bitwise_or.reduce(high << np.array([[0], [2], [4], [6]], np.uint8), axis=3)
    parts = (low_bytes.reshape(*leading, 128), high_bytes.reshape(*leading, 64))
    return np.concatenate((*parts, sc.astype(np.int8).view(np.uint8), _half(d)), axis=-1)


def _two_levels(scales: Floats, largest: int) -> tuple[Floats, Floats]:
    """A float16 per block and a whole number per group, whose product is near `scales`."""
    outer = (scales.max(axis=-1, keepdims=True) / largest).astype(np.float16).astype(np.float32)
    return outer, _divide(scales, outer).round().clip(0, largest)


def _divide(values: Floats, by: Floats) -> Floats:
    """Zero where `by` is."""
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _half(values: Floats) -> Bytes:
    return values.astype("<f2").view(np.uint8)


def _pack_scales(sc: Bytes, m: Bytes) -> Bytes:
    """8 scales and 8 minimums of 6 bits in 12 bytes."""
    early = [values[..., :4] | (values[..., 4:] >> 4 << 6) for values in (sc, m)]
    return np.concatenate((*early, (sc[..., 4:] & 15) | (m[..., 4:] << 4)), axis=-1)
