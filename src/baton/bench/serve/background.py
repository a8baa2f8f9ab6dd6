"""Streams that run beside a load, so that it can be seen what the load does to them.

Each place writes one answer after another until it is stopped, however fast the server is: what is
measured covers the whole load.
Elsewhere: the load (load.py), which figures are the background's (bench_serve.py).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, pairwise
from typing import Final

import numpy as np

from baton.bench.serve.backends import History
from baton.bench.serve.config import DatasetConfig, LoadConfig
from baton.bench.serve.exchange import OnArrival, Sender
from baton.bench.serve.random_prompts import random_lengths
from baton.bench.serve.records import STOPPED, Record
from baton.bench.serve.server import ServerError
from baton.bench.serve.sessions import Session

_PROMPT_TOKENS: Final = 60
_SESSIONS_PER_STREAM: Final = 4
_SEED_STREAM: Final = 5  # apart from the load's draws
_LEAST_ARRIVALS: Final = 2  # of every stream before the load begins: then its prompt is computed


def background_sessions(load: LoadConfig, dataset: DatasetConfig) -> list[Session]:
    """Prompts of random tokens for several answers of each stream, from the dataset's seed."""
    config = replace(
        dataset,
        num_prompts=load.background_streams * _SESSIONS_PER_STREAM,
        num_turns=1,
        random_input_len=_PROMPT_TOKENS,
        random_output_len=load.background_output_len,
        random_range_ratio=1.0,
    )
    draw = np.random.default_rng((dataset.seed, _SEED_STREAM))
    return list(random_lengths(config, draw).sessions)


class Background:
    """`num_streams` places that take `sessions` in turn, again from the first after the last."""

    def __init__(
        self,
        make_sender: Callable[[OnArrival], Sender],
        sessions: Sequence[Session],
        num_streams: int,
    ):
        self._sender = make_sender(lambda _: self._look())
        self._sessions = cycle(enumerate(sessions))
        self._num_streams = num_streams
        self._records: list[Record] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._is_decided = asyncio.Event()  # all streams write, or one failed
        self._zero_s = self._began_s = self._stopped_s = 0.0

    async def start(self) -> None:
        """Returns when all streams write. Raises ServerError when one fails before."""
        self._zero_s = time.perf_counter()
        self._tasks = [asyncio.create_task(self._place()) for _ in range(self._num_streams)]
        try:
            await self._is_decided.wait()
            if (error := self._error()) is not None:
                raise ServerError(f"a background stream failed: {error}")
        except BaseException:
            await self.stop()
            raise
        self._began_s = self._now_s()

    async def stop(self) -> None:
        """The streams are left; the server sees its clients go."""
        self._stopped_s = self._now_s()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def gaps_s(self) -> list[float]:
        """Between tokens of one stream, of those that came between `start` and `stop`."""
        return [
            after - before
            for record in self._records
            for before, after in pairwise(record.arrivals_s)
            if self._began_s < after <= self._stopped_s
        ]

    def ended(self) -> list[Record]:
        """Of the streams that came to their end, or failed."""
        return [each for each in self._records if each.ended_s > 0 and each.error != STOPPED]

    def _look(self) -> None:
        writing = sum(
            len(each.arrivals_s) >= _LEAST_ARRIVALS or each.ended_s > 0 for each in self._records
        )
        if writing >= self._num_streams or self._error() is not None:
            self._is_decided.set()

    def _error(self) -> str | None:
        return next((each.error for each in self.ended() if each.error is not None), None)

    async def _place(self) -> None:
        """Until it is cancelled, or a stream fails: that one is in `ended`."""
        for number, session in self._sessions:
            (turn,) = session.turns
            record = Record(number, 0, self._now_s(), num_input=turn.num_input)
            self._records.append(record)
            await self._sender.send(History([turn.content]), turn.num_output, record, self._zero_s)
            self._look()
            if not record.is_ok:
                return

    def _now_s(self) -> float:
        return time.perf_counter() - self._zero_s
