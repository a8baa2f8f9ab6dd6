"""Ids in the order of a key that changes often: the first one without looking at all of them.

A binary heap whose outdated entries stay until they come up; it is built anew when they are the
greater part. So a change costs O(log n) and the first O(log n) amortized, at any number of ids.
Invariant: the current entry of every id is in the heap.
Elsewhere: what is ordered by what (roster.py, waiting.py).
"""

import heapq
from collections.abc import Collection
from typing import Any

_Entry = tuple[Any, str]


class OrderedIds:
    """Keys of one instance must be comparable with each other; equal keys are ordered by id."""

    def __init__(self) -> None:
        self._current: dict[str, _Entry] = {}
        self._heap: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._current

    def put(self, id_: str, key: Any) -> None:
        """Give an id its place, or another one."""
        entry = (key, id_)
        self._current[id_] = entry
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, entry)

    def discard(self, id_: str) -> None:
        self._current.pop(id_, None)

    def first(self, excluded: Collection[str] = ()) -> str | None:
        """The id with the least key, None if all are excluded."""
        if not excluded:
            return self._top()
        found = self.first_few(1, excluded)
        return found[0] if found else None

    def first_few(self, num: int, excluded: Collection[str] = ()) -> list[str]:
        """At most `num` ids, least keys first."""
        found: list[str] = []
        taken: list[_Entry] = []
        while len(found) < num and (id_ := self._top()) is not None:
            taken.append(heapq.heappop(self._heap))
            if id_ not in excluded:
                found.append(id_)
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return found

    def _top(self) -> str | None:
        heap, current = self._heap, self._current
        while heap:
            entry = heap[0]
            if current.get(entry[1]) is entry:
                return entry[1]
            heapq.heappop(heap)
        return None

    def check_invariants(self) -> None:
        present = {id(entry) for entry in self._heap}
        assert all(id(entry) in present for entry in self._current.values())
        assert len(self._heap) <= 2 * len(self._current) + 65 or not self._current
