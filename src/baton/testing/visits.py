"""Clients that come at the same time; some leave before they have their answer, drawn from a seed.

Invariant: a visitor sees one ending at most, and nothing after it.
Elsewhere: the processes that answer (processes.py).
"""

import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from baton.testing.processes import EventStream, Server


@dataclass(frozen=True)
class Visit:
    """`leaves_after_s`: so long after it asked, or never; `leaves_after_events`: once it has read
    so many."""

    prompt: tuple[int, ...]
    num_new: int
    leaves_after_s: float | None = None
    leaves_after_events: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Of a visitor that stayed: `token_ids`, or `error` with its HTTP status. Of one that left:
    neither."""

    token_ids: tuple[int, ...] | None = None
    error: str = ""
    status: int = 200

    @property
    def has_left(self) -> bool:
        return self.token_ids is None and not self.error


def prompt_of(length: int, start: int) -> tuple[int, ...]:
    """Prompts of different starts share no block."""
    return tuple(5 + (start + 7 * i + i * i // 11) % 200 for i in range(length))


def draw_visits(
    seed: int, num_visits: int, *, max_prompt: int, max_new: int, share_leaving: float
) -> list[Visit]:
    rng = random.Random(seed)
    return [
        Visit(
            prompt_of(rng.randint(1, max_prompt), start=rng.randrange(50)),
            rng.randint(1, max_new),
            *_leaving(rng, share_leaving),
        )
        for _ in range(num_visits)
    ]


def _leaving(rng: random.Random, share: float) -> tuple[float | None, int | None]:
    if rng.random() >= share:
        return None, None
    # At once, while it waits, or while it reads.
    return rng.choice([(0.0, None), (rng.uniform(0.0, 2.0), None), (None, rng.randint(1, 4))])


def visit_all(front: Server, visits: Sequence[Visit], timeout_s: float = 120.0) -> list[Outcome]:
    """All at the same time."""
    with ThreadPoolExecutor(len(visits)) as pool:
        return list(pool.map(lambda visit: _visit(front, visit, timeout_s), visits))


def _visit(front: Server, visit: Visit, timeout_s: float) -> Outcome:
    sampling = {"temperature": 0, "max_new_tokens": visit.num_new, "ignore_eos": True}
    body = {"input_ids": list(visit.prompt), "sampling_params": sampling}
    stream = EventStream(front, "/generate", body, timeout_s)
    try:
        if visit.leaves_after_s is not None:
            time.sleep(visit.leaves_after_s)  # the fault itself, not a wait for something
            return Outcome()
        if stream.status != 200:
            error = json.loads(stream.body())["error"]
            return Outcome(error=error["message"], status=stream.status)
        return _read(stream, visit)
    finally:
        stream.close()


def _read(stream: EventStream, visit: Visit) -> Outcome:
    last: dict[str, Any] | None = None
    for number, event in enumerate(stream.events(), start=1):
        assert last is None, f"{event} came after the end, {last}"
        if "error" in event or event["meta_info"]["finish_reason"] is not None:
            last = event
        elif number == visit.leaves_after_events:
            return Outcome()
    assert last is not None, "the stream had no end"
    if "error" in last:
        return Outcome(error=last["error"]["message"])
    return Outcome(tuple(last["output_ids"]))
