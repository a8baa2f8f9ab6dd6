"""What a model's name stands for."""

import io
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from baton.checkpoint import default_cache_dir, resolve_model
from baton.checkpoint.progress import SilentProgress, TerminalProgress
from baton.core.errors import CheckpointError, ConfigError


def resolve(name: str | None, cache_dir: Path) -> Path:
    return resolve_model(name, cache_dir=cache_dir, progress=SilentProgress())


@pytest.mark.parametrize("name", [None, "smollm2", "SmolLM2-135M-Instruct"])
def test_the_default_has_three_names(monkeypatch, tmp_path, name):
    monkeypatch.setattr(
        "baton.checkpoint.source.fetch_embedded", lambda cache_dir, progress: cache_dir / "default"
    )
    assert resolve(name, tmp_path) == tmp_path / "default"


def test_paths_are_checked_and_returned(tmp_path):
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    assert resolve(str(gguf), tmp_path) == gguf
    folder = tmp_path / "hf"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve(str(folder), tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        resolve(str(folder), tmp_path)
    (folder / "model.safetensors").touch()
    assert resolve(str(folder), tmp_path) == folder


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "m.bin").touch()
    with pytest.raises(ConfigError, match=r"is a \.bin file"):
        resolve(str(tmp_path / "m.bin"), tmp_path)


@pytest.mark.parametrize("name", ["gone", "/no/such/m.gguf", "models/m.gguf", "a/b/c", "org/m:x"])
def test_names_that_mean_nothing_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"no such file or folder; give a \.gguf file"):
        resolve(name, tmp_path)


def test_hub_folders_and_files(monkeypatch, tmp_path):
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "Q4.gguf").touch()
    assert resolve("org/name", tmp_path) == tmp_path
    assert resolve("org/name:Q4.gguf", tmp_path) == tmp_path / "Q4.gguf"
    assert asked[0][0] == asked[1][0] == "org/name"
    assert "*.safetensors" in asked[0][1]
    assert asked[1][1] == ["Q4.gguf"]
    with pytest.raises(CheckpointError, match=r"org/name .* has no file 'Q8\.gguf'"):
        resolve("org/name:Q8.gguf", tmp_path)


def test_unreachable_hub_says_both_that_it_is_no_path_and_no_hub(monkeypatch, tmp_path):
    def offline(repo: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no name service\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"'org/name' is not a path here, and .*hub could not"
    ):
        resolve("org/name", tmp_path)


def test_cache_folder_follows_the_environment():
    home = {"HOME": "/home/u"}
    assert default_cache_dir(home) == Path("/home/u/.cache/baton")
    assert default_cache_dir(home | {"XDG_CACHE_HOME": "/x"}) == Path("/x/baton")
    assert default_cache_dir(home | {"XDG_CACHE_HOME": "relative"}) == Path("/home/u/.cache/baton")
    assert default_cache_dir(home | {"XDG_CACHE_HOME": "/x", "BATON_CACHE": "/b"}) == Path("/b")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_names_its_stages(stream):
    with TerminalProgress(stream) as progress:
        progress.stage("Fetching it")
        progress.advance(1, 2)
        progress.stage("Unpacking it")
        progress.advance(2, 2)
    shown = stream.getvalue()
    if not stream.isatty():
        assert shown == "Fetching it\nUnpacking it\n"
    else:
        assert "it" in shown
