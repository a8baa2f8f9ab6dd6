"""The sizes that kernels are measured at: those of SmolLM2-135M, the default model."""

from typing import Final

HIDDEN_SIZE: Final = 576
INTERMEDIATE_SIZE: Final = 1536
NUM_HEADS: Final = 9
NUM_KV_HEADS: Final = 3
HEAD_DIM: Final = 64

LINEAR_SHAPES: Final = {
    "qkv": ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, HIDDEN_SIZE),
    "o": (HIDDEN_SIZE, NUM_HEADS * HEAD_DIM),
    "gate_up": (2 * INTERMEDIATE_SIZE, HIDDEN_SIZE),
    "down": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
}
"""Features out and in of a layer's four products."""
