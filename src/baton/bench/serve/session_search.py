"""How many sessions at a time a server sustains: which numbers to try, and when to stop.

Doubling until limits are missed, then halving the gap between the most that was good and the fewest
that was not, to within a part of the answer.
Elsewhere: running a step (bench_serve.py).
"""

from dataclasses import dataclass, field


@dataclass
class SessionSearch:
    """Pure. Begins with `first`; done when the gap is one session, or `best / precision`. `best` is
    the most sessions that stayed within the limits, 0 for none."""

    most: int
    first: int = 1
    precision: int = 16
    best: int = 0
    _fewest_bad: int | None = field(default=None, init=False)

    def next_number(self) -> int | None:
        """None when the search is over."""
        if self._fewest_bad is None:
            return None if self.best >= self.most else min(self.best * 2 or self.first, self.most)
        if self._fewest_bad - self.best <= max(1, self.best // self.precision):
            return None
        return (self.best + self._fewest_bad) // 2

    def note(self, number: int, *, is_good: bool) -> None:
        if is_good:
            self.best = max(self.best, number)
        elif self._fewest_bad is None or number < self._fewest_bad:
            self._fewest_bad = number
