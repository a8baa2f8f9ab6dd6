"""A ring of points on which every key finds a worker (consistent hashing).

Invariant: a key's worker depends on the key and the set of members only; when a member leaves, the
keys of the others stay where they are, and when it comes back it gets its own keys again.
Elsewhere: whose key a request carries (router/prompt_shape.py).
"""

import bisect
from collections.abc import Callable

import xxhash

POINTS_PER_WORKER = 128
"""More points, more even shares: with 128 a worker's share deviates by some 9 percent."""


class HashRing:
    """Points are put in order when a key is next looked up, so that many members can join at
    the cost of one."""

    def __init__(self) -> None:
        self._points: list[int] = []
        self._owners: dict[int, str] = {}
        self._members: dict[str, list[int]] = {}
        self._is_sorted = True

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: str, name: str) -> None:
        """`name` decides the places: it must be the same in every router and after a restart."""
        assert member not in self._members
        mine = []
        for index in range(POINTS_PER_WORKER):
            point = xxhash.xxh3_64_intdigest(f"{name}#{index}".encode())
            if point not in self._owners:
                self._owners[point] = member
                mine.append(point)
        self._members[member] = mine
        self._points += mine
        self._is_sorted = False

    def discard(self, member: str) -> None:
        mine = self._members.pop(member)
        for point in mine:
            del self._owners[point]
        gone = set(mine)
        self._points = [point for point in self._points if point not in gone]

    def find(self, key: str, is_usable: Callable[[str], bool]) -> str | None:
        """The first usable member from the key's place onwards."""
        if not self._is_sorted:
            self._points.sort()
            self._is_sorted = True
        points, owners = self._points, self._owners
        start = bisect.bisect_left(points, xxhash.xxh3_64_intdigest(key.encode()))
        refused: set[str] = set()
        for step in range(len(points)):
            member = owners[points[(start + step) % len(points)]]
            if member in refused:
                continue
            if is_usable(member):
                return member
            refused.add(member)
            if len(refused) == len(self._members):
                break
        return None
