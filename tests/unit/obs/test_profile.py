"""A profile is bounded, and its trace nests, names every span's requests and lies on one clock."""

from collections import defaultdict
from typing import Any

import pytest

from baton.core.profile import ProfileNotes, StepRecord
from baton.core.timeline import MAX_CHUNKS, ClockFacts, Timeline
from baton.obs.chrome_trace import (
    Event,
    Trace,
    TracedProcess,
    TraceFacts,
    api_events,
    engine_events,
    merge,
)
from baton.obs.profile import Profile
from baton.obs.recent import Recent

HERE = ClockFacts(boot_id="one", wall_offset_s=1000.0)


def step(start_s: float, prompts: Any = (), decodes: Any = (), **more: Any) -> StepRecord:
    """Ten milliseconds, six of them in the forward pass."""
    return StepRecord(
        start_s, start_s + 0.001, start_s + 0.007, start_s + 0.009, start_s + 0.010,
        list(prompts), list(decodes), more.get("ops", [("attention", 0.002), ("down", 0.003)]),
        more.get("given", []), more.get("taken", []), num_waiting=0,
    )  # fmt: skip


def timeline(request_id: str = "r", start_s: float = 1.0) -> Timeline:
    made = Timeline.begin(request_id, "queue", start_s, "2 ahead")
    made.enter("prefill", start_s + 0.1)
    made.end(start_s + 0.3, "length")
    return made


def engine(pid: int = 7, role: str = "prefill") -> TracedProcess:
    return TracedProcess(pid=pid, kind="engine", role=role, start_s=0.0, end_s=10.0)


def notes(steps: list[StepRecord], requests: list[Timeline]) -> ProfileNotes:
    return ProfileNotes(start_s=0.0, end_s=10.0, steps=steps, requests=requests)


def trace(process: TracedProcess, events: list[Event], clock: ClockFacts = HERE) -> Trace:
    return Trace(events=events, facts=TraceFacts(clock=clock, processes=[process]))


def test_phases_follow_each_other_without_a_gap() -> None:
    made = Timeline.begin("r", "accepted", 1.0)
    made.enter("queue", 1.0)
    made.enter("prefill", 1.5)
    assert made.spans(2.0) == [("queue", 1.0, 1.5, ""), ("prefill", 1.5, 2.0, "")]
    made.end(1.75, "length")
    assert made.spans(2.0)[-1] == ("prefill", 1.5, 1.75, "")


def test_a_long_prompt_keeps_a_bounded_number_of_chunks() -> None:
    made = Timeline.begin("r", "prefill", 0.0)
    for index in range(MAX_CHUNKS + 5):
        made.computed(index, index + 1, 8, 1)
    assert len(made.chunks) == MAX_CHUNKS
    assert sum(chunk.num_tokens for chunk in made.chunks) == 8 * (MAX_CHUNKS + 5)
    assert made.chunks[-1].end_s == MAX_CHUNKS + 5


def test_recent_keeps_the_newest_and_finds_the_newer_of_two() -> None:
    recent: Recent[tuple[str, int]] = Recent(limit=3)
    for number, name in enumerate("abab"):
        recent.add((name, number))
    assert len(recent) == 3
    assert recent.find(lambda each: each[0] == "a") == ("a", 2)
    assert recent.find(lambda each: each[1] == 0) is None
    assert recent.since(lambda each: each[1] > 1) == [("a", 2), ("b", 3)]


def test_a_full_profile_drops_its_oldest_records_and_counts_them() -> None:
    profile = Profile(0.0, max_weight=30)
    for index in range(10):
        profile.add_step(step(index, decodes=["a", "b"]))  # weighs 6
    kept = profile.notes([], 10.0)
    assert [each.start_s for each in kept.steps] == [5, 6, 7, 8, 9]
    assert kept.num_dropped == 5


