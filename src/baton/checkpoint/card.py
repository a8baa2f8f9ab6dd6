"""Opening a checkpoint by its path, and the short description the api process serves from.

Invariant: everything in a ModelCard is read from headers and small files, never from all weights.
Elsewhere: the digest behind model_id (identity.py), fetching by name (source.py).
"""

from pathlib import Path
from typing import Any, Final

from baton.checkpoint.gguf import GgufFile
from baton.checkpoint.hf import HfFolder
from baton.checkpoint.identity import gguf_identity, hf_identity
from baton.core.errors import CheckpointError, UnsupportedModel
from baton.core.model_card import ModelCard

_GGUF_END_TOKEN_KEYS: Final = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)
_END_OF_TURN_TEXTS: Final = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""Marks that chat models end a turn with. Older GGUF files of such models carry only the
document's end token in their metadata, and without these a chat would run on and on."""

_CONTROL_TOKEN_TYPE: Final = 3

_CLASS_NAMES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""GGUF's `general.architecture` to the class names of Hugging Face, which routers and clients of
a worker look for whatever form its weights have. Others keep GGUF's name: nothing serves them."""


def open_checkpoint(path: Path) -> GgufFile | HfFolder:
    """A .gguf file or a Hugging Face folder, whose weight files have been found.

    Raises CheckpointError (missing, damaged, incomplete) or UnsupportedModel.
    """
    if path.is_dir():
        folder = HfFolder(path)
        _ = folder.weight_files  # looked up here so that a missing shard is known at once
        return folder
    if path.is_file():
        return GgufFile(path)
    raise CheckpointError(f"{path} is neither a file nor a folder; check --model-path")


def read_model_card(path: Path) -> ModelCard:
    checkpoint = open_checkpoint(path)
    if isinstance(checkpoint, GgufFile):
        return _gguf_card(checkpoint)
    return _hf_card(checkpoint)


def _gguf_card(file: GgufFile) -> ModelCard:
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"{file.path}: metadata has no general.architecture")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path} has no token_embd.weight, so it is no language model")
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return ModelCard(
        path=file.path,
        model_id=gguf_identity(file),
        architecture=_CLASS_NAMES.get(architecture, architecture),
        model_type=architecture,
        context_length=_whole(metadata, f"{architecture}.context_length", file.path),
        vocab_size=embedding.shape[0],
        bos_token_id=bos if isinstance(bos, int) else None,
        eos_token_ids=gguf_end_token_ids(metadata),
    )


def gguf_end_token_ids(metadata: dict[str, Any]) -> tuple[int, ...]:
    """Ids that end a generation: those the metadata names, and if it names no end of turn,
    control tokens that are known to be one."""
    named = [metadata.get(key) for key in _GGUF_END_TOKEN_KEYS]
    ids = [value for value in named if isinstance(value, int)]
    if "tokenizer.ggml.eot_token_id" not in metadata:
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        types = metadata.get("tokenizer.ggml.token_type", [])
        pairs = enumerate(zip(tokens, types, strict=False))
        ids += [
            index
            for index, (token, kind) in pairs
            if kind == _CONTROL_TOKEN_TYPE and token in _END_OF_TURN_TEXTS
        ]
    return tuple(dict.fromkeys(ids))


def _hf_card(folder: HfFolder) -> ModelCard:
    config = folder.config
    architectures = config.get("architectures") or []
    model_type = config.get("model_type")
    if not architectures or not isinstance(model_type, str):
        raise UnsupportedModel(
            f"{folder.path}/config.json lacks architectures or model_type, so it names no model"
        )
    return ModelCard(
        path=folder.path,
        model_id=hf_identity(folder),
        architecture=str(architectures[0]),
        model_type=model_type,
        context_length=_whole(config, "max_position_embeddings", folder.path / "config.json"),
        vocab_size=_whole(config, "vocab_size", folder.path / "config.json"),
        bos_token_id=next(iter(_ids(config.get("bos_token_id"))), None),
        eos_token_ids=hf_end_token_ids(folder),
    )


def hf_end_token_ids(folder: HfFolder) -> tuple[int, ...]:
    """End ids of generation_config.json and config.json together: either may lack some."""
    ids = _ids(folder.generation_config.get("eos_token_id"))
    return tuple(dict.fromkeys(ids + _ids(folder.config.get("eos_token_id"))))


def _ids(value: Any) -> list[int]:
    listed = value if isinstance(value, list) else [value]
    return [each for each in listed if isinstance(each, int) and not isinstance(each, bool)]


def _whole(fields: dict[str, Any], key: str, source: Path) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"{source}: {key} is {value!r}; it must be a positive whole number")
    return value
