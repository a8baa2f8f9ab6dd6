"""What a profiled engine notes down: one record for each step, and the timelines of its requests.

Elsewhere: collecting them (obs/profile.py), the trace that is made of them (obs/chrome_trace.py).
"""

import msgspec

from baton.core.timeline import Timeline


class StepRecord(msgspec.Struct, array_like=True, gc=False):
    """One forward pass. It is scheduled until `scheduled_s`, computed until `computed_s`, its
    tokens are chosen until `chosen_s` and booked until `end_s`.

    `prompts`: (request id, tokens) of prompts read in it; `decodes`: requests that got a token.
    `ops`: (op, seconds) over all layers. `given`, `taken`: pairs whose prompt was computed in this
    step, or whose first step after the hand-over it is.
    """

    start_s: float
    scheduled_s: float
    computed_s: float
    chosen_s: float
    end_s: float
    prompts: list[tuple[str, int]]
    decodes: list[str]
    ops: list[tuple[str, float]]
    given: list[tuple[str, str]]
    """(pair, request id)"""
    taken: list[tuple[str, str]]
    num_waiting: int


class ProfileNotes(msgspec.Struct, kw_only=True):
    """What one engine noted between `start_s` and `end_s`. `num_dropped`: the oldest records, which
    had to go for newer ones."""

    start_s: float
    end_s: float
    steps: list[StepRecord]
    requests: list[Timeline]
    num_dropped: int = 0
