"""The arithmetic of the C++ kernels, said in numpy: what each of their output bits should be.

Every operation here is one float32 rounding, in the order in which the kernels do it, so results
are compared bit for bit. Denormals are zeros (DenormalsOff in csrc/thread_pool.h). One exception:
`silu_mul` is float64, as the kernels' exponential is a polynomial that nobody needs to read twice.

Elsewhere: the kernels (csrc/), the reference of a whole model (models/llama.py over torch_ops.py).

Shapes: T tokens (rows), K features in, F features out, G groups, H query heads, D head dim; in the
pool N blocks, L layers, K kv heads, S block size.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from baton.kernels.quantized import QuantizedMatrix

GROUP: Final = 32
"""Neighbouring activations that share a scale."""

_LANES: Final = 16
_LARGEST_INT8: Final = np.float32(127)
_SMALLEST_NORMAL: Final = np.finfo(np.float32).tiny

Floats = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]
Weight = QuantizedMatrix | torch.Tensor
"""Quantized, bfloat16 or float32: what `packing.pack` takes."""


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """Activations rounded to `scale * q`; T×K in G groups of a row."""

    q_TK: Int8s
    scales_TG: Floats


def quantize(x_TK: Floats, group: int) -> Int8Rows:
    """To nearest (ties to even) in steps of max|x| / 127 of each group of `group` neighbours.

    The factor is 127 / max|x|, as ggml's Q8_1 has it. A group whose largest value is below 127
    times the smallest normal number has a scale of zero, and then q does not matter: here it is 0.
    """
    groups_TGk = flush(x_TK).reshape(len(x_TK), -1, group)
    with np.errstate(all="ignore"):
        largest_TG = np.abs(groups_TGk).max(axis=2, initial=0.0)
        scales_TG = flush(largest_TG / _LARGEST_INT8)
        factors_TG = np.where(scales_TG > 0, _LARGEST_INT8 / largest_TG, np.float32(0))
        q_TGk = np.rint(flush(groups_TGk * factors_TG[:, :, None]))
    return Int8Rows(q_TGk.astype(np.int8).reshape(x_TK.shape), scales_TG)


def linear(x_TK: Floats, weight: Weight, bias_F: Floats | None = None) -> Floats:
    """x Wᵀ + bias, T×F, with activations rounded as the weight's form asks: int8 per group of 32
    (per row where the weight has one scale per row), bfloat16, or not at all."""
    if isinstance(weight, QuantizedMatrix):
        y_TF = _quantized_product(x_TK, weight)
    elif weight.dtype == torch.bfloat16:
        y_TF = _bf16_product(bf16(x_TK), weight.float().numpy())
    else:
        y_TF = _fused_product(x_TK, weight.numpy(), range(weight.shape[1]))
    return y_TF if bias_F is None else add(y_TF, bias_F)


def rms_norm(x_TK: Floats, weight_K: Floats, eps: float) -> Floats:
    """x / sqrt(mean(x²) + eps) * weight; the sum over 16 lanes is folded in half, four times."""
    squares_TL = np.zeros((len(x_TK), _LANES), np.float32)
    for start in range(0, x_TK.shape[1], _LANES):
        lanes_TL = x_TK[:, start : start + _LANES]
        squares_TL = fma(lanes_TL, lanes_TL, squares_TL)
    while squares_TL.shape[1] > 1:
        half = squares_TL.shape[1] // 2
        squares_TL = add(squares_TL[:, :half], squares_TL[:, half:])
    with np.errstate(all="ignore"):
        means_T1: Floats = squares_TL / np.float32(x_TK.shape[1])
        roots_T1: Floats = np.sqrt(add(means_T1, np.full_like(means_T1, eps)))
        inverses_T1 = flush(np.float32(1) / roots_T1)
    return multiply(multiply(x_TK, inverses_T1), weight_K)


def silu_mul(gate_TF: Floats, up_TF: Floats) -> npt.NDArray[np.float64]:
    """gate / (1 + exp(-gate)) * up in float64."""
    gate = gate_TF.astype(np.float64)
    with np.errstate(all="ignore"):
        result: npt.NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up_TF
    return result


def rotary(x_THD: Floats, cos_TD: Floats, sin_TD: Floats) -> Floats:
    """Dim i of each head turned against dim i + D/2 (the NeoX convention). `cos_TD` and `sin_TD`
    have D/2 columns."""
    half = x_THD.shape[2] // 2
    low, high = x_THD[:, :, :half], x_THD[:, :, half:]
    cos, sin = cos_TD[:, None], sin_TD[:, None]
    turned_low = fma(low, cos, np.float32(0) - multiply(high, sin))
    return np.concatenate([turned_low, fma(high, cos, multiply(low, sin))], axis=2)


def bf16(x: Floats) -> Floats:
    """The nearest bfloat16 (ties to even), as float32."""
    rounded: Floats = torch.from_numpy(flush(x)).bfloat16().float().numpy()
    return rounded


@dataclass(frozen=True, eq=False)
class PoolKv:
    """Keys and values of a pool, N×L×K×S×D; where they are int8, with scales, N×L×K×S."""

    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    key_scales: Floats | None
    value_scales: Floats | None


def read_pool(
    memory: npt.NDArray[np.uint8],
    *,
    num_layers: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    is_int8: bool,
) -> PoolKv:
    """A copy of what the blocks in `memory` hold: int8, or bfloat16 as float32.

    A layer of a block is [keys][values][key scales][value scales], each with one head after the
    other. Of a head, keys lie as [S/16][D/2][16][2] and values as [S/2][D][2] (KvLayer of
    csrc/kernels.h).
    """
    element = np.dtype("i1" if is_int8 else "<u2")
    heads = (num_kv_heads,)
    fields: list[tuple[str, Any, tuple[int, ...]]] = [
        ("keys", element, (*heads, block_size // 16, head_dim // 2, 16, 2)),
        ("values", element, (*heads, block_size // 2, head_dim, 2)),
    ]
    if is_int8:
        fields += [(name, "<f4", (*heads, block_size)) for name in ("key_scales", "value_scales")]
    layers_NL = memory.view(np.dtype(fields)).reshape(-1, num_layers)
    shape = (*layers_NL.shape, num_kv_heads, block_size, head_dim)
    # [S/16][D/2][16][2] -> [S/16][16][D/2][2] and [S/2][D][2] -> [S/2][2][D].
    keys = layers_NL["keys"].transpose(0, 1, 2, 3, 5, 4, 6).reshape(shape)
    values = layers_NL["values"].transpose(0, 1, 2, 3, 5, 4).reshape(shape)
    if is_int8:
        scales = layers_NL["key_scales"].copy(), layers_NL["value_scales"].copy()
        return PoolKv(keys, values, *scales)
    return PoolKv(_float_of_bf16(keys), _float_of_bf16(values), None, None)


def flush(x: Floats) -> Floats:
    """Denormals become zeros of their sign."""
    flushed: Floats = np.where(np.abs(x) < _SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)
    return flushed


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once.

    In float64 the product is exact and the sum is not. Rounded to odd there, a second rounding to
    float32 gives what one would (Boldo and Melquiond, "Emulation of FMA and correctly rounded
    sums: proved algorithms using rounding to odd", 2008); what it lost is Knuth's two-sum.
    """
    with np.errstate(all="ignore"):
        product, addend = np.broadcast_arrays(flush(a).astype(np.float64) * flush(b), flush(c))
        total = np.asarray(product + addend)
        back = total - product
        lost = (product - (total - back)) + (addend - back)
        is_even = total.view(np.int64) & 1 == 0
        odd = np.nextafter(total, np.copysign(np.inf, lost))
        total = np.where(is_even & np.isfinite(lost) & (lost != 0), odd, total)
        return flush(total.astype(np.float32))


