"""Server-sent events as bytes: where one ends, what it says, and how to say an error.

Invariant: EventCutter returns exactly the bytes it was fed, in order, cut only behind whole
events; what it still holds is never a whole event.
Elsewhere: what the events mean (logprobs.py, legs.py).
"""

from collections.abc import Iterator

DONE_EVENT = b"data: [DONE]\n\n"
_USUAL_END = b"\n\n" + DONE_EVENT
_ENDS = (b"\n\n", b"\r\n\r\n")


class EventCutter:
    """Passes whole events on and keeps a half one back, so that whatever follows a broken
    stream (an error event, another worker's continuation) starts on a clean line."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_done = False

    @property
    def is_done(self) -> bool:
        """The last whole event was `[DONE]`: the sender said all it wanted to say."""
        return self._is_done

    def feed(self, chunk: bytes) -> bytes:
        """All bytes up to the end of the last whole event; empty if there is none yet."""
        if self._rest:
            chunk = self._rest + chunk
        if chunk.endswith(_ENDS[0]):
            events, self._rest = chunk, b""
        else:
            cut = max(_end_of_last(chunk, end) for end in _ENDS)
            events, self._rest = chunk[:cut], chunk[cut:]
        if events:
            self._is_done = _says_done(events)
        return events


def _end_of_last(chunk: bytes, end: bytes) -> int:
    position = chunk.rfind(end)
    return position + len(end) if position >= 0 else 0


def _says_done(events: bytes) -> bool:
    if events.endswith(_USUAL_END):
        return True
    last_line = events.rstrip().rpartition(b"\n")[2]
    return last_line.startswith(b"data:") and last_line[5:].strip() == b"[DONE]"


def payloads(events: bytes) -> Iterator[bytes]:
    """The data of each event in a run of whole events, without `[DONE]`."""
    for line in events.splitlines():
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload != b"[DONE]":
                yield payload


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"
