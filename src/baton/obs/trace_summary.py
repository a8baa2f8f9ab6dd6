"""Where the time of a traced run went, and what to try: every advice comes from a figure that is
shown beside it.

Pure. Elsewhere: the trace (chrome_trace.py), printing (launch/profile.py).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

import msgspec

from baton.obs.chrome_trace import Event, Trace, TracedProcess

IDLE_DECODE: Final = 0.7
BUSY_ENGINE: Final = 0.9
LARGE_SHARE: Final = 0.3
"""Of the time to the first token: above it a wait is worth an advice."""
LARGE_SAMPLING: Final = 0.15
LARGE_MIXED: Final = 0.2


class Spent(msgspec.Struct, frozen=True):
    """`seconds` over `count` spans, the longest of which took `longest_s`."""

    name: str
    count: int
    seconds: float
    longest_s: float

    @property
    def mean_s(self) -> float:
        return self.seconds / self.count if self.count else 0.0


class ProcessSummary(msgspec.Struct, frozen=True):
    """`steps` by kind, `parts` of steps (schedule, forward, ...), `ops` inside forward, and
    `phases` of requests. Tokens are those of all steps."""

    process: TracedProcess
    wall_s: float
    busy_s: float
    steps: list[Spent]
    parts: list[Spent]
    ops: list[Spent]
    phases: list[Spent]
    num_prompt_tokens: int
    num_decode_tokens: int

    @property
    def title(self) -> str:
        return f"{self.process.role} {self.process.kind}".strip()

    @property
    def busy_share(self) -> float:
        return self.busy_s / self.wall_s if self.wall_s > 0 else 0.0


class Advice(msgspec.Struct, frozen=True):
    figure: str
    what_to_try: str


class TraceSummary(msgspec.Struct, frozen=True):
    """`ttft_s`: mean time from a request's arrival at the worker that answers it to its first
    token, of `num_first_tokens` requests; None where the trace has none."""

    processes: list[ProcessSummary]
    ttft_s: float | None
    num_first_tokens: int
    advice: list[Advice]
    notes: list[str]


def summarize(trace: Trace) -> TraceSummary:
    by_pid: dict[int, list[Event]] = defaultdict(list)
    for event in trace.events:
        by_pid[event["pid"]].append(event)
    processes = [_of_process(each, by_pid[each.pid]) for each in trace.facts.processes]
    waits = [
        wait
        for process in trace.facts.processes
        if process.kind == "api" and process.role != "prefill"
        for wait in _first_token_waits(by_pid[process.pid])
    ]
    ttft_s = fmean(waits) if waits else None
    dropped = [
        f"{each.role} {each.kind} (pid {each.pid}) dropped its {each.num_dropped} oldest records: "
        "the trace has the end of the run only"
        for each in trace.facts.processes
        if each.num_dropped
    ]
    advice = list(_advice(processes, ttft_s))
    return TraceSummary(processes, ttft_s, len(waits), advice, [*trace.facts.notes, *dropped])


def _of_process(process: TracedProcess, events: Sequence[Event]) -> ProcessSummary:
    spans = [event for event in events if event["ph"] == "X"]
    steps = [event for event in spans if event["cat"] == "step"]

    def spent(category: str) -> list[Spent]:
        each = ((event["name"], event["dur"] / 1e6) for event in spans if event["cat"] == category)
        return _spent(each)

    return ProcessSummary(
        process=process,
        wall_s=process.end_s - process.start_s,
        busy_s=sum(event["dur"] for event in steps) / 1e6,
        steps=spent("step"),
        parts=spent("part"),
        ops=spent("op"),
        phases=_spent(_phases(events)),
        num_prompt_tokens=sum(event["args"]["prompt_tokens"] for event in steps),
        num_decode_tokens=sum(event["args"]["decode_tokens"] for event in steps),
    )


def _phases(events: Iterable[Event]) -> Iterable[tuple[str, float]]:
    """(name, seconds) of each phase of each request. One of a kind is over before the next of its
    request begins, so a begin's end is the next one of that name."""
    begun: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") != "request" or event["name"] == "request":
            continue
        key = event["id"], event["name"]
        if event["ph"] == "b":
            begun[key] = event["ts"]
        else:
            yield event["name"], (event["ts"] - begun.pop(key)) / 1e6


def _first_token_waits(events: Iterable[Event]) -> Iterable[float]:
    arrived: dict[str, float] = {}
    for event in events:
        if event.get("cat") != "request" or event["ph"] != "b":
            continue
        if event["name"] == "request":
            arrived[event["id"]] = event["ts"]
        elif event["name"] == "stream" and event["id"] in arrived:
            yield (event["ts"] - arrived.pop(event["id"])) / 1e6


