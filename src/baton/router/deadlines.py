"""Many things with one and the same time limit, and one timer for all of them.

Invariant: `expire` is called at most once per item, never for one that was discarded.
Elsewhere: what a limit means (generation.py, legs.py).
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Deadlines(Generic[Item]):
    """The limit is the same for all, so the first added is always the next to expire."""

    def __init__(self, limit_s: float, expire: Callable[[Item], None]):
        self._limit_s = limit_s
        self._expire = expire
        self._due_s: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._due_s)

    def add(self, item: Item) -> None:
        loop = self._loop
        if loop is None:  # to ask for it costs as much as all else here
            loop = self._loop = asyncio.get_running_loop()
        self._due_s[item] = loop.time() + self._limit_s
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._look)

    def discard(self, item: Item) -> None:
        self._due_s.pop(item, None)

    def items(self) -> list[Item]:
        return list(self._due_s)

    def close(self) -> None:
        """Nothing expires any more."""
        self._due_s.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for item, due_s in list(self._due_s.items()):
            if due_s > loop.time():
                self._timer = loop.call_at(due_s, self._look)
                return
            del self._due_s[item]
            self._expire(item)
