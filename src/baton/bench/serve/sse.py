"""Server-sent events, as bytes come.

Only the data of events is wanted: names, ids and comments are passed over. Lines end with LF, CR or
both; a line end that is cut between two pieces is one line end.
"""

from typing import Final

DONE: Final = b"[DONE]"


class SseParser:
    """Invariant: how the bytes are cut into pieces changes nothing in what comes out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` ended."""
        text = self._rest + piece
        held = b""
        if text.endswith(b"\r"):  # the LF after it may be on its way
            text, held = text[:-1], b"\r"
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events
