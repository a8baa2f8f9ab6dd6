"""The last requests of a process, found by name: bounded, and cheap to add to.

Elsewhere: what is kept of a request (core/timeline.py, router/journal.py).
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

RecordT = TypeVar("RecordT")

NUM_RECENT: Final = 1000


class Recent(Generic[RecordT]):
    """`add` is one append; `find` walks, newest first."""

    def __init__(self, limit: int = NUM_RECENT):
        self._records: deque[RecordT] = deque(maxlen=limit)
        self.add: Callable[[RecordT], None] = self._records.append

    def __len__(self) -> int:
        return len(self._records)

    def find(self, is_it: Callable[[RecordT], bool]) -> RecordT | None:
        return next((each for each in reversed(self._records) if is_it(each)), None)

    def since(self, is_recent: Callable[[RecordT], bool]) -> list[RecordT]:
        """Those that are, oldest first."""
        return [each for each in self._records if is_recent(each)]