def _spent(spans: Iterable[tuple[str, float]]) -> list[Spent]:
    """The most seconds first."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, seconds in spans:
        by_name[name].append(seconds)
    spent = [Spent(name, len(each), sum(each), max(each)) for name, each in by_name.items()]
    return sorted(spent, key=lambda each: -each.seconds)


def _advice(processes: Sequence[ProcessSummary], ttft_s: float | None) -> Iterable[Advice]:
    for each in processes:
        if each.process.kind == "engine" and each.steps:
            yield from _advice_for_engine(each)
    if ttft_s is None or ttft_s <= 0:
        return
    for (role, kind, phase), what_to_try in _WAITS.items():
        for each in processes:
            if (each.process.role, each.process.kind) != (role, kind):
                continue
            spent = next((known for known in each.phases if known.name == phase), None)
            if spent is not None and spent.mean_s > LARGE_SHARE * ttft_s:
                yield Advice(
                    f"{each.title}: {phase} takes {spent.mean_s * 1e3:.0f} ms on the mean, "
                    f"{min(1.0, spent.mean_s / ttft_s):.0%} of the {ttft_s * 1e3:.0f} ms to the "
                    "first token",
                    what_to_try,
                )


_WAITS: Final = {
    ("", "router", "queue"): "more workers, or a higher --max-concurrent-requests at the router",
    ("prefill", "engine", "awaiting_reservation"): (
        "decode has no room: raise --max-total-tokens or --max-running-requests there, or add a "
        "decode worker"
    ),
    ("prefill", "engine", "queue"): (
        "prompts wait for prompts: add a prefill worker, or give this one more --num-threads"
    ),
    ("prefill", "engine", "prefill"): (
        "the prompts themselves take this long: more --num-threads or --quantization w8a8_int8; "
        "prompts that begin alike gain from --policy cache_aware"
    ),
    ("prefill", "engine", "writing"): (
        "the KV still travels when the prompt is computed: a smaller --chunked-prefill-size sends "
        "it earlier; shm on one host, or a faster network between hosts"
    ),
    ("decode", "engine", "queued_for_blocks"): (
        "raise --max-total-tokens or --mem-fraction-static, or --max-running-requests, on decode"
    ),
    ("unified", "engine", "queue"): (
        "add a worker, or split: baton serve --workers 1p1d keeps prompts from holding up streams"
    ),
}
"""By role, kind of process and phase: what to try where that phase is a large part of TTFT."""


def _advice_for_engine(each: ProcessSummary) -> Iterable[Advice]:
    role, busy = each.process.role, f"{each.title} is busy {each.busy_share:.0%} of the time"
    if role == "decode" and each.busy_share < 1 - IDLE_DECODE:
        yield Advice(
            f"{each.title} is idle {1 - each.busy_share:.0%} of the time",
            "it could serve more prefill workers (--workers 2p1d), or leave cores to them (fewer "
            "--num-threads here)",
        )
    if role == "decode" and each.busy_share > BUSY_ENGINE:
        yield Advice(busy, "add a decode worker, or give this one more --num-threads")
    if role == "prefill" and each.busy_share > BUSY_ENGINE:
        yield Advice(busy, "add a prefill worker, or give this one more --num-threads")
    sampling = next((part.seconds for part in each.parts if part.name == "sample"), 0.0)
    if each.busy_s > 0 and sampling > LARGE_SAMPLING * each.busy_s:
        yield Advice(
            f"{each.title} spends {sampling / each.busy_s:.0%} of its steps choosing tokens",
            "logprobs, penalties and top_p cost most here; leave out those that nobody reads",
        )
    mixed = next((step.seconds for step in each.steps if step.name == "mixed step"), 0.0)
    if each.busy_s > 0 and mixed > LARGE_MIXED * each.busy_s:
        yield Advice(
            f"{each.title} spends {mixed / each.busy_s:.0%} of its steps on prompts and streams "
            "together",
            "those streams stand still for prompts: split prefill and decode, or lower "
            "--chunked-prefill-size",
        )
    again = next((phase for phase in each.phases if phase.name == "recompute"), None)
    if again is not None:
        yield Advice(
            f"{each.title} computed {again.count} requests again, {again.seconds:.2f} s in sum",
            "the pool is too small for what runs: raise --max-total-tokens, or lower "
            "--max-running-requests",
        )
