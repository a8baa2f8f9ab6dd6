"""One request's time, from all that took part in it, on one clock: rows for a terminal, and which
gate held it.

Pure. Invariant: rows of one place follow each other in time.
Elsewhere: who tells it (router/explaining.py, api/explaining.py), or a trace (chrome_trace.py);
drawing it (launch/explain.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from baton.core.timeline import Chunk, ClockFacts, Phase, Timeline
from baton.obs.chrome_trace import Trace

GATES: Final = {
    ("router", "queue"): "waited for its turn in the router",
    ("api", "read"): "the body was read and turned into tokens",
    ("api", "pair"): "the decode worker looked for the prefill engine",
    ("engine", "awaiting_reservation"): "prefill waited for decode to reserve KV blocks",
    ("engine", "queued_for_blocks"): "decode had no room for its KV",
    ("engine", "queue"): "waited in the engine for its first step",
    ("engine", "prefill"): "its prompt was computed",
    ("engine", "recompute"): "its tokens were computed again after a preemption",
    ("engine", "writing"): "the rest of its KV was written to decode",
    ("engine", "draining"): "its writes ran out after it had failed",
}
"""What may hold the first token, by kind of process and phase. Phases that only wait for these
elsewhere (placed, engine, awaiting_kv) are none."""

_GATES_ELSEWHERE: Final = {
    ("engine", "awaiting_kv"): "waited for the KV from prefill, whose part is not known here",
}
_CONTAINER_ORDER: Final = {"router": 0, "api": 1, "engine": 2}
_MAX_CHUNK_ROWS: Final = 8


class Part(msgspec.Struct, frozen=True):
    """What one process knows of a request; `shift_s` brings its times to the common clock."""

    role: str
    kind: str
    timeline: Timeline
    now_s: float
    shift_s: float = 0.0

    @property
    def place(self) -> str:
        return f"{self.role} {self.kind}".strip()


class Row(msgspec.Struct, frozen=True):
    place: str
    kind: str
    name: str
    start_s: float
    end_s: float
    why: str = ""
    is_chunk: bool = False

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class Waterfall(msgspec.Struct, frozen=True):
    """`rows` by place, then time. `first_token_s`: None where none was made yet."""

    request_id: str
    rows: list[Row]
    first_token_s: float | None
    outcome: str
    facts: list[str]

    @property
    def start_s(self) -> float:
        return min(row.start_s for row in self.rows)

    @property
    def end_s(self) -> float:
        return max(row.end_s for row in self.rows)

    def gate(self) -> tuple[str, Row] | None:
        """What held the first token longest, in words, and its row."""
        gates = GATES
        if not any(row.place == "prefill engine" for row in self.rows):
            gates = {**GATES, **_GATES_ELSEWHERE}
        limit_s = self.end_s if self.first_token_s is None else self.first_token_s
        held = [
            row
            for row in self.rows
            if (row.kind, row.name) in gates and row.start_s <= limit_s and not row.is_chunk
        ]
        if not held:
            return None
        longest = max(held, key=lambda row: row.seconds)
        return gates[longest.kind, longest.name], longest


def from_answer(answer: dict[str, Any]) -> tuple[Waterfall, list[str]]:
    """Of what GET /explain answered, at a router or a worker; and what could not be asked. Raises
    ValueError for an answer of another shape."""
    try:
        return _from_answer(answer)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"the answer has another shape: {error!r}") from error


def _from_answer(answer: dict[str, Any]) -> tuple[Waterfall, list[str]]:
    clock = msgspec.convert(answer["clock"], ClockFacts)
    if "router" not in answer:
        parts = _worker_parts(answer, clock)
        return _waterfall(parts[0].timeline.request_id, parts), []
    router = Part("", "router", msgspec.convert(answer["router"], Timeline), answer["now_s"])
    parts, problems = [router], []
    for each in answer["workers"]:
        if "part" in each:
            parts += _worker_parts(each["part"], clock)
        else:
            problems.append(f"{each['role']} worker {each['worker']}: {each['error']}")
    return _waterfall(answer["request_id"], parts), problems


def _worker_parts(answer: dict[str, Any], clock: ClockFacts) -> list[Part]:
    shift_s = clock.ahead_of(msgspec.convert(answer["clock"], ClockFacts))
    told = [("api", answer["api"])] if answer["api"] is not None else []
    told += [("engine", timeline) for timeline in answer["engine"]]
    role, now_s = answer["role"], answer["now_s"]
    return [
        Part(role, kind, msgspec.convert(timeline, Timeline), now_s, shift_s)
        for kind, timeline in told
    ]


def from_trace(trace: Trace, request_id: str) -> Waterfall | None:
    """None: the trace has no such request."""
    parts = list(_trace_parts(trace))
    wanted, found = {request_id}, list[Part]()
    while True:  # an engine's id leads to the client's, and that to the other engine's
        found = [part for part in parts if wanted & _names_of(part)]
        known = wanted.union(*map(_names_of, found))
        if known == wanted:
            return _waterfall(request_id, found) if found else None
        wanted = known


def _names_of(part: Part) -> set[str]:
    return {part.timeline.request_id, *part.timeline.samples}


def _trace_parts(trace: Trace) -> Iterable[Part]:
    processes = {process.pid: process for process in trace.facts.processes}
    open_parts: dict[str, Timeline] = {}
    for event in trace.events:
        if event.get("cat") != "request":
            continue
        name, is_begin, at_s = event["name"], event["ph"] == "b", event["ts"] / 1e6
        if name == "request" and is_begin:
            open_parts[event["id"]] = _timeline_of(event["args"])
        elif name == "request":
            timeline = open_parts.pop(event["id"])
            timeline.end_s = at_s
            process = processes[event["pid"]]
            yield Part(process.role, process.kind, timeline, at_s)
        elif is_begin:
            phase = Phase(name, at_s, event["args"].get("why", ""))
            open_parts[event["id"]].phases.append(phase)


def _timeline_of(args: dict[str, Any]) -> Timeline:
    return Timeline(
        request_id=args["request_id"],
        phases=[],
        pair=args.get("pair", ""),
        chunks=[Chunk(*chunk) for chunk in args.get("chunks", ())],
        outcome=args.get("outcome", ""),
        samples=args.get("samples", []),
        num_prompt_tokens=args.get("prompt_tokens", 0),
        num_cached_tokens=args.get("cached_tokens", 0),
        num_output_tokens=args.get("output_tokens", 0),
    )


def _waterfall(request_id: str, parts: Sequence[Part]) -> Waterfall:
    def order(part: Part) -> tuple[bool, float, int]:
        is_decode = part.role == "decode"
        return is_decode, 0.0 if part.kind == "router" else 1.0, _CONTAINER_ORDER[part.kind]

    ordered = sorted(parts, key=order)
    rows = [row for part in ordered for row in _rows(part)]
    outer = next((part.timeline for part in ordered if part.kind == "router"), None)
    outcome = (outer or ordered[0].timeline).outcome or "still runs"
    facts = [_facts_of(part) for part in ordered if part.kind == "engine"]
    return Waterfall(request_id, rows, _first_token_s(rows), outcome, facts)


def _first_token_s(rows: Sequence[Row]) -> float | None:
    """At the worker that answers, else at the router, which may keep a whole answer until its end,
    else at a prefill worker that was asked alone."""

    def starts(kind: str, name: str, is_prefill: bool) -> list[float]:
        return [
            row.start_s
            for row in rows
            if (row.kind, row.name) == (kind, name)
            and row.place.startswith("prefill") is is_prefill
        ]

    for found in (
        starts("api", "stream", False),
        starts("engine", "decode", False),
        starts("router", "answer", False),
        starts("api", "stream", True),
    ):
        if found:
            return min(found)
    return None


def _rows(part: Part) -> Iterable[Row]:
    place, kind, shift_s = part.place, part.kind, part.shift_s
    chunks = part.timeline.chunks
    for name, start_s, end_s, why in part.timeline.spans(part.now_s):
        yield Row(place, kind, name, start_s + shift_s, end_s + shift_s, why)
        if name != "prefill" or len(chunks) < 2:
            continue
        for index, chunk in enumerate(chunks[:_MAX_CHUNK_ROWS], 1):
            told = f"{chunk.num_tokens} tokens in a batch of {chunk.num_sequences}"
            if index == _MAX_CHUNK_ROWS < len(chunks):
                told = f"and {len(chunks) - index} more chunks"
            from_s, to_s = chunk.start_s + shift_s, chunk.end_s + shift_s
            yield Row(place, kind, f"chunk {index}", from_s, to_s, told, is_chunk=True)


def _facts_of(part: Part) -> str:
    timeline = part.timeline
    return (
        f"{part.place}: {timeline.num_prompt_tokens} prompt tokens, {timeline.num_cached_tokens} "
        f"of them cached, {timeline.num_output_tokens} made, {len(timeline.chunks)} chunks "
        f"computed; {timeline.outcome or 'still runs'}"
    )
