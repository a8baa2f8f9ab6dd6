"""A profile as a Chrome trace, the JSON that Perfetto and chrome://tracing open.

A process has one track of steps, with what each step was made of inside it, and one track for each
request with its phases. An arrow leads from the step that computed a prompt to the first step that
went on with it elsewhere. Every span names its request, or its requests.
Invariant: spans on one track nest: each lies inside the one that began before it and is not over.
Elsewhere: what is noted (core/profile.py, core/timeline.py), reading a trace (trace_summary.py,
waterfall.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from baton.core.profile import ProfileNotes, StepRecord
from baton.core.timeline import ClockFacts, Timeline

STEPS: Final = 1
REQUESTS: Final = 2
"""Track ids inside a process."""

Event = dict[str, Any]

_ARROW: Final = "hand-over"


class TracedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process in a trace. `kind`: engine, api or router; `role`: what it does."""

    pid: int
    kind: str
    role: str
    start_s: float
    end_s: float
    num_dropped: int = 0


class TraceFacts(msgspec.Struct, frozen=True, kw_only=True):
    clock: ClockFacts
    processes: list[TracedProcess]
    notes: list[str] = []


class Trace(msgspec.Struct, kw_only=True, rename={"events": "traceEvents", "facts": "otherData"}):
    """The file. Times inside events are microseconds of the first process's monotonic clock."""

    events: list[Event]
    facts: TraceFacts
    displayTimeUnit: str = "ms"


def engine_events(process: TracedProcess, notes: ProfileNotes) -> list[Event]:
    events = _names(process, {STEPS: "steps", REQUESTS: "requests"})
    for step in notes.steps:
        events += _step_events(process.pid, step)
    for timeline in notes.requests:
        events += request_events(process.pid, timeline, notes.start_s, notes.end_s)
    return events


def api_events(process: TracedProcess, timelines: Iterable[Timeline]) -> list[Event]:
    """Also for a router: a process that has requests and no steps."""
    events = _names(process, {REQUESTS: "requests"})
    for timeline in timelines:
        events += request_events(process.pid, timeline, process.start_s, process.end_s)
    return events


def request_events(pid: int, timeline: Timeline, start_s: float, end_s: float) -> Iterable[Event]:
    """One span for the request and, inside it, one for each phase; cut to the profile's time."""
    spans = [
        (name, max(from_s, start_s), min(to_s, end_s), why)
        for name, from_s, to_s, why in timeline.spans(end_s)
        if to_s > start_s and from_s < end_s
    ]
    if not spans:
        return
    common = {"cat": "request", "id": f"{pid}:{timeline.request_id}", "pid": pid, "tid": REQUESTS}
    named = {"request_id": timeline.request_id}
    whole = {**named, **_facts_of(timeline)}
    yield {**common, "ph": "b", "name": "request", "ts": _us(spans[0][1]), "args": whole}
    for name, from_s, to_s, why in spans:
        args = {**named, "why": why} if why else named
        yield {**common, "ph": "b", "name": name, "ts": _us(from_s), "args": args}
        yield {**common, "ph": "e", "name": name, "ts": _us(to_s), "args": named}
    yield {**common, "ph": "e", "name": "request", "ts": _us(spans[-1][2]), "args": named}


def merge(traces: Sequence[Trace]) -> Trace:
    """One trace of several, on the clock of the first. Raises ValueError without any."""
    if not traces:
        raise ValueError("there is no trace to merge")
    first = traces[0].facts.clock
    events: list[Event] = []
    processes: list[TracedProcess] = []
    for index, trace in enumerate(traces):
        shift_s = first.ahead_of(trace.facts.clock)
        # Two hosts may give two processes the same id.
        is_far = index > 0 and trace.facts.clock.boot_id != first.boot_id
        offset = index * 10_000_000 if is_far else 0
        events += [_moved(event, shift_s, offset) for event in trace.events]
        processes += [
            msgspec.structs.replace(
                process,
                pid=process.pid + offset,
                start_s=process.start_s + shift_s,
                end_s=process.end_s + shift_s,
            )
            for process in trace.facts.processes
        ]
    notes = list(dict.fromkeys(note for trace in traces for note in trace.facts.notes))
    return Trace(events=events, facts=TraceFacts(clock=first, processes=processes, notes=notes))


