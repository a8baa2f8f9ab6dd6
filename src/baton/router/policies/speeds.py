"""What workers have shown they can do: prompt tokens per second, and how long a hand-over takes.

Each figure is an exponentially weighted mean of what was measured, of one worker if it has been
measured, else of all, else a cautious guess.
Invariant: every figure is finite and not negative; a speed is above 0.
Elsewhere: who measures (the legs of a request), what is predicted from it (predict.py).
"""

import math
from collections import OrderedDict

MAX_LINKS = 4096
"""Pairs remembered; those longest unmeasured are forgotten first."""

SHARE_OF_NEWEST = 0.2
"""Weight of one measurement: the last ten make up nine tenths of the mean."""

GUESSED_PREFILL_TOKENS_PER_S = 2000.0
GUESSED_HANDOVER_S = 0.005


class Mean:
    """An exponentially weighted mean; None until something was measured."""

    __slots__ = ("num_samples", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self.num_samples = 0

    def note(self, sample: float) -> None:
        if not (math.isfinite(sample) and sample > 0):
            return  # a clock that stood still measures nothing
        self.num_samples += 1
        if self.value is None:
            self.value = sample
        else:
            self.value += SHARE_OF_NEWEST * (sample - self.value)


class MeanPerWorker:
    def __init__(self, guess: float) -> None:
        self._guess = guess
        self._all = Mean()
        self._of: dict[str, Mean] = {}

    def note(self, worker_id: str, sample: float) -> None:
        self._all.note(sample)
        self._of.setdefault(worker_id, Mean()).note(sample)

    def of(self, worker_id: str) -> float:
        mine = self._of.get(worker_id)
        if mine is not None and mine.value is not None:
            return mine.value
        return self._all.value if self._all.value is not None else self._guess

    @property
    def is_measured(self) -> bool:
        return self._all.value is not None

    def forget(self, worker_id: str) -> None:
        self._of.pop(worker_id, None)


class Speeds:
    """`prefill`: prompt tokens per second of a worker that computes prompts. `handover_s`: from the
    computed prompt to the first token, with the wait for a place at decode, beside the transfer.
    A transfer that was not measured counts as nothing: a prefill worker answers when its KV has
    gone over, so the time is in the prefill's already."""

    def __init__(self) -> None:
        self.prefill = MeanPerWorker(GUESSED_PREFILL_TOKENS_PER_S)
        self._seconds_per_token = MeanPerWorker(0.0)
        self.handover_s = MeanPerWorker(GUESSED_HANDOVER_S)
        self._links: OrderedDict[tuple[str, str], Mean] = OrderedDict()

    def note_prefill(self, worker_id: str, num_tokens: int, seconds: float) -> None:
        """`num_tokens` were computed in that time: the request's own and those ahead of it."""
        if num_tokens > 0 and seconds > 0:
            self.prefill.note(worker_id, num_tokens / seconds)

    def note_transfer(
        self, prefill_id: str, decode_id: str, num_tokens: int, seconds: float
    ) -> None:
        """The KV of so many tokens went over in that time, beside the computation."""
        if num_tokens <= 0 or seconds <= 0:
            return
        sample, pair = seconds / num_tokens, (prefill_id, decode_id)
        self._seconds_per_token.note(decode_id, sample)
        self._links.setdefault(pair, Mean()).note(sample)
        self._links.move_to_end(pair)
        if len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)

    def note_handover(self, decode_id: str, seconds: float) -> None:
        """From the end of the prompt's computation to the first token, beside the transfer."""
        self.handover_s.note(decode_id, seconds)

    def transfer_s(self, prefill_id: str, decode_id: str, num_tokens: int) -> float:
        """Between these two; where that was not measured, as into that decode worker."""
        return num_tokens * self.link(prefill_id, decode_id)

    @property
    def has_links(self) -> bool:
        return bool(self._links)

    def link(self, prefill_id: str, decode_id: str) -> float:
        """Seconds per token between these two."""
        link = self._links.get((prefill_id, decode_id))
        if link is None or link.value is None:
            return self._seconds_per_token.of(decode_id)
        return link.value

    def forget(self, worker_id: str) -> None:
        """The worker is gone, or another machine answers there now."""
        for figures in (self.prefill, self._seconds_per_token, self.handover_s):
            figures.forget(worker_id)
        for pair in [pair for pair in self._links if worker_id in pair]:
            del self._links[pair]
