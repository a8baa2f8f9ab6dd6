from typing import Any

import pytest

from baton.core.errors import CheckpointError, UnsupportedModel
from baton.models.config import LinearScaling, Llama3Scaling
from baton.models.config_hf import SUPPORTED_ARCHITECTURES, config_from_hf
from baton.testing.tiny_models import Architecture, tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config_of(architecture: Architecture = "llama", **changes: Any) -> dict[str, Any]:
    return tiny_config(architecture) | changes


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        config_from_hf(config)
    return str(caught.value)


def test_sizes() -> None:
    config = config_from_hf(config_of("llama"))
    assert config.head_dim == 16
    assert (config.num_heads, config.num_kv_heads) == (4, 2)
    assert config.context_length == 4096
    assert config.rope_theta == 10000.0
    assert config.sliding_window is None


def test_optional_fields_may_be_null_or_absent() -> None:
    source = config_of("mistral", head_dim=None, sliding_window=None)
    del source["num_key_value_heads"], source["tie_word_embeddings"]
    config = config_from_hf(source)
    assert config.head_dim == 16
    assert config.num_kv_heads == 4
    assert not config.tie_word_embeddings
    assert config.sliding_window is None


@pytest.mark.parametrize(
    ("architecture", "biases"),
    [
        ("llama", (True, True, True)),
        ("mistral", (False, False, False)),
        ("qwen2", (True, False, False)),
        ("qwen3", (True, True, False)),
    ],
)
def test_biases_where_the_configuration_asks_for_all(
    architecture: Architecture, biases: tuple[bool, bool, bool]
) -> None:
    config = config_from_hf(config_of(architecture, attention_bias=True, mlp_bias=True))
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == biases


def test_old_and_new_rope_fields_agree() -> None:
    old = config_of("llama", rope_theta=5e5, rope_scaling=LLAMA3)
    new = config_of("llama", rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    del new["rope_theta"]
    assert config_from_hf(old) == config_from_hf(new)
    assert config_from_hf(new).rope_theta == 5e5
    assert config_from_hf(new).rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_rope(key: str) -> None:
    config = config_from_hf(config_of(rope_scaling={key: "linear", "factor": 4.0}))
    assert config.rope_scaling == LinearScaling(4.0)


def test_default_rope() -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e6}
    config = config_from_hf(config_of(rope_parameters=parameters))
    assert config.rope_scaling is None
    assert config.rope_theta == 1e6


@pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic"])
def test_other_rope_is_refused(kind: str) -> None:
    message = refusal(config_of(rope_scaling={"rope_type": kind, "factor": 4.0}))
    assert f"rope scaling '{kind}' is not supported; supported: default, linear, llama3" in message


def test_other_architectures_are_refused() -> None:
    message = refusal(config_of(architectures=["MixtralForCausalLM"]))
    assert "architecture MixtralForCausalLM is not supported" in message
    assert all(name in message for name in SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization 'gptq'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_other_options_are_refused(changes: dict[str, Any], part: str) -> None:
    assert part in refusal(config_of(**changes))


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"use_sliding_window": False}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 24),
        ({"use_sliding_window": True, "max_window_layers": 3}, None),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, 24),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 3}, None),
    ],
)
def test_window_of_qwen(changes: dict[str, Any], window: int | None) -> None:
    assert config_from_hf(config_of("qwen2", **changes)).sliding_window == window


@pytest.mark.parametrize(
    "changes",
    [
        {"max_window_layers": 1},
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ],
)
def test_windows_in_some_layers_are_refused(changes: dict[str, Any]) -> None:
    message = refusal(config_of("qwen2", use_sliding_window=True, **changes))
    assert "sliding_window 24 in some layers only" in message


def test_window_of_mistral() -> None:
    assert config_from_hf(config_of("mistral")).sliding_window == 24


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "64", "hidden_size is '64'; it must be a whole number"),
        ("num_hidden_layers", None, "num_hidden_layers is absent; it must be a whole number"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small'; it must be a number"),
        ("tie_word_embeddings", 1, "tie_word_embeddings is 1; it must be true or false"),
        ("rope_scaling", 4, "rope_scaling is 4; it must be an object"),
        ("model_type", 4, "model_type is 4; it must be a string"),
        ("num_key_value_heads", 3, "num_heads is 4, not a multiple of num_kv_heads, which is 3"),
        ("head_dim", 15, "head_dim is 15; rotary positions need pairs"),
        ("num_hidden_layers", 0, "num_layers is 0; it must be at least 1"),
    ],
)
def test_wrong_fields_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        config_from_hf(config_of("llama", **{key: value}))
    assert message in str(caught.value)
