"""How many rows a step may have to end in time: what the last ones took, per row. Pure.

A prompt that is read beside running streams delays each of their tokens by its share of the step.
By the exactness contract the size of that share changes no result, so it may follow measured time.
Elsewhere: who asks (disagg/loop.py), who tells (core.py), which rows they become (scheduler.py).
"""

from dataclasses import dataclass

from baton.engine.sequence import Sequence

_SHARE_OF_NEWEST = 0.3
"""Weight of one step, so that a longer context or a taken core shows within a few."""
_ROWS_PER_STREAM = 2
"""So many of a long prompt go with each stream's one at least, or many streams would starve it."""
_FEW_STREAMS = 2
"""Smooth steps make a long prompt take up to twice as long: more than so few streams gain by it."""


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


@dataclass(frozen=True)
class StepTarget:
    """How long a step with a piece of a prompt beside running streams may take. `smooth_s`, if it
    is shorter: where nobody else waits, the prompt has more than `long_tokens` and more than a few
    streams run, so that many gain by it and none but the prompt comes later for it."""

    usual_s: float
    smooth_s: float
    long_tokens: int

    def max_rows(
        self, pace: StepPace, lone: Sequence | None, num_streams: int, share: float = 1.0
    ) -> int | None:
        """Rows of the next step, those of streams included; None: nothing was measured yet.
        `lone`: the sequence whose prompt is the only one to be read. `share`: what steps may take
        of the time, as rests count, too."""
        usual = pace.rows_within(self.usual_s * share)
        smooth = pace.rows_within(self.smooth_s * share)
        if usual is None or smooth is None or lone is None or num_streams <= _FEW_STREAMS:
            return usual
        if lone.num_prompt_tokens - lone.num_cached_tokens <= self.long_tokens:
            return usual
        return min(usual, max(smooth, (1 + _ROWS_PER_STREAM) * num_streams))
