"""Encoding of messages: msgpack through msgspec, typed and validated on the way in.

No pickle ever: a peer can at worst send a frame that is refused.
"""

from typing import Any, Generic, TypeVar

import msgspec

M = TypeVar("M")


class Codec(Generic[M]):
    """Encodes and decodes one closed union of messages."""

    def __init__(self, union: Any):
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(union)

    def encode(self, message: M) -> bytes:
        return self._encoder.encode(message)

    def decode(self, frame: bytes | memoryview) -> M:
        """Raises msgspec.DecodeError (ValidationError for wrong shapes) on a malformed frame."""
        message: M = self._decoder.decode(frame)
        return message
