"""What a model of the Llama family is: sizes and options, whatever file they were written in.

Invariant: a ModelConfig describes something llama.py computes exactly. Whatever it does not compute
(an architecture, a rope scaling, a quantized folder) is refused here by name, before any
weight is read.
Elsewhere: reading config.json (config_hf.py) and GGUF metadata (config_gguf.py), end tokens
(core/model_card.py), shapes of the tensors (llama.py).
"""

from dataclasses import dataclass

from baton.core.errors import CheckpointError


@dataclass(frozen=True)
class LinearScaling:
    """All positions are divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: low frequencies are divided by `factor`, high ones kept, with a smooth band
    between (Hugging Face's rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


RopeScaling = LinearScaling | Llama3Scaling | None


@dataclass(frozen=True)
class ModelConfig:
    """`qkv_bias`, `o_bias`, `mlp_bias`: those products have biases. `qk_norm`: queries and keys are
    normalized per head before they are rotated (Qwen3). `sliding_window`: each position sees
    this many last keys, itself among them, in every layer (None: all)."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    context_length: int
    rope_scaling: RopeScaling = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "context_length",
        ):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_heads is {self.num_heads}, not a multiple of num_kv_heads, "
                f"which is {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; rotary positions need pairs")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise CheckpointError(f"sliding_window is {self.sliding_window}; it must be at least 1")
