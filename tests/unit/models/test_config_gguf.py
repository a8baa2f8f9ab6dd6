from typing import Any

import pytest

from baton.core.errors import CheckpointError, UnsupportedModel
from baton.models.config import LinearScaling, ModelConfig
from baton.models.config_gguf import config_from_gguf

METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {"token_embd.weight": (320, 64)}


def config_of(shapes: tuple[str, ...] = (), **changes: Any) -> ModelConfig:
    own = {f"llama.{key.replace('__', '.')}": value for key, value in changes.items()}
    return config_from_gguf(METADATA | own, SHAPES | dict.fromkeys(shapes, (1,)))


def options_of(config: ModelConfig) -> tuple[bool, ...]:
    return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm


def refusal(**changes: Any) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        config_of(**changes)
    return str(caught.value)


def test_defaults() -> None:
    config = config_of()
    assert config.architecture == "LlamaForCausalLM"
    assert (config.vocab_size, config.head_dim, config.num_kv_heads) == (320, 16, 4)
    assert config.rope_theta == 10000.0
    assert config.tie_word_embeddings
    assert options_of(config) == (False, False, False, False)


def test_options_show_in_the_tensors() -> None:
    names = ("output.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_down.bias")
    config = config_of((*names, "blk.0.attn_q_norm.weight"))
    assert not config.tie_word_embeddings
    assert options_of(config) == (True, True, True, True)


def test_values_per_layer() -> None:
    assert config_of(attention__head_count_kv=[2, 2]).num_kv_heads == 2
    assert "head_count_kv differs between layers" in refusal(attention__head_count_kv=[2, 4])


def test_rope_scaling() -> None:
    linear = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    assert config_of(**linear).rope_scaling == LinearScaling(4.0)
    message = refusal(rope__scaling__type="yarn")
    assert "rope.scaling.type 'yarn' is not supported; supported: none, linear" in message


def test_sliding_window() -> None:
    assert config_of(attention__sliding_window=128).sliding_window == 128
    assert config_of(attention__sliding_window=0).sliding_window is None


def test_experts_are_refused() -> None:
    assert "expert_count is 8: mixtures of experts" in refusal(expert_count=8)


@pytest.mark.parametrize("key", ["attention__value_length", "rope__dimension_count"])
def test_unequal_head_dimensions_are_refused(key: str) -> None:
    assert "is 8 and heads have 16 dimensions" in refusal(**{key: 8})


def test_other_architectures_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="'gemma3' is not supported; supported: llama"):
        config_from_gguf(METADATA | {"general.architecture": "gemma3"}, SHAPES)


def test_missing_fields_are_named() -> None:
    with pytest.raises(CheckpointError, match="llama: embedding_length is absent"):
        config_of(embedding_length=None)
    with pytest.raises(CheckpointError, match=r"token_embd\.weight"):
        config_from_gguf(METADATA, {})
