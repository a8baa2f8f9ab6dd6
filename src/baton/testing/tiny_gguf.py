"""Tiny GGUF files: the tiny Llama of tiny_models.py as llama.cpp's converter would write it.

Elsewhere: reading GGUF (checkpoint/gguf.py), undoing the row order (models/gguf_source.py), the
types that the gguf package cannot write (k_quants.py).
"""

import json
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt
import torch

from baton.testing.k_quants import KQuantName, quantize_k
from baton.testing.tiny_models import Architecture, random_tensors, tiny_config
from baton.testing.tiny_tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TURN,
    SPECIAL_TOKENS,
    train_tokenizer,
)

TensorTypeName = Literal["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] | KQuantName
TENSOR_TYPES: Final[tuple[TensorTypeName, ...]] = tuple(
    name for literal in get_args(TensorTypeName) for name in get_args(literal)
)

_K_QUANT_SIZES: Final = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
"""K quants have blocks of 256 values, which the usual rows of 64 and 96 cannot fill."""

_NAMES: Final = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_tiny_gguf(
    path: Path,
    architecture: Architecture = "llama",
    seed: int = 0,
    *,
    tensor_type: TensorTypeName = "F16",
    other_types: dict[str, TensorTypeName] | None = None,
    extra_tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write the same weights that `write_tiny_model` writes for this seed, matrices as
    `tensor_type` and vectors as F32. The model is wider if there is a K quant among the types.

    `other_types` are for matrices whose Hugging Face name has the key in it: {"v_proj": "Q6_K"}.
    `extra_tensors` are added under their GGUF names.
    """
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    config = tiny_config(architecture)
    if any(_is_k_quant(kind) for kind in (tensor_type, *(other_types or {}).values())):
        config |= _K_QUANT_SIZES
    writer = gguf.GGUFWriter(path, config["model_type"])
    _write_sizes(writer, config)
    _write_tokenizer(writer, config["vocab_size"])
    for name, tensor in random_tensors(config, seed).items():
        values = _reorder_rows(name, tensor, config).numpy()
        own = [type_name for key, type_name in (other_types or {}).items() if key in name]
        kind = "F32" if values.ndim == 1 else own[0] if own else tensor_type
        raw_dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(_gguf_name(name), _quantize(values, kind), raw_dtype=raw_dtype)
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _is_k_quant(kind: TensorTypeName) -> TypeGuard[KQuantName]:
    return kind in get_args(KQuantName)


def _quantize(values: npt.NDArray[np.float32], kind: TensorTypeName) -> npt.NDArray[Any]:
    import gguf

    if _is_k_quant(kind):
        return quantize_k(values, kind)
    raw: npt.NDArray[Any] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return raw


def _write_sizes(writer: Any, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_tokenizer(writer: Any, vocab_size: int) -> None:
    import gguf

    tokenizer = train_tokenizer()
    model = json.loads(tokenizer.to_str())["model"]
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    types = [
        gguf.TokenType.UNUSED
        if index not in by_id
        else gguf.TokenType.CONTROL
        if text in SPECIAL_TOKENS
        else gguf.TokenType.NORMAL
        for index, text in enumerate(tokens)
    ]
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.token_to_id(END_OF_TURN))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _reorder_rows(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """llama.cpp's order of query and key rows, in which rotated pairs are neighbours."""
    if config["model_type"] not in ("llama", "mistral"):
        return tensor
    if ".q_proj." in name:
        num_heads = config["num_attention_heads"]
    elif ".k_proj." in name:
        num_heads = config["num_key_value_heads"]
    else:
        return tensor
    halves = tensor.view(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{kind}"
