"""Linear layers, all made in one place.

This is the seam for what splits or packs weights: a rank's share of a tensor-parallel layer, or
a quantized form, is another `LinearFactory` and no change to the models.
Elsewhere: the product itself (kernels/, `linear`).
"""

from typing import Protocol

import torch

from baton.kernels.interface import Ops
from baton.models.weights import Weights


class Linear(Protocol):
    def __call__(self, x_TE: torch.Tensor) -> torch.Tensor: ...


class LinearFactory(Protocol):
    def make(
        self, names: list[str], in_features: int, out_features: list[int], *, bias: bool
    ) -> Linear:
        """One layer that computes the layers `names` at once, their outputs side by side."""
        ...

    def wrap(self, weight_FE: torch.Tensor) -> Linear:
        """A layer of a weight that has another use too (tied embeddings)."""
        ...


class DenseLinear:
    """y = x Wᵀ + b in float32."""

    def __init__(self, ops: Ops, weight_FE: torch.Tensor, bias_F: torch.Tensor | None):
        self._ops = ops
        self._weight_FE = ops.pack_weight(weight_FE)
        self._bias_F = bias_F

    def __call__(self, x_TE: torch.Tensor) -> torch.Tensor:
        return self._ops.linear(x_TE, self._weight_FE, self._bias_F)


class DenseLinearFactory:
    """Reads whole float32 layers."""

    def __init__(self, ops: Ops, weights: Weights):
        self._ops = ops
        self._weights = weights

    def make(
        self, names: list[str], in_features: int, out_features: list[int], *, bias: bool
    ) -> Linear:
        sizes = list(zip(names, out_features, strict=True))
        take = self._weights.take
        weight_FE = torch.cat([take(f"{name}.weight", size, in_features) for name, size in sizes])
        bias_F = torch.cat([take(f"{name}.bias", size) for name, size in sizes]) if bias else None
        return DenseLinear(self._ops, weight_FE, bias_F)

    def wrap(self, weight_FE: torch.Tensor) -> Linear:
        return DenseLinear(self._ops, weight_FE.float(), None)
