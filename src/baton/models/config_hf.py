"""A ModelConfig from a Hugging Face config.json, of transformers 4 or 5.

The two differ in where rope stands: `rope_theta` and `rope_scaling` (older), or `rope_parameters`
with both in it (newer).
Elsewhere: GGUF (config_gguf.py), the weights (weights.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from baton.core.errors import UnsupportedModel
from baton.models.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling
from baton.models.config_fields import Fields

_DEFAULT_ROPE_THETA: Final = 10000.0
_DEFAULT_EPS: Final = 1e-6
_DEFAULT_MAX_WINDOW_LAYERS: Final = 28
_SUPPORTED_ROPE: Final = "default, linear, llama3"


@dataclass(frozen=True)
class _Family:
    """How an architecture differs from plain Llama. None: config.json says (default false)."""

    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: bool = False
    window_is_optional: bool = False
    """`use_sliding_window` switches `sliding_window` on, from layer `max_window_layers`."""


_FAMILIES: Final[dict[str, _Family]] = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(qkv_bias=False, o_bias=False, mlp_bias=False),
    "Qwen2ForCausalLM": _Family(
        qkv_bias=True, o_bias=False, mlp_bias=False, window_is_optional=True
    ),
    "Qwen3ForCausalLM": _Family(mlp_bias=False, qk_norm=True, window_is_optional=True),
}

SUPPORTED_ARCHITECTURES: Final = tuple(_FAMILIES)


def config_from_hf(config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Raises UnsupportedModel for what llama.py does not compute, CheckpointError for a field
    that is missing or of the wrong type."""
    fields = Fields(config, source)
    architecture = _architecture(fields)
    family = _FAMILIES[architecture]
    _refuse_options(fields)
    num_heads = fields.whole("num_attention_heads")
    hidden_size = fields.whole("hidden_size")
    attention_bias = fields.flag("attention_bias", False)
    rope_theta, rope_scaling = _rope(fields)
    return ModelConfig(
        architecture=architecture,
        model_type=fields.text("model_type"),
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.whole("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.whole("num_key_value_heads", num_heads),
        head_dim=fields.whole("head_dim", hidden_size // num_heads),
        intermediate_size=fields.whole("intermediate_size"),
        rms_norm_eps=fields.real("rms_norm_eps", _DEFAULT_EPS),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        context_length=fields.whole("max_position_embeddings"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=_chosen(family.qkv_bias, attention_bias),
        o_bias=_chosen(family.o_bias, attention_bias),
        mlp_bias=_chosen(family.mlp_bias, fields.flag("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(fields, family),
    )


def _chosen(fixed: bool | None, configured: bool) -> bool:
    return configured if fixed is None else fixed


def _architecture(fields: Fields) -> str:
    named = fields.get("architectures") or []
    known = [name for name in named if name in _FAMILIES]
    if not known:
        shown = ", ".join(map(str, named)) or "none named"
        raise UnsupportedModel(
            f"{fields.source}: architecture {shown} is not supported; supported: "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return str(known[0])


def _refuse_options(fields: Fields) -> None:
    act = fields.text("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedModel(f"{fields.source}: hidden_act {act!r} is not supported; only silu")
    quantization = fields.section("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method")
        raise UnsupportedModel(
            f"{fields.source}: quantization {method!r} is not supported; use the folder in bf16, "
            "fp16 or fp32, or a GGUF file"
        )
    partial = fields.real("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise UnsupportedModel(
            f"{fields.source}: partial_rotary_factor {partial} is not supported; only 1.0"
        )


def _rope(fields: Fields) -> tuple[float, RopeScaling]:
    """(theta, scaling) from `rope_parameters`, else from `rope_theta` and `rope_scaling`."""
    theta = fields.real("rope_theta", _DEFAULT_ROPE_THETA)
    section = fields.section("rope_parameters") or fields.section("rope_scaling")
    if section is None:
        return theta, None
    return section.real("rope_theta", theta), _rope_scaling(section, fields)


def _rope_scaling(section: Fields, fields: Fields) -> RopeScaling:
    kind = section.get("rope_type") or section.get("type") or "default"
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(section.real("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=section.real("factor"),
                low_freq_factor=section.real("low_freq_factor"),
                high_freq_factor=section.real("high_freq_factor"),
                original_context_length=section.whole("original_max_position_embeddings"),
            )
        case _:
            raise UnsupportedModel(
                f"{fields.source}: rope scaling {kind!r} is not supported; supported: "
                f"{_SUPPORTED_ROPE}"
            )


def _sliding_window(fields: Fields, family: _Family) -> int | None:
    window = None if fields.get("sliding_window") is None else fields.whole("sliding_window")
    if family.window_is_optional and not fields.flag("use_sliding_window", False):
        window = None
    if window is None:
        return None
    match _layers_with_window(fields, family):
        case "all":
            return window
        case "none":
            return None
        case _:
            raise UnsupportedModel(
                f"{fields.source}: sliding_window {window} in some layers only (layer_types, "
                "max_window_layers) is not supported; supported: in all layers, or in none"
            )


def _layers_with_window(fields: Fields, family: _Family) -> Literal["all", "none", "some"]:
    layer_types = fields.get("layer_types")
    if layer_types is not None:
        kinds = set(layer_types)
        if kinds == {"sliding_attention"}:
            return "all"
        return "none" if kinds == {"full_attention"} else "some"
    if not family.window_is_optional:
        return "all"
    first = fields.whole("max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS)
    if first >= fields.whole("num_hidden_layers"):
        return "none"
    return "all" if first == 0 else "some"
