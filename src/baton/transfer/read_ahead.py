"""Bytes of a stream that were received before anybody asked for them.

Invariant: `take` gives every byte once, in the order of `add`.
Elsewhere: what they mean (tcp_receiver.py).
"""


class ReadAhead:
    """At most `capacity` bytes."""

    def __init__(self, capacity: int):
        self._buffer = memoryview(bytearray(capacity))
        self._start = 0
        self._end = 0

    @property
    def num_bytes(self) -> int:
        return self._end - self._start

    def room(self) -> memoryview:
        """Where to receive: never empty unless `capacity` bytes wait. Ends all that `take` gave."""
        if self._start:
            rest = self.num_bytes
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
        return self._buffer[self._end :]

    def add(self, num_bytes: int) -> None:
        """So many bytes were put into `room`."""
        self._end += num_bytes

    def take(self, num_bytes: int) -> memoryview:
        """The next bytes, of which there must be so many."""
        start = self._start
        self._start += num_bytes
        assert self._start <= self._end, "more bytes are taken than were added"
        return self._buffer[start : self._start]
