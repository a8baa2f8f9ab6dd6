"""A ModelConfig from GGUF metadata, and what its architectures call their tensors.

Keys are llama.cpp's: `<architecture>.<name>` (docs/gguf.md of the ggml project). Options that have
no key show in the tensors: a bias is there or not, and no `output.weight` means tied embeddings.
Elsewhere: config.json (config_hf.py), the weights (weights.py).
"""

from collections.abc import Mapping
from typing import Any, Final

from baton.core.errors import CheckpointError, UnsupportedModel
from baton.models.config import LinearScaling, ModelConfig, RopeScaling
from baton.models.config_fields import Fields

GGUF_ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`general.architecture` to Hugging Face's name. Mistral's GGUF files call themselves llama."""

Shapes = Mapping[str, tuple[int, ...]]


def config_from_gguf(
    metadata: Mapping[str, Any], tensor_shapes: Shapes, source: str = "GGUF metadata"
) -> ModelConfig:
    """Raises UnsupportedModel for what llama.py does not compute, CheckpointError for a key that
    is missing or of the wrong type."""
    arch = Fields(metadata, source).text("general.architecture")
    architecture = GGUF_ARCHITECTURES.get(arch)
    if architecture is None:
        raise UnsupportedModel(
            f"{source}: architecture {arch!r} is not supported; supported: "
            f"{', '.join(GGUF_ARCHITECTURES)}"
        )
    fields = _without_prefix(metadata, arch, source)
    _refuse_experts(fields)
    hidden_size = fields.whole("embedding_length")
    num_heads = _uniform(fields, "attention.head_count")
    head_dim = fields.whole("attention.key_length", hidden_size // num_heads)
    _check_head_dims(fields, head_dim)
    embedding = tensor_shapes.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(
            f"{source}: there is no tensor token_embd.weight; fetch the file again"
        )
    return ModelConfig(
        architecture=architecture,
        model_type=arch,
        vocab_size=embedding[0],
        hidden_size=hidden_size,
        num_layers=fields.whole("block_count"),
        num_heads=num_heads,
        num_kv_heads=_uniform(fields, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        intermediate_size=_uniform(fields, "feed_forward_length"),
        rms_norm_eps=fields.real("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.real("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(fields),
        context_length=fields.whole("context_length"),
        tie_word_embeddings="output.weight" not in tensor_shapes,
        qkv_bias="blk.0.attn_q.bias" in tensor_shapes,
        o_bias="blk.0.attn_output.bias" in tensor_shapes,
        mlp_bias="blk.0.ffn_down.bias" in tensor_shapes,
        qk_norm="blk.0.attn_q_norm.weight" in tensor_shapes,
        sliding_window=_sliding_window(fields),
    )


def _without_prefix(metadata: Mapping[str, Any], arch: str, source: str) -> Fields:
    prefix = f"{arch}."
    own = {
        key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
    }
    return Fields(own, f"{source}: {arch}")


def _uniform(fields: Fields, key: str, default: int | None = None) -> int:
    """A whole number that some files give once per layer."""
    value = fields.get(key)
    if not isinstance(value, list):
        return fields.whole(key, default)
    if len(set(value)) != 1:
        raise UnsupportedModel(
            f"{fields.source}.{key} differs between layers, which is not supported"
        )
    return int(value[0])


def _refuse_experts(fields: Fields) -> None:
    num_experts = fields.whole("expert_count", 0)
    if num_experts > 0:
        raise UnsupportedModel(
            f"{fields.source}.expert_count is {num_experts}: mixtures of experts are not supported"
        )


def _check_head_dims(fields: Fields, head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        value = fields.whole(key, head_dim)
        if value != head_dim:
            raise UnsupportedModel(
                f"{fields.source}.{key} is {value} and heads have {head_dim} dimensions; "
                "only equal ones are supported"
            )


def _rope_scaling(fields: Fields) -> RopeScaling:
    kind = fields.text("rope.scaling.type", "none")
    match kind:
        case "none":
            return None
        case "linear":
            return LinearScaling(fields.real("rope.scaling.factor"))
        case _:
            raise UnsupportedModel(
                f"{fields.source}.rope.scaling.type {kind!r} is not supported; supported: none, "
                "linear, and factors in a tensor rope_freqs.weight"
            )


def _sliding_window(fields: Fields) -> int | None:
    window = fields.whole("attention.sliding_window", 0)
    return window or None
