"""The writer's end of a connection on which its owner says nothing more: what comes is its end.

Elsewhere: the owner's end (shm_owner.py, companion.py).
"""

import contextlib
import socket
from collections.abc import Callable

from baton.transfer.io_loop import READABLE, IoLoop


class OwnerWatch:
    """Calls `on_lost(reason)` when the owner has gone. All on the loop's thread."""

    def __init__(self, loop: IoLoop, connection: socket.socket):
        self._loop = loop
        self._connection = connection
        self._is_open = True
        self._is_registered = False
        self._on_lost: Callable[[str], None] = lambda reason: None

    def start(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        if self._is_open:
            self._connection.setblocking(False)
            self._loop.register(self._connection.fileno(), READABLE, self)
            self._is_registered = True

    def on_ready(self, mask: int) -> None:
        # Nothing is ever sent after the greeting: whatever makes it readable is the end.
        self._lose("the owner has closed its region or died")

    def on_bug(self, error: Exception) -> None:
        self._lose(f"internal error: {error!r}")

    def close(self, last_word: bytes = b"") -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._unregister()
        if last_word:
            with contextlib.suppress(OSError):  # a dead owner need not be told
                self._connection.send(last_word)
        self._connection.close()

    def _lose(self, reason: str) -> None:
        self._unregister()
        self._on_lost(reason)

    def _unregister(self) -> None:
        if self._is_registered:
            self._is_registered = False
            self._loop.unregister(self._connection.fileno())