def multiply(a: Floats, b: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return flush(flush(a) * flush(b))


def add(a: Floats, b: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return flush(flush(a) + flush(b))


def _quantized_product(x_TK: Floats, weight: QuantizedMatrix) -> Floats:
    """Exact integer sums of each weight group, scaled and added group after group."""
    num_out, num_in = weight.shape
    is_per_channel = weight.group == num_in and num_in != GROUP
    x = quantize(x_TK, num_in if is_per_channel else GROUP)
    q_TK, q_FK = x.q_TK.astype(np.int64), weight.q_FK.astype(np.int64) - weight.zero_point
    y_TF = np.zeros((len(x_TK), num_out), np.float32)
    for index in range(num_in // weight.group):
        inputs = slice(index * weight.group, (index + 1) * weight.group)
        sums_TF = (q_TK[:, inputs] @ q_FK[:, inputs].T).astype(np.float32)
        x_scales_T1 = x.scales_TG[:, 0 if is_per_channel else inputs.start // GROUP, None]
        scales_F = weight.scales_FG[:, index].astype(np.float32)
        products_TF = multiply(sums_TF, x_scales_T1)
        if is_per_channel:
            return multiply(products_TF, scales_F)
        y_TF = fma(products_TF, scales_F, y_TF)
        if weight.mins_FG is not None:
            input_sums_T1 = q_TK[:, inputs].sum(axis=1, keepdims=True).astype(np.float32)
            mins_F = weight.mins_FG[:, index].astype(np.float32)
            y_TF = fma(multiply(input_sums_T1, x_scales_T1), mins_F, y_TF)
    return y_TF


def _bf16_product(x_TK: Floats, weight_FK: Floats) -> Floats:
    """Of each pair of inputs the second goes first, as VDPBF16PS has it."""
    pairs = np.arange(x_TK.shape[1]).reshape(-1, 2)
    return _fused_product(x_TK, weight_FK, pairs[:, ::-1].ravel())


def _fused_product(x_TK: Floats, weight_FK: Floats, order: Any) -> Floats:
    y_TF = np.zeros((len(x_TK), len(weight_FK)), np.float32)
    for index in order:
        y_TF = fma(x_TK[:, index, None], weight_FK[:, index], y_TF)
    return y_TF


def _float_of_bf16(bits: npt.NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
