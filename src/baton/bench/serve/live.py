"""Progress while a load runs: one line of plain text, written again every second.

Plain on purpose: drawing a table takes milliseconds, which the next token of every stream would
wait for, and that would be measured as the server's.
"""

import asyncio
import sys
import time
from typing import Final, TextIO

from baton.bench.serve.records import Record

_PERIOD_S: Final = 1.0
_CLEAR: Final = "\r\x1b[K"


class Live:
    """Counts what it is told. On a terminal it writes; elsewhere it is silent."""

    def __init__(self, title: str, num_requests: int, *, stream: TextIO | None):
        self._title = title
        self._num_requests = num_requests
        self._stream = stream
        self._num_running = 0
        self._num_ended = 0
        self._num_failed = 0
        self._num_tokens = 0
        self._began_s = time.perf_counter()

    def on_start(self) -> None:
        self._num_running += 1

    def on_arrival(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens

    def on_end(self, record: Record) -> None:
        self._num_running -= 1
        self._num_ended += 1
        self._num_failed += not record.is_ok

    def line(self, num_new_tokens: int, elapsed_s: float) -> str:
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        return (
            f"{self._title}: {elapsed_s:4.0f} s, {self._num_ended} of {self._num_requests} ended"
            f"{failed}, {self._num_running} running, {num_new_tokens:,} tokens/s"
        )

    async def show(self) -> None:
        """Until it is cancelled."""
        if self._stream is None:
            return
        before = self._num_tokens
        try:
            while True:
                await asyncio.sleep(_PERIOD_S)
                new = round((self._num_tokens - before) / _PERIOD_S)
                before = self._num_tokens
                elapsed_s = time.perf_counter() - self._began_s
                self._stream.write(_CLEAR + self.line(new, elapsed_s))
                self._stream.flush()
        finally:
            self._stream.write(_CLEAR)
            self._stream.flush()


def terminal(is_disabled: bool) -> TextIO | None:
    """Where progress is shown, if anywhere."""
    return sys.stderr if sys.stderr.isatty() and not is_disabled else None
