"""Rotary position embedding: the angles, and their cosines and sines by position.

Invariant: the row of a position is the same whichever positions were asked for before, because the
table grows by pages that are computed alike. Angles are float32 products, as in
transformers: that is what the models were trained with.
Elsewhere: the rotation itself (kernels/).

Shapes: T tokens, D head dim.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from baton.models.config import LinearScaling, Llama3Scaling, ModelConfig

_PAGE_POSITIONS: Final = 4096

Table = npt.NDArray[np.float32]


def inverse_frequencies(config: ModelConfig, factors: torch.Tensor | None = None) -> torch.Tensor:
    """Radians per position of each of the D/2 pairs. `factors` (D/2) divide them: GGUF's
    `rope_freqs.weight`."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    match config.rope_scaling:
        case LinearScaling(factor=factor):
            frequencies = frequencies / factor
        case Llama3Scaling() as scaling:
            frequencies = _scale_llama3(frequencies, scaling)
        case None:
            pass
    return frequencies if factors is None else frequencies / factors


def _scale_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Llama 3.1's rule (transformers, modeling_rope_utils): by how many turns a pair makes within
    the original context."""
    turns = scaling.original_context_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - kept) * frequencies / scaling.factor + kept * frequencies


class RotaryTable:
    """Cosines and sines for every position, computed when first asked for."""

    def __init__(self, inverse_frequencies: torch.Tensor):
        self._frequencies = inverse_frequencies.cpu().numpy()
        self._cos = np.empty((0, len(self._frequencies)), dtype=np.float32)
        self._sin = self._cos

    def rows(self, positions_T: npt.NDArray[np.int64]) -> tuple[Table, Table]:
        """(cos, sin), each T×D/2."""
        if positions_T.size > 0:
            self._grow_to(int(positions_T.max()) + 1)
        return self._cos[positions_T], self._sin[positions_T]

    def _grow_to(self, num_positions: int) -> None:
        while len(self._cos) < num_positions:
            start = len(self._cos)
            positions = np.arange(start, start + _PAGE_POSITIONS, dtype=np.float32)
            # In float64 the last bits, which differ from library to library, are rounded away.
            angles = (positions[:, None] * self._frequencies).astype(np.float64)
            self._cos = np.concatenate((self._cos, np.cos(angles).astype(np.float32)))
            self._sin = np.concatenate((self._sin, np.sin(angles).astype(np.float32)))
