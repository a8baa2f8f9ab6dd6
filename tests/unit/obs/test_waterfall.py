"""One request's rows, from the answers of several processes or from a trace: the same rows, on one
clock, with the gate that held it."""

from typing import Any

import msgspec
import pytest

from baton.core.profile import ProfileNotes
from baton.core.timeline import ClockFacts, Timeline
from baton.obs.chrome_trace import Trace, TracedProcess, TraceFacts, api_events, engine_events
from baton.obs.waterfall import Waterfall, from_answer, from_trace

HERE = ClockFacts(boot_id="one", wall_offset_s=100.0)
ELSEWHERE = ClockFacts(boot_id="two", wall_offset_s=60.0)


def line(name: str, *phases: tuple[str, float], end_s: float | None, **facts: Any) -> Timeline:
    made = Timeline.begin(name, phases[0][0], phases[0][1])
    for phase, at_s in phases[1:]:
        made.enter(phase, at_s)
    if end_s is not None:
        made.end(end_s, "HTTP 200")
    return msgspec.structs.replace(made, **facts)


def router() -> Timeline:
    return line("r", ("queue", 1.0), ("placed", 1.2), ("answer", 2.0), end_s=3.0)


def prefill_api() -> Timeline:
    made = line("r", ("read", 1.21), ("engine", 1.22), ("stream", 1.9), end_s=1.91, samples=["r.1"])
    return made


def prefill_engine() -> Timeline:
    made = line(
        "r.1", ("queue", 1.3), ("prefill", 1.35), ("writing", 1.85), end_s=1.9, pair="5:0",
        num_prompt_tokens=64,
    )  # fmt: skip
    made.computed(1.4, 1.6, 32, 2)
    made.computed(1.6, 1.8, 32, 1)
    return made


def decode_api() -> Timeline:
    return line("r", ("read", 1.21), ("engine", 1.23), ("stream", 1.95), end_s=2.9, samples=["r.2"])


def decode_engine() -> Timeline:
    return line("r.2", ("awaiting_kv", 1.3), ("decode", 1.9), end_s=2.8, pair="5:0")


def worker(role: str, api: Timeline | None, engines: list[Timeline], clock: ClockFacts) -> Any:
    return msgspec.to_builtins(
        {"role": role, "now_s": 9.0, "clock": clock, "api": api, "engine": engines}
    )


def answer(**more: Any) -> Any:
    prefill = {"worker": "http://p", "role": "prefill"}
    decode = {"worker": "http://d", "role": "decode"}
    return {
        "request_id": "r",
        "now_s": 9.0,
        "clock": msgspec.to_builtins(HERE),
        "router": msgspec.to_builtins(router()),
        "workers": [
            {**prefill, "part": worker("prefill", prefill_api(), [prefill_engine()], HERE)},
            {**decode, "part": worker("decode", decode_api(), [decode_engine()], HERE)},
        ],
        **more,
    }


def names(waterfall: Waterfall, place: str) -> list[str]:
    return [row.name for row in waterfall.rows if row.place == place]


def test_all_stages_are_there_in_their_order() -> None:
    found, problems = from_answer(answer())
    assert problems == []
    assert list(dict.fromkeys(row.place for row in found.rows)) == [
        "router", "prefill api", "prefill engine", "decode api", "decode engine",
    ]  # fmt: skip
    assert names(found, "prefill engine") == ["queue", "prefill", "chunk 1", "chunk 2", "writing"]
    assert names(found, "decode engine") == ["awaiting_kv", "decode"]
    assert (found.start_s, found.first_token_s, found.end_s) == (1.0, 1.95, 3.0)
    assert found.outcome == "HTTP 200"


def test_the_gate_is_the_longest_wait_and_not_what_waits_for_it() -> None:
    found, _ = from_answer(answer())
    gate = found.gate()
    assert gate is not None
    assert (gate[1].place, gate[1].name) == ("prefill engine", "prefill")
    late = line("r", ("queue", 0.0), ("placed", 1.2), ("answer", 2.0), end_s=3.0)
    found, _ = from_answer(answer(router=msgspec.to_builtins(late)))
    gate = found.gate()
    assert gate is not None
    assert gate[0] == "waited for its turn in the router"


def test_a_worker_asked_alone_says_that_it_waited_for_the_other() -> None:
    found, _ = from_answer(worker("decode", decode_api(), [decode_engine()], HERE))
    gate = found.gate()
    assert gate is not None
    assert gate[1].name == "awaiting_kv"


def test_another_hosts_times_are_moved() -> None:
    far = worker("decode", None, [decode_engine()], ELSEWHERE)
    workers = [{"worker": "http://d", "role": "decode", "part": far}]
    found, _ = from_answer(answer(workers=workers))
    row = next(row for row in found.rows if row.name == "awaiting_kv")
    assert row.start_s == pytest.approx(1.3 - 40.0)


def test_who_could_not_be_asked_is_named() -> None:
    workers = [{"worker": "http://d", "role": "decode", "error": "connection refused"}]
    found, problems = from_answer(answer(workers=workers))
    assert names(found, "router") == ["queue", "placed", "answer"]
    assert problems == ["decode worker http://d: connection refused"]


def test_a_running_request_lasts_until_now() -> None:
    running = line("r", ("queue", 1.0), ("placed", 1.2), end_s=None)
    found, _ = from_answer(answer(router=msgspec.to_builtins(running), workers=[]))
    assert (found.end_s, found.first_token_s, found.outcome) == (9.0, None, "still runs")


@pytest.mark.parametrize("odd", [{}, {"clock": 1}, answer(router={"request_id": 5})])
def test_an_answer_of_another_shape_is_refused(odd: Any) -> None:
    with pytest.raises(ValueError, match="another shape"):
        from_answer(odd)


@pytest.mark.parametrize("wanted", ["r", "r.1", "r.2"])
def test_a_trace_gives_the_same_rows(wanted: str) -> None:
    def process(pid: int, kind: str, role: str) -> TracedProcess:
        return TracedProcess(pid=pid, kind=kind, role=role, start_s=0.0, end_s=9.0)

    def notes(timeline: Timeline) -> ProfileNotes:
        return ProfileNotes(start_s=0.0, end_s=9.0, steps=[], requests=[timeline])

    processes = [
        process(1, "router", ""), process(2, "engine", "prefill"), process(3, "api", "prefill"),
        process(4, "engine", "decode"), process(5, "api", "decode"),
    ]  # fmt: skip
    other = line("other", ("queue", 1.0), end_s=2.0)
    events = [
        *api_events(processes[0], [router(), other]),
        *engine_events(processes[1], notes(prefill_engine())),
        *api_events(processes[2], [prefill_api()]),
        *engine_events(processes[3], notes(decode_engine())),
        *api_events(processes[4], [decode_api()]),
    ]
    trace = Trace(events=events, facts=TraceFacts(clock=HERE, processes=processes))
    found = from_trace(trace, wanted)
    assert found is not None
    expected, _ = from_answer(answer())
    assert [(r.place, r.name) for r in found.rows] == [(r.place, r.name) for r in expected.rows]
    assert [r.start_s for r in found.rows] == pytest.approx([r.start_s for r in expected.rows])
    assert found.first_token_s == pytest.approx(1.95)


def test_a_trace_knows_nothing_of_others() -> None:
    trace = Trace(events=[], facts=TraceFacts(clock=HERE, processes=[]))
    assert from_trace(trace, "r") is None
