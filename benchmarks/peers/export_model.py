"""Write Baton's default model as a Hugging Face folder in bfloat16, for engines that read no GGUF.

    python benchmarks/peers/export_model.py [--model FILE.gguf] [--out FOLDER]

Every weight is the GGUF file's value rounded to bfloat16: another engine then computes the same
model, quantization error included. Runs in Baton's own environment.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from workload import DEFAULT_MODEL, models_dir

from baton.checkpoint import GgufFile
from baton.models.config import ModelConfig
from baton.models.gguf_source import GgufSource
from baton.models.registry import read_config
from baton.tokenizer.gguf_vocab import build_from_metadata
from baton.tokenizer.load import load_tokenizer


def export(model: Path, folder: Path) -> None:
    """Read `model` (GGUF, Llama family without biases) and write `folder`, made when missing.

    Raises CheckpointError or UnsupportedModel for a file that Baton cannot read."""
    file = GgufFile(model)
    config = read_config(file)
    source = GgufSource(file, config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: source.read(name).bfloat16().contiguous() for name in source.shapes()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    build_from_metadata(file.metadata).save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(model)
    end_ids = list(tokenizer.eos_token_ids)
    texts = {
        "bos_token": tokenizer.bos_token_id,
        "eos_token": end_ids[0],
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.context_length,
            "chat_template": tokenizer.chat_template,
        }
        | {
            name: tokenizer.decode([token_id], skip_special_tokens=False)
            for name, token_id in texts.items()
            if token_id is not None
        },
    )
    _write_json(folder / "config.json", _config(config) | {"eos_token_id": end_ids})


def _config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=None, help="default: PEERS_DIR/models/bf16")
    flags = parser.parse_args()
    folder = flags.out or models_dir() / "bf16"
    with torch.inference_mode():
        export(flags.model, folder)
    print(folder)


if __name__ == "__main__":
    main()
