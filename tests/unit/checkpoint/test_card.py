"""Model cards, and identities that two hosts agree on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from baton.checkpoint import open_checkpoint, read_model_card
from baton.checkpoint.gguf import GgufFile
from baton.checkpoint.hf import HfFolder
from baton.core.errors import CheckpointError, UnsupportedModel

METADATA = {
    "llama.context_length": 128,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "<|im_end|>"],
    "tokenizer.ggml.token_type": [3, 3, 1, 3],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 64,
    "vocab_size": 10,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def embedding(seed: int = 0) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((6, 32), dtype=np.float32)
    return {"token_embd.weight": values}


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    save_file(embedding(), folder / "model.safetensors")
    return folder


def test_gguf_card(write_gguf):
    card = read_model_card(write_gguf(METADATA, embedding()))
    assert (card.architecture, card.model_type) == ("LlamaForCausalLM", "llama")
    assert card.context_length == 128
    assert card.vocab_size == 6  # rows of the embedding: what logits have
    assert card.bos_token_id == 0
    assert card.eos_token_ids == (1, 3)  # <|im_end|> is known to end a turn


def test_named_end_of_turn_is_taken_at_its_word(write_gguf):
    metadata = METADATA | {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 1}
    assert read_model_card(write_gguf(metadata, embedding())).eos_token_ids == (1, 2)


@pytest.mark.parametrize(
    ("gguf_name", "class_name"),
    [
        ("mistral", "MistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("mamba", "mamba"),
    ],
)
def test_gguf_architectures_go_by_their_class_names(write_gguf, gguf_name, class_name):
    metadata = {"general.architecture": gguf_name, f"{gguf_name}.context_length": 128}
    card = read_model_card(write_gguf(METADATA | metadata, embedding()))
    assert (card.architecture, card.model_type) == (class_name, gguf_name)


def test_hf_card(hf_folder):
    card = read_model_card(hf_folder)
    assert (card.architecture, card.model_type) == ("LlamaForCausalLM", "llama")
    assert (card.context_length, card.vocab_size, card.bos_token_id) == (64, 10, 0)
    assert card.eos_token_ids == (2, 1)


def test_open_checkpoint_tells_files_from_folders(write_gguf, hf_folder):
    assert isinstance(open_checkpoint(write_gguf(METADATA, embedding())), GgufFile)
    assert isinstance(open_checkpoint(hf_folder), HfFolder)
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_checkpoint(hf_folder / "gone")


def test_identity_ignores_the_name_and_sees_the_weights(write_gguf, hf_folder, tmp_path):
    first = read_model_card(write_gguf(METADATA, embedding(0), name="one.gguf")).model_id
    again = read_model_card(write_gguf(METADATA, embedding(0), name="two.gguf")).model_id
    other = read_model_card(write_gguf(METADATA, embedding(1), name="three.gguf")).model_id
    assert first == again != other

    copied = shutil.copytree(hf_folder, tmp_path / "copied")
    assert read_model_card(copied).model_id == read_model_card(hf_folder).model_id
    save_file(embedding(1), copied / "model.safetensors")
    assert read_model_card(copied).model_id != read_model_card(hf_folder).model_id


def test_identity_sees_metadata(write_gguf):
    first = read_model_card(write_gguf(METADATA, embedding())).model_id
    changed = METADATA | {"llama.rope.freq_base": 5.0}
    assert read_model_card(write_gguf(changed, embedding())).model_id != first


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ("max_position_embeddings", CheckpointError, "max_position_embeddings is None"),
        ("vocab_size", CheckpointError, "vocab_size is None"),
        ("architectures", UnsupportedModel, "lacks architectures"),
        ("model_type", UnsupportedModel, "lacks architectures or model_type"),
    ],
)
def test_incomplete_config_is_named(hf_folder, removed, error, message):
    config = {key: value for key, value in CONFIG.items() if key != removed}
    (hf_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        read_model_card(hf_folder)


def test_gguf_without_a_language_model_is_refused(write_gguf):
    with pytest.raises(CheckpointError, match=r"no token_embd\.weight"):
        read_model_card(write_gguf(METADATA))
    with pytest.raises(CheckpointError, match=r"llama\.context_length is None"):
        read_model_card(write_gguf({}, embedding()))


def test_truncated_safetensors_is_refused(hf_folder):
    (hf_folder / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        read_model_card(hf_folder)


def test_embedded_model_card(smollm2_gguf):
    card = read_model_card(smollm2_gguf)
    assert card.architecture == "LlamaForCausalLM"
    assert (card.context_length, card.vocab_size) == (8192, 49152)
    assert (card.bos_token_id, card.eos_token_ids) == (1, (2,))
