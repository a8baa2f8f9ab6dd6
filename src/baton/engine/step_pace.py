"""How many rows a step may have to end in time: what the last ones took, per row. Pure.

A prompt that is read beside running streams delays each of their tokens by its share of the step.
By the exactness contract the size of that share changes no result, so it may follow measured time.
Elsewhere: who asks and tells (core.py), which rows they become (scheduler.py).
"""

from dataclasses import dataclass

from baton.engine.sequence import Sequence

_SHARE_OF_NEWEST = 0.3
"""Weight of one step, so that a longer context or a taken core shows within a few."""


@dataclass(frozen=True)
class StepTarget:
    """How long a step with a piece of a prompt beside running streams may take. `smooth_s`: where
    nobody else waits for a prompt of more than `long_tokens`, so that it alone comes later for it.
    """

    usual_s: float
    smooth_s: float
    long_tokens: int

    def of(self, lone: Sequence | None) -> float:
        """`lone`: the sequence whose prompt is the only one to be read."""
        if lone is None:
            return self.usual_s
        num_tokens = lone.num_prompt_tokens - lone.num_cached_tokens
        return self.smooth_s if num_tokens > self.long_tokens else self.usual_s


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
