"""Length-prefixed frames on a byte stream: four bytes big-endian length, then the payload."""

import struct
from collections.abc import Iterator

from baton.core.errors import BatonError

_HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 64 * 2**20


class FrameError(BatonError, ValueError):
    """The other side announced a frame larger than allowed."""


def frame(payload: bytes) -> bytes:
    """Header and payload as one piece. Raises FrameError above MAX_FRAME_BYTES."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(payload)} bytes is above {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream of received pieces into frames; the limit may change between two of them."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES):
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        """Yields the frames that are complete now. Raises FrameError for an oversized header."""
        self._buffer += piece
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (num_bytes,) = _HEADER.unpack_from(self._buffer, start)
            if num_bytes > self.max_frame_bytes:
                raise FrameError(f"frame of {num_bytes} bytes is above {self.max_frame_bytes}")
            end = start + _HEADER.size + num_bytes
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _HEADER.size : end])
            start = end
        del self._buffer[:start]
