"""Bounds-checked reading of GGUF's primitive values, strings and arrays.

Invariant: `position` never passes `size`, and an array's count is compared with the bytes left
before anything is allocated for it.
Elsewhere: what the values mean (gguf.py). Format: docs/gguf.md of the ggml project.
"""

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from baton.core.errors import CheckpointError

MAX_ARRAY_DEPTH: Final = 4

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

_STRING_TYPE: Final = 8
_ARRAY_TYPE: Final = 9
_SCALAR_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_MIN_METADATA_ENTRY_BYTES: Final = 8 + 4 + 1  # key length, value type, shortest value


class ByteReader:
    """A cursor over a mapped file. `name` opens every error message."""

    def __init__(self, mapped: npt.NDArray[np.uint8], name: str):
        # A plain memoryview: slicing it is several times cheaper than slicing an array.
        self._bytes = mapped.data
        self.name = name
        self.size = len(self._bytes)
        self.position = 0

    def take(self, count: int, what: str) -> memoryview:
        end = self.position + count
        if end > self.size:
            raise self._short(what, count)
        taken = self._bytes[self.position : end]
        self.position = end
        return taken

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def string(self, what: str) -> str:
        raw = self.take(self.u64(f"length of {what}"), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self._not_text(what) from error

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings in a tight loop: a vocabulary has hundreds of thousands."""
        self.check_count(count, 8, what)
        source, size, unpack = self._bytes, self.size, _U64.unpack_from
        texts: list[str] = []
        end = self.position
        try:
            for _ in range(count):
                start = end + 8
                end = start + unpack(source, end)[0]
                if end > size:
                    raise self._short(f"{what}[{len(texts)}]", end - start)
                texts.append(str(source[start:end], "utf-8"))
        except struct.error as error:
            raise self._short(f"{what}[{len(texts)}]", 8) from error
        except UnicodeDecodeError as error:
            raise self._not_text(f"{what}[{len(texts)}]") from error
        self.position = end
        return texts

    def check_count(self, count: int, min_bytes_each: int, what: str) -> None:
        if count * min_bytes_each > self.size - self.position:
            raise self._short(what, count * min_bytes_each)

    def _short(self, what: str, wanted: int) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: {what} at byte {self.position} needs {wanted} bytes, but the file has"
            f" {self.size}; it is truncated or damaged: fetch it again"
        )

    def _not_text(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {what} near byte {self.position} is not UTF-8 text")


def read_metadata(reader: ByteReader, num_entries: int) -> dict[str, Any]:
    reader.check_count(num_entries, _MIN_METADATA_ENTRY_BYTES, "metadata count")
    metadata: dict[str, Any] = {}
    for index in range(num_entries):
        key = reader.string(f"metadata key {index}")
        if key in metadata:
            raise CheckpointError(f"{reader.name}: metadata key {key!r} is listed twice")
        metadata[key] = _read_value(reader, reader.u32(f"type of {key}"), key, depth=0)
    return metadata


def _read_value(reader: ByteReader, value_type: int, key: str, depth: int) -> Any:
    if value_type == _STRING_TYPE:
        return reader.string(key)
    if value_type == _ARRAY_TYPE:
        return _read_array(reader, key, depth + 1)
    return _read_scalars(reader, value_type, 1, key)[0]


def _read_array(reader: ByteReader, key: str, depth: int) -> list[Any]:
    if depth > MAX_ARRAY_DEPTH:
        raise CheckpointError(f"{reader.name}: {key} nests arrays more than {MAX_ARRAY_DEPTH} deep")
    element_type = reader.u32(f"element type of {key}")
    count = reader.u64(f"length of {key}")
    if element_type == _STRING_TYPE:
        return reader.strings(count, key)
    if element_type == _ARRAY_TYPE:
        reader.check_count(count, 4 + 8, key)
        return [_read_array(reader, key, depth + 1) for _ in range(count)]
    return _read_scalars(reader, element_type, count, key)


def _read_scalars(reader: ByteReader, value_type: int, count: int, key: str) -> list[Any]:
    dtype = _SCALAR_DTYPES.get(value_type)
    if dtype is None:
        raise CheckpointError(f"{reader.name}: {key} has unknown value type {value_type}")
    raw = reader.take(count * dtype.itemsize, key)
    values: list[Any] = np.frombuffer(raw, dtype=dtype).tolist()
    return values
