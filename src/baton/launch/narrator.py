"""What a person at the terminal sees of `baton serve`.

Invariant: the address and the first command to try go to stdout; everything else to stderr.
While the tree starts, the children's lines are held back, so that a failure is shown once and
clearly; from then on each line appears at once, behind the name of the child that wrote it.
"""

import sys
from collections import deque
from typing import TextIO

_HELD_LINES = 200


class Narrator:
    """`is_verbose`: show the children's lines from the beginning."""

    def __init__(self, *, is_verbose: bool, out: TextIO | None = None, err: TextIO | None = None):
        self._is_verbose = is_verbose
        self._out = sys.stdout if out is None else out
        self._err = sys.stderr if err is None else err
        self._held: deque[tuple[str, str]] | None = (
            None if is_verbose else deque(maxlen=_HELD_LINES)
        )
        self._has_progress = False

    def child_line(self, name: str, line: str) -> None:
        if self._held is not None:
            self._held.append((name, line))
        else:
            self._write(f"[{name}] {line}")

    def say(self, text: str) -> None:
        self._write(text)

    def progress(self, text: str) -> None:
        """A line that the next one replaces; only on a terminal."""
        if self._err.isatty() and not self._is_verbose:
            self._err.write(f"\r\x1b[K{text}")
            self._err.flush()
            self._has_progress = True

    def ready(self, text: str) -> None:
        """The tree serves: `text` to stdout, after the lines that were held back."""
        self._clear_progress()
        for name, line in self._held or ():
            self._write(f"[{name}] {line}")
        self._held = None
        print(text, file=self._out, flush=True)

    def failed(self, name: str, text: str) -> None:
        """The tree cannot serve because of child `name`: its own words, then `text`."""
        for held_name, line in self._held or ():
            if held_name == name:
                self._write(f"[{name}] {line}")
        self._held = None
        self._write(text)

    def _write(self, text: str) -> None:
        self._clear_progress()
        print(text, file=self._err, flush=True)

    def _clear_progress(self) -> None:
        if self._has_progress:
            self._err.write("\r\x1b[K")
            self._has_progress = False
