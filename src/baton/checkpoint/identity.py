"""A digest that names a checkpoint, so that two hosts know they serve the same weights.

It covers sizes, headers (shapes, types, hyperparameters and, in GGUF, the tokenizer) and samples
of tensor bytes spread over each file: milliseconds instead of the seconds a full hash of many
gigabytes takes. It tells apart other models, fine-tunes (training moves nearly every weight),
quantizations and tokenizers. It does NOT notice a few changed bytes between samples: that is what
a download's checksum is for. The file's name and place do not count.
Invariant: reads at most NUM_SAMPLES * SAMPLE_BYTES of weights per file.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from baton.checkpoint.gguf import GgufFile
from baton.checkpoint.hf import HfFolder
from baton.core.errors import CheckpointError

if TYPE_CHECKING:
    from hashlib import _Hash

NUM_SAMPLES: Final = 64
SAMPLE_BYTES: Final = 4096
MAX_SAFETENSORS_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""


def gguf_identity(file: GgufFile) -> str:
    digest = hashlib.sha256(b"baton-gguf-1")
    _add_weights(digest, file.path, file.data_offset)
    return digest.hexdigest()


def hf_identity(folder: HfFolder) -> str:
    digest = hashlib.sha256(b"baton-hf-1")
    small_files = [folder.path / "config.json", folder.path / "tokenizer.json"]
    for path in small_files:
        if path.is_file():
            _add_framed(digest, path.name.encode())
            _add_framed(digest, path.read_bytes())
    for path in folder.weight_files:
        _add_framed(digest, path.name.encode())
        _add_weights(digest, path, _safetensors_data_offset(path))
    return digest.hexdigest()


def _safetensors_data_offset(path: Path) -> int:
    """Where tensor bytes begin: 8 bytes that hold the header's length, then the header."""
    with path.open("rb") as file:
        length_field = file.read(8)
    header_bytes = int.from_bytes(length_field, "little")
    size = path.stat().st_size
    if len(length_field) < 8 or header_bytes > min(size - 8, MAX_SAFETENSORS_HEADER_BYTES):
        raise CheckpointError(f"{path} is truncated or not safetensors; fetch it again")
    return 8 + header_bytes


def _add_weights(digest: "_Hash", path: Path, data_offset: int) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        _add_framed(digest, file.read(data_offset))
        last = max(data_offset, size - SAMPLE_BYTES)
        for index in range(NUM_SAMPLES):
            file.seek(data_offset + (last - data_offset) * index // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


def _add_framed(digest: "_Hash", content: bytes) -> None:
    """Length first, so that no two different lists of parts give the same bytes."""
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)
