"""Prefill and decode on an engine in this process, timed.

Prefill is prompt tokens divided by the time from submission to the first token. Decode is tokens/s
summed over streams while all of them run; prompts of 192 tokens and 128 new ones make a mean
context of 256. Greedy, random prompts that no prefix cache knows.

Elsewhere: the engine (local_engine.py), the same workloads over HTTP (benchmarks/peers).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from baton.bench.local_engine import LocalEngine, greedy_request, run_step
from baton.bench.timing import Sample
from baton.core.clock import Clock
from baton.engine.core import EngineCore

PROMPT_TOKENS: Final = 192
NEW_TOKENS: Final = 128
_FIRST_ID: Final = 1000
"""Below are special tokens and single bytes, in vocabularies of a real model's size."""


@dataclass(frozen=True)
class Arrival:
    """`token` of a stream came at `time_s`."""

    stream: str
    time_s: float


def steady_rate(arrivals: Sequence[Arrival]) -> float:
    """Tokens/s of all streams between the last stream's first token and the first one's last."""
    first_s: dict[str, float] = {}
    last_s: dict[str, float] = {}
    for each in arrivals:
        first_s.setdefault(each.stream, each.time_s)
        last_s[each.stream] = each.time_s
    begin_s, end_s = max(first_s.values()), min(last_s.values())
    assert begin_s < end_s, "there was no moment when all streams ran"
    return sum(begin_s < each.time_s <= end_s for each in arrivals) / (end_s - begin_s)


class Workloads:
    """Prefill and decode on one engine; prompts are never repeated."""

    def __init__(self, engine: LocalEngine, clock: Clock):
        self._engine = engine
        self._clock = clock
        self._core = engine.core()
        self._ids = count()
        self.kernel_shares: list[float] = []
        """Of each run of `one_stream`: the part of its steps' time that the kernels took."""

    def prefill(self, num_tokens: int, chunk: int | None = None) -> Sample:
        """Prompt tokens/s, computed `chunk` tokens a step (None: the engine's default)."""
        core = self._core if chunk is None else self._engine.core(chunk)

        def sample() -> float:
            started_s = self._clock.now_s()
            self._submit(core, num_tokens, 1)
            outputs = run_step(core)
            while not outputs:
                outputs = run_step(core)
            return num_tokens / (self._clock.now_s() - started_s)

        return sample

    def decode(self, num_streams: int) -> Sample:
        """Tokens/s of `num_streams` that run together."""

        def sample() -> float:
            for _ in range(num_streams):
                self._submit(self._core, PROMPT_TOKENS, NEW_TOKENS)
            return steady_rate(self._run_to_end())

        return sample

    def one_stream(self) -> Sample:
        """`decode(1)`, noting the kernels' share of its time."""

        def sample() -> float:
            self._submit(self._core, PROMPT_TOKENS, NEW_TOKENS)
            run_step(self._core)  # the prompt: its kernels are not a step's
            started_s, kernels_before_s = self._clock.now_s(), self._engine.kernel_seconds()
            arrivals = self._run_to_end()
            if kernels_before_s is not None:
                kernels_s = (self._engine.kernel_seconds() or 0.0) - kernels_before_s
                self.kernel_shares.append(kernels_s / (self._clock.now_s() - started_s))
            return steady_rate(arrivals)

        return sample

    def _run_to_end(self) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while self._core.has_work:
            outputs = run_step(self._core)
            now_s = self._clock.now_s()
            arrivals += [Arrival(each.request_id, now_s) for each in outputs]
        return arrivals

    def _submit(self, core: EngineCore, num_prompt: int, num_new: int) -> None:
        number, end = next(self._ids), self._engine.card.vocab_size
        draw, first = random.Random(number), min(_FIRST_ID, end // 2)
        prompt = [draw.randrange(first, end) for _ in range(num_prompt)]
        core.submit(greedy_request(str(number), prompt, num_new))