def _step_events(pid: int, step: StepRecord) -> Iterable[Event]:
    ids = [*(request_id for request_id, _ in step.prompts), *step.decodes]
    num_prompt_tokens = sum(num_tokens for _, num_tokens in step.prompts)
    args = {
        "request_ids": ids,
        "sequences": len(ids),
        "prompt_tokens": num_prompt_tokens,
        "decode_tokens": len(step.decodes),
        "waiting": step.num_waiting,
    }

    def span(name: str, category: str, start_s: float, end_s: float, args: Any) -> Event:
        return {
            "ph": "X", "name": name, "cat": category, "pid": pid, "tid": STEPS,
            "ts": _us(start_s), "dur": max(0.0, _us(end_s) - _us(start_s)), "args": args,
        }  # fmt: skip

    named = {"request_ids": ids}
    yield span(_kind_of(step), "step", step.start_s, step.end_s, args)
    yield span("schedule", "part", step.start_s, step.scheduled_s, named)
    yield span("forward", "part", step.scheduled_s, step.computed_s, named)
    at_s = step.scheduled_s
    for op, seconds in step.ops:
        end_s = min(step.computed_s, at_s + seconds)
        if end_s > at_s:
            yield span(op, "op", at_s, end_s, named)
        at_s = end_s
    yield span("sample", "part", step.computed_s, step.chosen_s, named)
    yield span("book", "part", step.chosen_s, step.end_s, named)
    arrow = {"cat": _ARROW, "name": _ARROW, "pid": pid, "tid": STEPS}
    for pair, request_id in step.given:
        at = _us(step.chosen_s)
        yield {**arrow, "ph": "s", "id": pair, "ts": at, "args": {"request_id": request_id}}
    for pair, request_id in step.taken:
        at = _us(step.start_s)
        yield {
            **arrow, "ph": "f", "bp": "e", "id": pair, "ts": at,
            "args": {"request_id": request_id},
        }  # fmt: skip


def _kind_of(step: StepRecord) -> str:
    if step.prompts and step.decodes:
        return "mixed step"
    return "prefill chunk" if step.prompts else "decode step"


def _facts_of(timeline: Timeline) -> dict[str, Any]:
    chunks = [
        (round(chunk.start_s, 6), round(chunk.end_s, 6), chunk.num_tokens, chunk.num_sequences)
        for chunk in timeline.chunks
    ]
    facts = {
        "pair": timeline.pair,
        "outcome": timeline.outcome,
        "samples": timeline.samples,
        "prompt_tokens": timeline.num_prompt_tokens,
        "cached_tokens": timeline.num_cached_tokens,
        "output_tokens": timeline.num_output_tokens,
        "chunks": chunks,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _names(process: TracedProcess, tracks: dict[int, str]) -> list[Event]:
    def name(what: str, tid: int, text: str) -> Event:
        return {"ph": "M", "name": what, "pid": process.pid, "tid": tid, "args": {"name": text}}

    title = f"{process.role} {process.kind} (pid {process.pid})".strip()
    threads = [name("thread_name", tid, text) for tid, text in tracks.items()]
    return [name("process_name", 0, title), *threads]


def _moved(event: Event, shift_s: float, pid_offset: int) -> Event:
    if not shift_s and not pid_offset:
        return event
    moved = {**event, "pid": event["pid"] + pid_offset}
    if "ts" in event:
        moved["ts"] = event["ts"] + _us(shift_s)
    if event.get("cat") == "request":
        moved["id"] = f"{pid_offset}:{event['id']}"
    return moved


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)
