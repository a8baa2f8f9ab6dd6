"""From what the user calls a model to files on this machine.

A name is, in this order: nothing or "smollm2" (the embedded default), a path that exists, or a
model of the Hugging Face hub ("org/name", or "org/name:FILE.gguf" for one GGUF file in it).
Invariant: what is returned exists and has the shape of a checkpoint.
Elsewhere: the embedded default (embedded.py), reading the files (gguf.py, hf.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from baton.checkpoint.embedded import SMOLLM2, fetch_embedded
from baton.checkpoint.hf import HfFolder
from baton.checkpoint.progress import Progress, TerminalProgress
from baton.core.errors import CheckpointError, ConfigError

EMBEDDED_NAMES: Final = frozenset({"smollm2", SMOLLM2.title.lower()})

_HUB_NAME: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[^:]+\.gguf))?"
)
_FOLDER_PATTERNS: Final = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model")


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """$BATON_CACHE, else $XDG_CACHE_HOME/baton, else ~/.cache/baton."""
    if own := environ.get("BATON_CACHE"):
        return Path(own).expanduser()
    shared = Path(environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG specification says to ignore relative ones
        return shared / "baton"
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError as error:
        raise ConfigError("this user has no home folder; set BATON_CACHE to a folder") from error
    return home / ".cache" / "baton"


def resolve_model(name: str | None, *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The .gguf file or Hugging Face folder that `name` stands for, fetched if need be.

    `cache_dir` keeps the embedded default; hub models go where huggingface_hub keeps them.
    `progress` defaults to stderr. Raises ConfigError for a name that means nothing and
    CheckpointError for a model that cannot be fetched or is incomplete.
    """
    if progress is None:
        with TerminalProgress() as terminal:
            return resolve_model(name, cache_dir=cache_dir, progress=terminal)
    if name is None or name.lower() in EMBEDDED_NAMES:
        return fetch_embedded(cache_dir, progress)
    path = Path(name).expanduser()
    if path.exists():
        return _checked(path)
    match = _HUB_NAME.fullmatch(name)
    if match is None or (match["file"] is None and name.endswith(".gguf")):
        raise ConfigError(
            f"--model-path {name!r}: there is no such file or folder; give a .gguf file, a Hugging"
            " Face folder, a hub model as org/name or org/name:FILE.gguf, or leave it out for"
            f" {SMOLLM2.title}"
        )
    return _from_hub(match["repo"], match["file"], progress)


def _checked(path: Path) -> Path:
    if path.is_dir():
        return _complete_folder(path)
    if path.suffix != ".gguf":
        raise ConfigError(
            f"--model-path {str(path)!r} is a {path.suffix or 'plain'} file; give a .gguf file or"
            " the folder that holds config.json"
        )
    return path


def _complete_folder(path: Path) -> Path:
    """`path`, once its config and every weight file have been found in it."""
    folder = HfFolder(path)
    _ = folder.weight_files
    return path


def _from_hub(repo: str, gguf_file: str | None, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download  # heavy, and only this branch needs it
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    progress.stage(f"Looking for {repo} on the Hugging Face hub")
    patterns = list(_FOLDER_PATTERNS) if gguf_file is None else [gguf_file]
    try:
        snapshot = Path(snapshot_download(repo, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CheckpointError(
            f"the hub gives {repo} only to accounts that accepted its terms; accept them, then set"
            " HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"--model-path {repo!r} is neither a path here nor a model on the Hugging Face hub;"
            " check the spelling, or set HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"--model-path {repo!r} is not a path here, and the Hugging Face hub could not be"
            f" reached ({_first_line(error)}); give a .gguf file or a folder that is on this"
            " machine, or set HF_ENDPOINT to a mirror"
        ) from error
    return _hub_result(repo, gguf_file, snapshot)


def _hub_result(repo: str, gguf_file: str | None, snapshot: Path) -> Path:
    if gguf_file is None:
        return _complete_folder(snapshot)
    path = snapshot / gguf_file
    if not path.is_file():
        raise CheckpointError(f"{repo} on the Hugging Face hub has no file {gguf_file!r}")
    return path


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
