"""Telling the person at the terminal what a slow fetch is doing.

Invariant: writes to stderr only, and nothing at all when no stage begins.
Elsewhere: what the stages are (embedded.py, source.py).
"""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Receives the stages of a fetch, in order."""

    def stage(self, text: str) -> None:
        """A stage has begun; the one before it is over."""

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """How far the current stage has come."""


class SilentProgress:
    """For callers that have no terminal."""

    def stage(self, text: str) -> None:
        del text

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        del done_bytes, total_bytes


class TerminalProgress:
    """A moving bar when `stream` is a terminal, else one line per stage. Use in a `with`."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        if not self._stream.isatty():
            print(text, file=self._stream, flush=True)
            return
        bar = self._bar if self._bar is not None else self._start_bar()
        for task_id in bar.task_ids:
            bar.remove_task(task_id)
        bar.add_task(text, total=None)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        if self._bar is not None and self._bar.task_ids:
            self._bar.update(self._bar.task_ids[-1], completed=done_bytes, total=total_bytes)

    def _start_bar(self) -> "RichProgress":
        from rich.console import Console  # 50 ms, and most runs fetch nothing
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        console = Console(file=self._stream)
        self._bar = RichProgress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._bar.start()
        return self._bar
