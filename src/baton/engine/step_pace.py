"""How many rows a step may have to end in time: what the last ones took, per row. Pure.

A prompt that is read beside running streams delays each of their tokens by its share of the step.
By the exactness contract the size of that share changes no result, so it may follow measured time.
Elsewhere: who asks and tells (core.py), which rows they become (scheduler.py).
"""

_SHARE_OF_NEWEST = 0.3
"""Weight of one step, so that a longer context or a taken core shows within a few."""


class StepPace:
    """Weighs steps by their rows: the fixed cost of a small one says little of a large one's."""

    def __init__(self) -> None:
        self._num_rows = 0.0
        self._seconds = 0.0

    def note(self, num_rows: int, seconds: float) -> None:
        """A step with a piece of a prompt has taken so long."""
        kept = 1.0 - _SHARE_OF_NEWEST
        self._num_rows = kept * self._num_rows + num_rows
        self._seconds = kept * self._seconds + seconds

    def rows_within(self, target_s: float) -> int | None:
        """None: nothing was measured yet."""
        if self._seconds <= 0.0:
            return None
        return int(target_s * self._num_rows / self._seconds)
