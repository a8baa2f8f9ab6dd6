"""Tiny random checkpoints of every supported architecture, complete enough to start a server on.

They have random weights from a seed, a byte-level tokenizer and a chat template, and take
milliseconds to write. Their text is noise; what they are for is that every part of the real
thing is there: grouped heads, biases, head norms, a window, rope scaling, end tokens.
Elsewhere: their tokenizer (tiny_tokenizer.py), the embedded real model (checkpoint/embedded.py).
"""

import json
from pathlib import Path
from typing import Any, Final, Literal

import torch

from baton.testing.tiny_tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, train_tokenizer

Architecture = Literal["llama", "llama3", "mistral", "qwen2", "qwen3"]
TINY_ARCHITECTURES: Final[tuple[Architecture, ...]] = (
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
)
"""`llama3` is Llama with Llama 3.1's rope scaling; `mistral` has a window of 24 tokens."""

VOCAB_SIZE: Final = 320
CONTEXT_LENGTH: Final = 4096
_HIDDEN, _INNER, _NUM_LAYERS, _NUM_HEADS, _NUM_KV_HEADS = 64, 96, 3, 4, 2

_COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "num_hidden_layers": _NUM_LAYERS,
    "num_attention_heads": _NUM_HEADS,
    "num_key_value_heads": _NUM_KV_HEADS,
    "max_position_embeddings": CONTEXT_LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE: Final = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_OWN: Final[dict[Architecture, dict[str, Any]]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_scaling": _LLAMA3_ROPE,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 24,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 24,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "attention_bias": False,
    },
}


def write_tiny_model(
    folder: Path,
    architecture: Architecture = "llama",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
) -> Path:
    """Write a Hugging Face folder and return it. `num_shards` > 1 writes an index as well."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    end_id = tokenizer.token_to_id(END_OF_TURN)
    config = tiny_config(architecture) | {"eos_token_id": end_id, "bos_token_id": None}
    _write_json(folder / "config.json", config | {"torch_dtype": str(dtype).split(".")[1]})
    end_ids = [end_id, tokenizer.token_to_id(END_OF_TEXT)]
    _write_json(folder / "generation_config.json", {"eos_token_id": end_ids})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TURN,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = random_tensors(config, seed)
    _write_weights(folder, {name: each.to(dtype) for name, each in tensors.items()}, num_shards)
    return folder


def tiny_config(architecture: Architecture) -> dict[str, Any]:
    """Its config.json, without token ids."""
    return _COMMON | _OWN[architecture]


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Every tensor of such a model by Hugging Face's names, in float32."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.1 * values
        elif name.endswith(".bias"):
            values = 0.2 * values
        else:
            # Layers whose outputs are as large as their inputs, and embeddings that are smaller:
            # so the next token depends on the context and not on the last token alone.
            values = values / shape[-1] ** 0.5
        tensors[name] = values
    return tensors


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q_size = config["num_attention_heads"] * head_dim
    kv_size = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{attention}.q_proj.weight": (q_size, hidden),
            f"{attention}.k_proj.weight": (kv_size, hidden),
            f"{attention}.v_proj.weight": (kv_size, hidden),
            f"{attention}.o_proj.weight": (hidden, q_size),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        }
        if config["model_type"] == "qwen2":
            shapes |= {
                f"{attention}.q_proj.bias": (q_size,),
                f"{attention}.k_proj.bias": (kv_size,),
                f"{attention}.v_proj.bias": (kv_size,),
            }
        if config["model_type"] == "qwen3":
            shapes |= {
                f"{attention}.q_norm.weight": (head_dim,),
                f"{attention}.k_norm.weight": (head_dim,),
            }
    return shapes


def _write_weights(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> None:
    from safetensors.torch import save_file

    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        own = names[shard::num_shards]
        save_file({name: tensors[name] for name in own}, folder / file_name)
        weight_map |= dict.fromkeys(own, file_name)
    _write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
