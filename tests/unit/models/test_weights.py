"""Checkpoints that do not fit their configuration are refused, by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.checkpoint import read_model_card
from baton.core.errors import CheckpointError, UnsupportedModel
from baton.models.registry import load_model
from baton.testing.tiny_gguf import write_tiny_gguf
from baton.testing.tiny_models import write_tiny_model

Tensors = dict[str, torch.Tensor]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny", "llama")


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def load_error(path: Path) -> str:
    with pytest.raises((CheckpointError, UnsupportedModel)) as caught:
        load_model(read_model_card(path))
    return str(caught.value)


def test_missing_tensor(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop(Q_PROJ))
    assert f"tensor {Q_PROJ} should have shape (64, 64); it is not there" in load_error(folder)


def test_misshapen_tensor(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros(64, 48)}))
    assert f"tensor {Q_PROJ} should have shape (64, 64); found (64, 48)" in load_error(folder)


def test_unexpected_tensor(folder: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    change(folder, lambda tensors: tensors.update({bias: torch.zeros(64)}))
    assert f"no place for tensor {bias} (64,)" in load_error(folder)


def test_many_unexpected_tensors_are_counted(folder: Path) -> None:
    extra = {f"vision.{index}": torch.zeros(1) for index in range(9)}
    change(folder, lambda tensors: tensors.update(extra))
    assert "vision.4 (1,) and 4 more" in load_error(folder)


def test_tensor_of_another_type(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(torch.int8)}))
    message = load_error(folder)
    assert f"tensor {Q_PROJ} has type int8; supported: float32, float16, bfloat16" in message


def test_damaged_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in load_error(folder)


def test_copies_and_computed_tensors_are_passed_over(tmp_path: Path) -> None:
    """A tied model that carries its head all the same, and an old save's rope frequencies."""
    folder = write_tiny_model(tmp_path / "tiny", "llama3")
    extra = {
        "lm_head.weight": torch.zeros(320, 64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }
    change(folder, lambda tensors: tensors.update(extra))
    load_model(read_model_card(folder))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny", "llama", num_shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    save_file(load_file(first) | load_file(second), second)
    assert "is in two weight files" in load_error(folder)


def test_unexpected_gguf_tensor(tmp_path: Path) -> None:
    extra = {"blk.0.ffn_gate_exps.weight": torch.zeros(32)}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", extra_tensors=extra)
    assert "no place for tensor blk.0.ffn_gate_exps.weight (32,)" in load_error(path)


def test_config_larger_than_weights(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert "model.layers.3.input_layernorm.weight" in load_error(folder)
