"""Sums of a trace are those of its spans, and every advice follows from a figure."""

import itertools

import pytest

from baton.core.profile import ProfileNotes, StepRecord
from baton.core.timeline import ClockFacts, Timeline
from baton.obs.chrome_trace import (
    Event,
    Trace,
    TracedProcess,
    TraceFacts,
    api_events,
    engine_events,
)
from baton.obs.trace_summary import Advice, summarize


def a_trace(
    role: str,
    *,
    wall_s: float = 1.0,
    step_s: float = 0.1,
    num_steps: int = 5,
    mixed: bool = False,
    sample_share: float = 0.0,
    phases: tuple[tuple[str, float], ...] = (("decode", 0.5),),
    ttft_s: float = 0.2,
    num_dropped: int = 0,
) -> Trace:
    """One request at an engine of that role, and at the api of a decode worker."""
    prompts = [("p", 10)] if mixed or role == "prefill" else []
    decodes = [] if role == "prefill" else ["r"]
    steps = []
    for index in range(num_steps):
        start_s = index * step_s
        end_s = start_s + step_s
        computed_s = end_s - sample_share * step_s
        times = (start_s, start_s, computed_s, end_s, end_s)
        steps.append(StepRecord(*times, prompts, decodes, [("down", step_s / 4)], [], [], 0))
    engine = TracedProcess(
        pid=1, kind="engine", role=role, start_s=0.0, end_s=wall_s, num_dropped=num_dropped
    )
    events: list[Event] = engine_events(engine, ProfileNotes(
        start_s=0.0, end_s=wall_s, steps=steps, requests=[line("r", phases)]
    ))  # fmt: skip
    api_role = "decode" if role == "prefill" else role
    api = TracedProcess(pid=2, kind="api", role=api_role, start_s=0.0, end_s=wall_s)
    events += api_events(api, [line("r", (("engine", ttft_s), ("stream", 0.1)))])
    clock = ClockFacts(boot_id="b", wall_offset_s=0.0)
    return Trace(events=events, facts=TraceFacts(clock=clock, processes=[engine, api]))


def line(request_id: str, phases: tuple[tuple[str, float], ...]) -> Timeline:
    at_s = 0.01
    made = Timeline.begin(request_id, phases[0][0], at_s)
    for (_, seconds), (name, _) in itertools.pairwise(phases):
        at_s += seconds
        made.enter(name, at_s)
    made.end(at_s + phases[-1][1], "length")
    return made


def test_sums_are_those_of_the_spans() -> None:
    summary = summarize(a_trace("decode", wall_s=1.0, step_s=0.1, num_steps=5))
    engine = summary.processes[0]
    assert engine.busy_share == pytest.approx(0.5)
    assert [(s.name, s.count, round(s.seconds, 6)) for s in engine.steps] == [
        ("decode step", 5, 0.5)
    ]
    assert [(s.name, round(s.seconds, 6)) for s in engine.ops] == [("down", 0.125)]
    assert [(s.name, round(s.seconds, 6)) for s in engine.phases] == [("decode", 0.5)]
    assert (engine.num_prompt_tokens, engine.num_decode_tokens) == (0, 5)
    assert (summary.ttft_s, summary.num_first_tokens) == (pytest.approx(0.2), 1)


def test_a_trace_without_requests_has_no_first_token() -> None:
    trace = a_trace("decode")
    trace.events = [event for event in trace.events if event.get("cat") != "request"]
    summary = summarize(trace)
    assert (summary.ttft_s, summary.num_first_tokens) == (None, 0)


def test_what_was_dropped_is_said() -> None:
    (note,) = summarize(a_trace("decode", num_dropped=12)).notes
    assert "12 oldest records" in note


@pytest.mark.parametrize(
    ("trace", "figure", "mend"),
    [
        (a_trace("decode", num_steps=1), "decode engine is idle 90%", "2p1d"),
        (a_trace("decode", num_steps=10), "decode engine is busy 100%", "add a decode worker"),
        (a_trace("prefill", num_steps=10), "prefill engine is busy 100%", "add a prefill worker"),
        (a_trace("decode", sample_share=0.5), "50% of its steps choosing", "penalties"),
        (a_trace("unified", mixed=True), "100% of its steps on prompts and streams", "split"),
        (a_trace("decode", phases=(("recompute", 0.2),)), "1 requests again", "--max-total-tokens"),
        (
            a_trace("prefill", phases=(("queue", 0.15), ("prefill", 0.01))),
            "queue takes 150 ms on the mean, 75% of the 200 ms",
            "add a prefill worker",
        ),
        (
            a_trace("prefill", phases=(("awaiting_reservation", 0.1), ("prefill", 0.01))),
            "awaiting_reservation takes 100 ms",
            "decode has no room",
        ),
        (
            a_trace("prefill", phases=(("prefill", 0.01), ("writing", 0.1))),
            "writing takes 100 ms",
            "network",
        ),
        (
            a_trace("decode", phases=(("queued_for_blocks", 0.1), ("decode", 0.01))),
            "queued_for_blocks takes 100 ms",
            "--mem-fraction-static",
        ),
    ],
)
def test_an_advice_has_its_figure(trace: Trace, figure: str, mend: str) -> None:
    advice = summarize(trace).advice
    assert any(figure in each.figure and mend in each.what_to_try for each in advice), advice


def test_a_balanced_run_gets_no_advice() -> None:
    """Half busy, and no wait that is large against the first token."""
    calm = a_trace("decode", phases=(("queued_for_blocks", 0.01), ("decode", 0.4)))
    advice: list[Advice] = summarize(calm).advice
    assert advice == []
