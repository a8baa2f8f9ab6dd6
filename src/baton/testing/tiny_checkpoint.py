"""A complete Hugging Face folder of a Llama with a few thousand random weights.

Invariant: the same bytes every time, so that two servers given it answer alike.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_LAYERS, _HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INNER = 2, 64, 4, 2, 16, 128
_CONTEXT_LENGTH = 4096
_SPECIAL = ("<|begin|>", "<|end|>")
_CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write_tiny_checkpoint(folder: Path) -> Path:
    """Writes config, weights and tokenizer into `folder`; returns it."""
    tokenizer = _byte_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    begin, end = (tokenizer.token_to_id(token) for token in _SPECIAL)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "vocab_size": vocab_size,
        "max_position_embeddings": _CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": begin,
        "eos_token_id": end,
    }
    tokenizer_config = {
        "bos_token": _SPECIAL[0],
        "eos_token": _SPECIAL[1],
        "chat_template": _CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(_weights(vocab_size), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _byte_tokenizer() -> Tokenizer:
    """One token for each byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer


def _weights(vocab_size: int) -> dict[str, Any]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Any:
        return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    weights: dict[str, Any] = {"model.embed_tokens.weight": matrix(vocab_size, _HIDDEN)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "self_attn.q_proj.weight": matrix(_HEADS * _HEAD_DIM, _HIDDEN),
            prefix + "self_attn.k_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN),
            prefix + "self_attn.v_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN),
            prefix + "self_attn.o_proj.weight": matrix(_HIDDEN, _HEADS * _HEAD_DIM),
            prefix + "mlp.gate_proj.weight": matrix(_INNER, _HIDDEN),
            prefix + "mlp.up_proj.weight": matrix(_INNER, _HIDDEN),
            prefix + "mlp.down_proj.weight": matrix(_HIDDEN, _INNER),
            prefix + "input_layernorm.weight": np.ones(_HIDDEN, np.float32),
            prefix + "post_attention_layernorm.weight": np.ones(_HIDDEN, np.float32),
        }
    return weights | {"model.norm.weight": np.ones(_HIDDEN, np.float32)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))
