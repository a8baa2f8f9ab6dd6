"""What one request did, as it was seen from the socket.

Elsewhere: filling it in (exchange.py), what follows from many (metrics.py).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Final

STOPPED: Final = "stopped by the user"
NOT_SENT: Final = "not sent: an earlier turn of its session failed"


class CountedBy(StrEnum):
    """Who says how many tokens an answer has."""

    SERVER = "server"
    TOKENIZER = "tokenizer"
    EVENTS = "events"


@dataclass
class Record:
    """Times are seconds since the start of the load. `planned_s` is when it was to be sent: its
    arrival, or when a place became free, or when its session's turn came. `arrivals_s` are the
    reads of the socket that brought tokens. `error` None means that it succeeded."""

    session: int
    turn: int
    planned_s: float
    sent_s: float = 0.0
    ended_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    num_input: int = 0
    num_cached: int | None = None
    num_output: int = 0
    counted_by: CountedBy = CountedBy.EVENTS
    status: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    text: str = ""

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def ttft_s(self) -> float:
        """Of a whole answer that was not streamed: until its end."""
        return (self.arrivals_s[0] if self.arrivals_s else self.ended_s) - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """None for an answer of one token, and for one that was not streamed."""
        if self.num_output < 2 or not self.arrivals_s:
            return None
        return (self.e2e_s - self.ttft_s) / (self.num_output - 1)

    @property
    def itl_s(self) -> list[float]:
        return [after - before for before, after in pairwise(self.arrivals_s)]

    @property
    def late_s(self) -> float:
        return self.sent_s - self.planned_s
