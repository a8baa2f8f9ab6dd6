"""What `baton bench serve` says, as its JSON file has it.

Elsewhere: the figures (metrics.py), how it looks (table.py, html.py).
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from baton.bench.machine import Machine
from baton.bench.serve.cpu_use import CpuUse
from baton.bench.serve.metrics import Attainment, Latencies, Limit, Rates, Summary
from baton.bench.serve.records import Record

_BUSY_SHARE: Final = 0.8
_LATE_MS: Final = 20.0


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """`counted_by`: how many answers had their tokens counted by the server, by the tokenizer, or
    as one for each event."""

    planned: int
    succeeded: int
    failed: int
    errors: dict[str, int]
    counted_by: dict[str, int]


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """`lateness_ms` is of sending, `wake_ms` of the event loop. `bottleneck` says how the client
    itself spoiled the figures, None when it did not."""

    lateness_ms: Summary | None
    wake_ms: Summary | None
    bottleneck: str | None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One number of sessions that --find-sessions tried."""

    sessions: int
    is_within_limits: bool
    requests: Requests
    latencies: Latencies
    rates: Rates
    attainment: Attainment


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """`sustained_sessions` and `steps` belong to --find-sessions; the other figures are then those
    of the largest step within the limits, or of the last where none was. `is_stopped`: the user
    ended it, and the requests that ran at that moment are left out."""

    benchmark: str = "serve"
    command: list[str]
    started_at: str
    machine: Machine
    server: dict[str, Any]
    settings: dict[str, Any]
    dataset: dict[str, Any]
    requests: Requests
    latencies: Latencies
    rates: Rates
    limits: list[Limit]
    attainment: Attainment | None
    cpu: CpuUse
    client: Client
    sustained_sessions: int | None = None
    steps: list[Step] | None = None
    is_stopped: bool = False
    details: list[dict[str, Any]] | None = None

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def judge_client(lateness: Summary | None, wakes: Summary | None, client_cores: float) -> Client:
    """One thread sends and receives everything, so a core that it keeps busy is its limit; sending
    or waking late by more than a few milliseconds means that load and times are not what was asked
    for."""
    reasons = []
    if client_cores >= _BUSY_SHARE:
        reasons.append(f"the client kept {client_cores:.2f} of a core busy, its most is 1")
    if lateness is not None and lateness.p99 >= _LATE_MS:
        reasons.append(
            f"1 of 100 requests was sent {lateness.p99:.0f} ms late or more: the client got too"
            " little processor"
        )
    if wakes is not None and wakes.p99 >= _LATE_MS:
        reasons.append(
            f"1 of 100 times it woke {wakes.p99:.0f} ms late or more, and took times that late"
        )
    bottleneck = "; ".join(reasons) or None
    return Client(lateness_ms=lateness, wake_ms=wakes, bottleneck=bottleneck)


def details_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every request, without its text, which may be anybody's."""
    return [
        {
            "session": record.session,
            "turn": record.turn,
            "planned_s": round(record.planned_s, 6),
            "sent_s": round(record.sent_s, 6),
            "ended_s": round(record.ended_s, 6),
            "arrivals_s": [round(each, 6) for each in record.arrivals_s],
            "num_input": record.num_input,
            "num_cached": record.num_cached,
            "num_output": record.num_output,
            "finish_reason": record.finish_reason,
            "error": record.error,
        }
        for record in records
    ]
