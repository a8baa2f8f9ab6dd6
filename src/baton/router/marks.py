"""How far a stream has come, so that another worker can go on with it. Pure.

A worker that was asked for marks writes a comment behind the events of every step, with the output
tokens that brought the stream there. Clients get what is marked, without the marks; what is not is
made again elsewhere if the stream breaks.
Invariant: what was passed on is exactly what `token_ids` make, until the stream is done.
Elsewhere: the worker's side (api/sse.py, api/admission.py), trying again (dispatch.py).
"""

import re

import msgspec

from baton.router._event_bytes import cut_marks

MARKS_HEADER = "X-Baton-Marks"
MARKS_FIELD = MARKS_HEADER.lower()
MARK = b"\n\n: t "
MARKED = re.compile(re.escape(MARK) + rb"(.*?)\n\n", re.DOTALL)
"""Splits events into what stands before a mark, the mark's tokens, and so on; what is left has no
mark yet."""


class Resume(msgspec.Struct, omit_defaults=True):
    """What a request gets added: its `resume` field."""

    token_ids: list[int]
    seed: int | None = None
    created: int | None = None
    id: str | None = None


class MarkedStream:
    """One client's stream, from however many workers it comes. `header` is the first worker's; it
    raises ValueError if it makes no sense."""

    def __init__(self, header: str):
        seed, created, id_ = header.split(" ", 2)
        self._seed, self._created, self._id = int(seed), int(created), id_
        self._token_ids: list[int] = []
        self._held = b""

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    @property
    def resume(self) -> msgspec.Struct:
        return Resume(list(self._token_ids), self._seed, self._created, self._id)

    def feed(self, events: bytes) -> bytes:
        """What the client gets of whole events: those up to the last mark. Raises ValueError if a
        mark makes no sense."""
        if self._held:
            events, self._held = self._held + events, b""
        marked, token_ids, self._held = cut_marks(events)
        self._token_ids += token_ids
        return marked

    def take_held(self, is_sound: bool = True) -> bytes:
        """The stream is done: its end needs no mark. `is_sound`: it does not end with an error."""
        held, self._held = self._held, b""
        return held

    def drop_held(self) -> None:
        """The stream broke: what is not marked is made again."""
        self._held = b""
