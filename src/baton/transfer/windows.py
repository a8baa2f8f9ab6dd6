"""The byte ranges of a region that may be written to right now.

Invariant: after `close` of a window returns, nobody is inside its lock and nobody gets in again
while believing it open.
Elsewhere: receiving into a window (tcp_receiver.py).
"""

import bisect
import threading
from collections.abc import Sequence


class Window:
    """Ranges open for one transfer. Write into them only under `lock`, and only while `is_open`."""

    def __init__(self, name: str, ranges: Sequence[tuple[int, int]]):
        self.name = name
        self.lock = threading.Lock()
        self.is_open = True
        merged = _merge(ranges)
        self._starts = [start for start, _ in merged]
        self._ends = [end for _, end in merged]

    def contains(self, start: int, end: int) -> bool:
        index = bisect.bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]


class WindowTable:
    """All open windows of one region, by name."""

    def __init__(self, region_bytes: int):
        self._region_bytes = region_bytes
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = {}

    def open(self, name: str, ranges: Sequence[tuple[int, int]]) -> None:
        for start, end in ranges:
            if not 0 <= start <= end <= self._region_bytes:
                raise ValueError(
                    f"range [{start}, {end}) of window {name} is outside of the region "
                    f"of {self._region_bytes} bytes"
                )
        window = Window(name, ranges)
        with self._lock:
            if name in self._windows:
                raise ValueError(f"window {name} is open already; use a new name per transfer")
            self._windows[name] = window

    def get(self, name: str) -> Window | None:
        with self._lock:
            return self._windows.get(name)

    def close(self, name: str) -> None:
        with self._lock:
            window = self._windows.pop(name, None)
        if window is not None:
            # Said before waiting for the lock: a receiver that re-enters quickly would otherwise
            # keep us out for as long as bytes arrive.
            window.is_open = False
            with window.lock:
                pass


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
