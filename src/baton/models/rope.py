"""Rotary position embedding: the angles, and their cosines and sines by position.

Invariant: the row of a position is the same whichever positions were asked for before, because the
table grows by pages that are computed alike. Angles are float32 products, as in
transformers: that is what the models were trained with.
Elsewhere: the rotation itself (kernels/, `rotary`).

Shapes: T tokens, D head dim.
"""

import math
from typing import Final

import torch

from baton.models.config import LinearScaling, Llama3Scaling, ModelConfig

_PAGE_POSITIONS: Final = 4096


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
        self._frequencies = inverse_frequencies
        self._cos = inverse_frequencies.new_empty(0, 2 * len(inverse_frequencies))
        self._sin = self._cos

    def rows(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each T×D, the second half of D repeating the first."""
        if positions_T.numel() > 0:
            self._grow_to(int(positions_T.max()) + 1)
        return self._cos.index_select(0, positions_T), self._sin.index_select(0, positions_T)

    def _grow_to(self, num_positions: int) -> None:
        while len(self._cos) < num_positions:
            start = len(self._cos)
            positions = torch.arange(
                start, start + _PAGE_POSITIONS, dtype=torch.float32, device=self._cos.device
            )
            angles = positions[:, None] * self._frequencies
            both = torch.cat((angles, angles), dim=-1)
            self._cos = torch.cat((self._cos, both.cos()))
            self._sin = torch.cat((self._sin, both.sin()))
