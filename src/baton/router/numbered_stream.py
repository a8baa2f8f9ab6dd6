"""A marked stream whose events get ids, and what of it a client that came back has already. Pure.

Such a client's stream is made again from its beginning, and everything is left out up to the place
that its id names. Marks say where that is, not numbers of events: another worker may bring a
stream to the same place by other steps.
Invariant: what is passed on begins right behind the last event that the client has, or nothing is.
Elsewhere: the ids (event_ids.py), trying again after an error (dispatch.py).
"""

from zlib import crc32

from baton.router.event_ids import Place, StreamIds
from baton.router.marks import MARKED, MarkedStream

_END = b"\n\n"


class Diverged(ValueError):
    """This is not the stream that the client has the beginning of."""


class Regrouped(ValueError):
    """The client's place lies inside a step; asked for what follows it, a worker begins there."""


class NumberedStream(MarkedStream):
    """`seen`: where a client that came back was; None once what it has not seen is flowing."""

    def __init__(self, header: str, ids: StreamIds, seen: Place | None = None):
        super().__init__(header)
        self._ids = ids
        self._checksum = 0
        self._seen = seen

    def feed(self, events: bytes) -> bytes:
        """As for any marked stream. Raises Diverged and Regrouped, too: what follows has to be
        asked for again."""
        if self._held:
            events, self._held = self._held + events, b""
        *pieces, self._held = MARKED.split(events)
        marks = [(mark, [int(number) for number in mark.split()]) for mark in pieces[1::2]]
        passed = [
            self._step(step + _END, mark, token_ids)
            for step, (mark, token_ids) in zip(pieces[::2], marks, strict=True)
        ]
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def take_held(self, is_sound: bool = True) -> bytes:
        """The last step, up to `[DONE]`; of one that ended with an error only that. It has no id,
        so the client may come back for the rest. Raises Diverged."""
        frames = _frames(super().take_held())
        if not is_sound:
            return b"".join(frames[-2:])
        num_left = range(len(frames) - 1, -1, -1)
        lines = [self._ids.end_line(self.num_tokens, self._checksum, num) for num in num_left]
        return _joined(lines, frames, self._num_known_of_last(len(frames)))

    def _step(self, step: bytes, mark: bytes, token_ids: list[int]) -> bytes:
        """One step's events with ids, without those that the client has."""
        num_before, checksum = self.num_tokens, self._checksum
        self._token_ids += token_ids
        self._checksum = crc32(mark + b" ", checksum)
        line = self._ids.line(self.num_tokens, self._checksum, 0)
        if self._seen is None and step.count(_END) == 1:
            return line + step
        frames = _frames(step)
        lines = [self._ids.line(num_before, checksum, num) for num in range(1, len(frames))]
        return _joined([*lines, line], frames, self._num_known(num_before, len(frames)))

    def _num_known(self, num_before: int, num_events: int) -> int:
        """How many of a step's events the client has."""
        seen = self._seen
        if seen is None:
            return 0
        if seen.num_left is None and num_before == seen.num_tokens:
            if seen.num_behind >= num_events:
                raise self._diverged()
            self._seen = None
            return seen.num_behind
        if num_before < seen.num_tokens <= self.num_tokens:
            if _checksum(self._token_ids[: seen.num_tokens]) != seen.checksum:
                raise self._diverged()
            if seen.num_left is None and seen.num_tokens < self.num_tokens:
                raise self._regrouped(seen)
        return num_events

    def _num_known_of_last(self, num_events: int) -> int:
        seen = self._seen
        if seen is None:
            return 0
        num_known = seen.num_behind if seen.num_left is None else num_events - seen.num_left
        if seen.num_tokens > self.num_tokens or not 0 <= num_known < num_events:
            raise self._diverged()
        self._seen = None
        return num_known

    def _diverged(self) -> Diverged:
        """These tokens are no use: the next worker begins from the start."""
        self._token_ids, self._checksum = [], 0
        return Diverged(
            "its stream is not the one whose beginning the client has; does it serve other weights?"
        )

    def _regrouped(self, seen: Place) -> Regrouped:
        """The tokens up to the client's place are known now: the next stream begins there."""
        del self._token_ids[seen.num_tokens :]
        self._checksum = seen.checksum
        return Regrouped("the client's place lies inside one of its steps")


def _frames(events: bytes) -> list[bytes]:
    return [frame + _END for frame in events.split(_END)[:-1]]


def _joined(lines: list[bytes], frames: list[bytes], num_known: int) -> bytes:
    numbered = [line + frame for line, frame in zip(lines, frames, strict=True)]
    return b"".join(numbered[num_known:])


def _checksum(token_ids: list[int]) -> int:
    """Of tokens, whatever steps they came in: as the sum over marks grows."""
    return crc32(b"".join([b"%d " % token_id for token_id in token_ids]))
