"""An answer in pieces, on its way to a client.

Elsewhere: the connection it goes over (connection.py).
"""

from collections.abc import Callable
from typing import Protocol


class Outlet(Protocol):
    """Where a stream's bytes go."""

    is_paused: bool

    def write(self, data: bytes) -> None: ...


class ResponseStream:
    """An answer in pieces, of unknown length; its head goes out with the first piece. `on_pause`
    and `on_resume` are called when the client falls behind and when it has caught up."""

    __slots__ = ("_is_chunked", "_outlet", "_unsent", "is_silent", "on_pause", "on_resume")

    def __init__(self, outlet: Outlet, head: bytes, is_chunked: bool, is_silent: bool):
        self._outlet = outlet
        self._unsent = head
        self._is_chunked = is_chunked
        self.is_silent = is_silent
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    @property
    def has_begun(self) -> bool:
        """The client has seen some of it."""
        return not self._unsent

    @property
    def is_paused(self) -> bool:
        """The client has not taken what it was sent."""
        return self._outlet.is_paused

    def write(self, piece: bytes) -> None:
        if not piece or self.is_silent:
            return
        if self._is_chunked:
            piece = b"%b%x\r\n%b\r\n" % (self._unsent, len(piece), piece)
        else:
            piece = self._unsent + piece
        self._unsent = b""
        self._outlet.write(piece)

    def end(self, last: bytes = b"") -> None:
        """Send the last piece and the end in one write."""
        self.on_pause = self.on_resume = None
        if self.is_silent:
            last = self._unsent
        elif not self._is_chunked:
            last = self._unsent + last
        elif last:
            last = b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._unsent, len(last), last)
        else:
            last = self._unsent + b"0\r\n\r\n"
        self._unsent = b""
        if last:
            self._outlet.write(last)
