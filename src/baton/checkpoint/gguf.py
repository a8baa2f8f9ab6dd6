"""One GGUF file: its metadata, and its tensors as bytes in place or as float32.

Invariant: no count, length or offset that the file states is used before it has been compared
with the file's length, so a truncated or hostile file raises CheckpointError and never crashes
or allocates more than a small multiple of its own size.
Elsewhere: byte-level reading (gguf_reader.py), Hugging Face folders (hf.py), what tensor names
mean (models/), the tokenizer inside the metadata (tokenizer/).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from baton.checkpoint.gguf_reader import ByteReader, read_metadata
from baton.core.errors import CheckpointError, UnsupportedModel

MAGIC: Final = b"GGUF"
SUPPORTED_VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_DIMENSIONS: Final = 4
_MIN_TENSOR_ENTRY_BYTES: Final = 8 + 4 + 8 + 4 + 8  # name length, n_dims, one dim, type, offset


@dataclass(frozen=True)
class TensorType:
    """`block_size` elements of a row are stored together in `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


SUPPORTED_TYPES: Final[dict[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}
"""By the type number in the file (ggml.h, enum ggml_type)."""

_OTHER_TYPE_NAMES: Final = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """`shape` is in torch order (rows first). `data` is a read-only uint8 view into the mapped
    file of shape (*shape[:-1], bytes per row), still in the file's quantized form."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


class GgufFile:
    """A mapped GGUF file (version 2 or 3, little-endian).

    `metadata` holds plain Python values, arrays as lists. `data_offset` is where tensor bytes
    begin; everything before it is header. Raises CheckpointError when the file is damaged and
    UnsupportedModel when it is sound but of a version, byte order or tensor type we lack.
    """

    def __init__(self, path: Path):
        self.path = path
        mapped = _map_file(path)
        reader = ByteReader(mapped, str(path))
        num_tensors, num_entries = _read_header(reader)
        self.metadata: dict[str, Any] = read_metadata(reader, num_entries)
        _refuse_split(path, self.metadata)
        entries = _read_tensor_entries(reader, num_tensors)
        alignment = _alignment(reader, self.metadata)
        self.data_offset: int = min(-(-reader.position // alignment) * alignment, reader.size)
        self.size_bytes: int = reader.size
        self.tensors: dict[str, GgufTensor] = {
            entry.name: _place(reader, mapped, entry, self.data_offset, alignment)
            for entry in entries
        }

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """Values of tensor `name` as a new, writable float32 array of its torch shape."""
        from gguf import GGMLQuantizationType, quants  # 0.2 s to import; api processes never do

        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: there is no tensor {name!r}; the file has {len(self.tensors)}"
                " tensors, so it is of another architecture or incomplete"
            )
        values = quants.dequantize(tensor.data, GGMLQuantizationType[tensor.type_name])
        return np.array(values, dtype=np.float32, order="C").reshape(tensor.shape)


@dataclass(frozen=True)
class _TensorEntry:
    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.type.block_size * self.type.block_bytes


def _map_file(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty; fetch the file again")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror or error}") from error


def _read_header(reader: ByteReader) -> tuple[int, int]:
    """(number of tensors, number of metadata entries), after checking magic and version."""
    magic = bytes(reader.take(4, "magic"))
    if magic != MAGIC:
        raise CheckpointError(f"{reader.name} is not a GGUF file: it begins with {magic!r}")
    version = reader.u32("version")
    if version & 0xFFFF == 0 and version != 0:
        raise UnsupportedModel(f"{reader.name} is big-endian GGUF; convert it to little-endian")
    if version not in SUPPORTED_VERSIONS:
        raise UnsupportedModel(
            f"{reader.name} is GGUF version {version}; versions 2 and 3 are supported"
        )
    num_tensors = reader.u64("tensor count")
    num_entries = reader.u64("metadata count")
    reader.check_count(num_tensors, _MIN_TENSOR_ENTRY_BYTES, "tensor count")
    return num_tensors, num_entries


def _refuse_split(path: Path, metadata: dict[str, Any]) -> None:
    count = metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        raise UnsupportedModel(
            f"{path} is one of {count} parts; merge them first (llama-gguf-split --merge)"
        )


def _alignment(reader: ByteReader, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise CheckpointError(f"{reader.name}: general.alignment is {value!r}, not a power of two")
    return value


def _read_tensor_entries(reader: ByteReader, num_tensors: int) -> list[_TensorEntry]:
    entries: list[_TensorEntry] = []
    names: set[str] = set()
    for index in range(num_tensors):
        entry = _read_tensor_entry(reader, index)
        if entry.name in names:
            raise CheckpointError(f"{reader.name}: tensor {entry.name!r} is listed twice")
        names.add(entry.name)
        entries.append(entry)
    return entries


def _read_tensor_entry(reader: ByteReader, index: int) -> _TensorEntry:
    name = reader.string(f"name of tensor {index}")
    num_dimensions = reader.u32(f"number of dimensions of {name}")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(
            f"{reader.name}: tensor {name!r} has {num_dimensions} dimensions, not 1 to"
            f" {MAX_DIMENSIONS}"
        )
    extents = [reader.u64(f"shape of {name}") for _ in range(num_dimensions)]
    type_number = reader.u32(f"type of {name}")
    offset = reader.u64(f"offset of {name}")
    tensor_type = SUPPORTED_TYPES.get(type_number)
    if tensor_type is None:
        type_name = _OTHER_TYPE_NAMES.get(type_number, f"number {type_number}")
        known = ", ".join(each.name for each in SUPPORTED_TYPES.values())
        raise UnsupportedModel(
            f"{reader.name}: tensor {name!r} has type {type_name}; supported are {known}"
        )
    if min(extents) == 0 or extents[0] % tensor_type.block_size:
        raise CheckpointError(
            f"{reader.name}: tensor {name!r} has shape {tuple(reversed(extents))}, which"
            f" {tensor_type.name} rows of {tensor_type.block_size} elements cannot fill"
        )
    return _TensorEntry(name, tensor_type, tuple(reversed(extents)), offset)


def _place(
    reader: ByteReader,
    mapped: npt.NDArray[np.uint8],
    entry: _TensorEntry,
    data_offset: int,
    alignment: int,
) -> GgufTensor:
    """The tensor's view into the file, once its place there has been checked."""
    start = data_offset + entry.offset
    if entry.offset % alignment or start + entry.num_bytes > reader.size:
        raise CheckpointError(
            f"{reader.name}: tensor {entry.name!r} should be {entry.num_bytes} bytes at {start}"
            f" (alignment {alignment}), but the file has {reader.size} bytes; it is truncated or"
            " damaged: fetch it again"
        )
    row_bytes = entry.shape[-1] // entry.type.block_size * entry.type.block_bytes
    view = mapped[start : start + entry.num_bytes].reshape(*entry.shape[:-1], row_bytes)
    return GgufTensor(entry.name, entry.type.name, entry.shape, view)
