"""One Hugging Face model folder: its JSON files and which files hold its weights.

Invariant: every file it names exists; weights are safetensors, never pickles.
Elsewhere: reading safetensors (models/), the tokenizer (tokenizer/), GGUF files (gguf.py),
fetching a folder from the hub (source.py).
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from baton.core.errors import CheckpointError, UnsupportedModel

SINGLE_WEIGHT_FILE: Final = "model.safetensors"
WEIGHT_INDEX: Final = "model.safetensors.index.json"


class HfFolder:
    """`config.json` is read at once (CheckpointError without it); the rest when asked for."""

    def __init__(self, path: Path):
        self.path = path
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path} has no config.json, so it is not a Hugging Face model folder; give such"
                " a folder or a .gguf file"
            )
        self.config: dict[str, Any] = _read_object(path / "config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return _read_object_if_there(self.path / "generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return _read_object_if_there(self.path / "tokenizer_config.json")

    @cached_property
    def weight_files(self) -> list[Path]:
        """The safetensors files, sorted by name; CheckpointError names a missing shard."""
        index_file = self.path / WEIGHT_INDEX
        if index_file.is_file():
            return self._shards(index_file)
        single = self.path / SINGLE_WEIGHT_FILE
        if single.is_file():
            return [single]
        found = sorted(self.path.glob("*.safetensors"))
        if len(found) == 1:
            return found
        pickles = sorted(self.path.glob("*.bin")) + sorted(self.path.glob("*.pt*"))
        if pickles and not found:
            raise UnsupportedModel(
                f"{self.path} has only pickled weights ({pickles[0].name}); convert them to"
                " safetensors"
            )
        raise CheckpointError(
            f"{self.path} has neither {SINGLE_WEIGHT_FILE} nor {WEIGHT_INDEX}; fetch it again"
        )

    @cached_property
    def tokenizer_file(self) -> Path:
        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.path} has no tokenizer.json; save one with"
                " transformers' AutoTokenizer.save_pretrained (a fast tokenizer)"
            )
        return path

    @cached_property
    def chat_template(self) -> str | None:
        """Of chat_template.jinja, else of tokenizer_config.json (of several, "default")."""
        template_file = self.path / "chat_template.jinja"
        if template_file.is_file():
            return _read_text(template_file)
        template = self.tokenizer_config.get("chat_template")
        if isinstance(template, list):
            return _default_template(template)
        return template if isinstance(template, str) else None

    def _shards(self, index_file: Path) -> list[Path]:
        weight_map = _read_object(index_file).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index_file} has no weight_map; fetch it again")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{index_file} names {name!r}, which is not in its folder")
            if not (self.path / name).is_file():
                raise CheckpointError(
                    f"{self.path} lacks the shard {name} ({len(names)} are listed in"
                    f" {WEIGHT_INDEX}); fetch the folder again"
                )
        return [self.path / name for name in names]


def _default_template(templates: list[Any]) -> str | None:
    named = {
        entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)
    }
    chosen = named.get("default") or next(iter(named.values()), None)
    return chosen if isinstance(chosen, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _read_object_if_there(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.is_file() else {}
