"""What the bytes of one window may be, after writes of which some have ended half-way. Pure.

Elsewhere: the storm that asks (storm.py).
"""

from collections.abc import Sequence

import numpy as np

from baton.transfer.protocol import Copy


class WindowBytes:
    """Of the `ranges` of `target` as they are now, written from `source`, which stays as it is.

    Writes are told in posting order. Each byte has one value that it must have, or may have that of
    a write that did not get to its end."""

    def __init__(self, ranges: Sequence[tuple[int, int]], source: memoryview, target: memoryview):
        self._source = np.frombuffer(source, np.uint8)
        self._pieces = [(start, np.array(target[start:end])) for start, end in ranges]
        self._maybe: list[Copy] = []

    def arrived(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            self._maybe = [part for each in self._maybe for part in _outside(each, copy)]
            for start, piece in self._pieces:
                low, high = _overlap(copy, start, len(piece))
                piece[low - start : high - start] = self._sent(copy, low, high)

    def may_have_arrived(self, copies: Sequence[Copy]) -> None:
        self._maybe += copies

    def first_wrong(self, target: memoryview) -> int | None:
        """The first offset of `target` whose byte cannot be, None if all can."""
        for start, piece in self._pieces:
            got = np.frombuffer(target[start : start + len(piece)], np.uint8)
            is_right = got == piece
            for copy in self._maybe:
                low, high = _overlap(copy, start, len(piece))
                here = slice(low - start, high - start)
                is_right[here] |= got[here] == self._sent(copy, low, high)
            if not is_right.all():
                return start + int(is_right.argmin())
        return None

    def _sent(
        self, copy: Copy, low: int, high: int
    ) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        shift = copy.src_offset - copy.dst_offset
        return self._source[low + shift : high + shift]


def _overlap(copy: Copy, start: int, num_bytes: int) -> tuple[int, int]:
    """Where the copy meets the piece; empty, inside of the piece, if nowhere."""
    low = min(max(copy.dst_offset, start), start + num_bytes)
    return low, max(low, min(copy.dst_offset + copy.num_bytes, start + num_bytes))


def _outside(copy: Copy, later: Copy) -> list[Copy]:
    """What of `copy` the later one does not write over."""
    low, high = _overlap(later, copy.dst_offset, copy.num_bytes)
    num_before, num_until = low - copy.dst_offset, high - copy.dst_offset
    parts = [
        Copy(copy.src_offset, copy.dst_offset, num_before),
        Copy(copy.src_offset + num_until, high, copy.num_bytes - num_until),
    ]
    return [part for part in parts if part.num_bytes > 0]