def test_a_profile_of_so_many_steps_ends_with_the_last_of_them() -> None:
    profile = Profile(0.0, max_steps=2)
    for index in range(4):
        profile.add_step(step(index, decodes=["a"]))
    profile.add_request(timeline())
    kept = profile.notes([], 99.0)
    assert (len(kept.steps), kept.requests, kept.end_s) == (2, [], 1.010)


def test_every_span_names_its_requests_and_lies_in_the_one_before() -> None:
    steps = [
        step(1.0, prompts=[("p", 64)], given=[("5:0", "p")]),
        step(1.02, prompts=[("q", 32)], decodes=["d"], taken=[("6:0", "d")]),
        step(1.04, decodes=["d", "e"], ops=[("attention", 0.05)]),
    ]
    events = engine_events(engine(), notes(steps, [timeline("p"), timeline("d")]))
    spans = [event for event in events if event["ph"] != "M"]
    assert all(_ids_of(event) for event in spans)
    assert_nested([event for event in spans if event["ph"] == "X"])
    kinds = [event["name"] for event in spans if event.get("cat") == "step"]
    assert kinds == ["prefill chunk", "mixed step", "decode step"]
    arrows = [(event["ph"], event["id"]) for event in spans if event.get("cat") == "hand-over"]
    assert arrows == [("s", "5:0"), ("f", "6:0")]
    first = next(event for event in spans if event.get("cat") == "step")
    assert first["args"] == {
        "request_ids": ["p"], "sequences": 1, "prompt_tokens": 64, "decode_tokens": 0, "waiting": 0,
    }  # fmt: skip


def test_a_request_is_cut_to_the_time_of_the_profile() -> None:
    process = TracedProcess(pid=1, kind="api", role="decode", start_s=1.05, end_s=1.2)
    events = [e for e in api_events(process, [timeline(), timeline("old", 0.1)]) if "ts" in e]
    assert {event["args"]["request_id"] for event in events} == {"r"}
    times = [event["ts"] for event in events]
    assert (min(times), max(times)) == (1.05e6, 1.2e6)
    assert [e["ph"] for e in events] == ["b", "b", "e", "b", "e", "e"]


@pytest.mark.parametrize(
    ("clock", "moved_s", "pid"),
    [
        (ClockFacts(boot_id="one", wall_offset_s=1007.0), 0.0, 7),
        (ClockFacts(boot_id="two", wall_offset_s=1007.0), 7.0, 10_000_007),
        (ClockFacts(boot_id="", wall_offset_s=1007.0), 7.0, 10_000_007),
    ],
)
def test_traces_of_two_hosts_are_brought_onto_one_clock(
    clock: ClockFacts, moved_s: float, pid: int
) -> None:
    events = engine_events(engine(), notes([step(1.0, decodes=["d"])], [timeline()]))
    merged = merge([trace(engine(), events), trace(engine(), events, clock)])
    ours, theirs = merged.events[: len(events)], merged.events[len(events) :]
    assert ours == events
    assert {event["pid"] for event in theirs} == {pid}
    assert merged.facts.processes[1].pid == pid
    moves = {round(b["ts"] - a["ts"], 3) for a, b in zip(events, theirs, strict=True) if "ts" in a}
    assert moves == {moved_s * 1e6}


def _ids_of(event: Event) -> Any:
    args = event["args"]
    return args.get("request_id") or args.get("request_ids")


def assert_nested(spans: list[Event]) -> None:
    """Each span lies inside the one that began before it and is not over."""
    by_track: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in spans:
        by_track[event["pid"], event["tid"]].append(event)
    slack = 0.2  # microseconds are rounded to a tenth
    for events in by_track.values():
        open_ends: list[float] = []
        for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
            while open_ends and open_ends[-1] <= event["ts"] + slack:
                open_ends.pop()
            end = event["ts"] + event["dur"]
            assert not open_ends or end <= open_ends[-1] + slack, event
            open_ends.append(end)
