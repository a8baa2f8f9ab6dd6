"""Hugging Face folders: what is found, and what is missing is named."""

import json
from pathlib import Path

import pytest

from baton.checkpoint.hf import HfFolder
from baton.core.errors import CheckpointError, UnsupportedModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_absent_optional_files_are_empty(folder):
    found = HfFolder(folder)
    assert found.config == {"model_type": "llama"}
    assert found.generation_config == {}
    assert found.tokenizer_config == {}
    assert found.chat_template is None


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        HfFolder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000])
def test_a_damaged_config_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        HfFolder(folder)


def test_single_weight_file(folder):
    (folder / "model.safetensors").touch()
    assert HfFolder(folder).weight_files == [folder / "model.safetensors"]


def test_shards_are_listed_once_and_in_order(folder):
    weight_map = {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in weight_map.values():
        (folder / name).touch()
    names = [path.name for path in HfFolder(folder).weight_files]
    assert names == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, r"lacks the shard gone\.safetensors"),
        ({"weight_map": {"a": "../up.safetensors"}}, "not in its folder"),
        ({"weight_map": {}}, "no weight_map"),
    ],
)
def test_bad_index_is_refused(folder, index, message):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        _ = HfFolder(folder).weight_files


def test_missing_weights_and_pickles_are_told_apart(folder):
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        _ = HfFolder(folder).weight_files
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedModel, match=r"pickled weights \(pytorch_model\.bin\)"):
        _ = HfFolder(folder).weight_files


def test_missing_tokenizer_is_named(folder):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        _ = HfFolder(folder).tokenizer_file


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("plain", "plain"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "rag", "template": "r"}], "r"),
        ([], None),
        (7, None),
    ],
)
def test_chat_template_of_tokenizer_config(folder, entry, expected):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}))
    assert HfFolder(folder).chat_template == expected


def test_chat_template_file_wins(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (folder / "chat_template.jinja").write_text("new é")
    assert HfFolder(folder).chat_template == "new é"
