"""A real pair behind the router, profiled and explained: the trace is whole, and `baton explain`
shows every stage of a request."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from baton.launch.trace_file import read_trace
from baton.obs.chrome_trace import Event, Trace
from baton.obs.trace_summary import summarize
from baton.obs.waterfall import from_trace
from baton.testing.processes import Server, router, running, worker

CHUNK = 64
PROMPT_TOKENS = 150
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def pair(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server, Server]]:
    folder = tmp_path_factory.mktemp("tracing")
    options = (f"--chunked-prefill-size={CHUNK}", "--num-threads=1")
    prefill = worker("prefill", tiny_model, folder, *options)
    decode = worker("decode", tiny_model, folder, *options)
    front = router([prefill, decode], folder)
    with running(prefill, decode, front):
        yield front, prefill, decode


@pytest.fixture(scope="module")
def traced(pair: tuple[Server, Server, Server]) -> tuple[Trace, list[str]]:
    """A trace of three requests, and their ids."""
    front = pair[0]
    assert front.post("/start_profile", {"activities": ["CPU"]})[0] == 200
    ids = [f"traced-{number}" for number in range(3)]
    for number, name in enumerate(ids):
        ask(front, name, number)
    status, answer = front.post("/stop_profile", {})
    assert status == 200
    return msgspec.convert(answer, Trace), ids


def ask(front: Server, name: str, number: int) -> None:
    """`number` makes the prompt one that no cache has."""
    body = {
        "input_ids": [1 + number, *range(3, 2 + PROMPT_TOKENS)],
        "sampling_params": {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True},
        "stream": True,
    }
    connection = http.client.HTTPConnection(front.host, front.port, timeout=60)
    try:
        headers = {"Content-Type": "application/json", "X-Request-ID": name}
        connection.request("POST", "/generate", json.dumps(body), headers)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["X-Request-ID"]) == (200, name)
        assert answer.read().endswith(b"data: [DONE]\n\n")
    finally:
        connection.close()


def baton(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "baton.launch.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "150"},
    )


def spans(trace: Trace, role: str, kind: str, **wanted: str) -> list[Event]:
    (pid,) = [p.pid for p in trace.facts.processes if (p.role, p.kind) == (role, kind)]
    return [
        event
        for event in trace.events
        if event["pid"] == pid and all(event.get(key) == value for key, value in wanted.items())
    ]


def test_steps_are_those_that_were_made(traced: tuple[Trace, list[str]]) -> None:
    trace, ids = traced
    for role, count in (("prefill", -(-PROMPT_TOKENS // CHUNK)), ("decode", NEW_TOKENS - 1)):
        steps = spans(trace, role, "engine", cat="step")
        assert len(steps) == count * len(ids)
        (process,) = [p for p in trace.facts.processes if (p.role, p.kind) == (role, "engine")]
        wall_us = (process.end_s - process.start_s) * 1e6
        assert 0 < sum(step["dur"] for step in steps) <= wall_us
        for inner in ("part", "op"):
            assert sum(e["dur"] for e in spans(trace, role, "engine", cat=inner)) <= sum(
                step["dur"] for step in steps
            ) + len(steps)
    tokens = sum(s["args"]["prompt_tokens"] for s in spans(trace, "prefill", "engine", cat="step"))
    assert tokens == PROMPT_TOKENS * len(ids)


def test_spans_nest_and_have_their_requests(traced: tuple[Trace, list[str]]) -> None:
    trace, ids = traced
    for event in trace.events:
        if event["ph"] != "M":
            args = event["args"]
            named = args.get("request_ids") or [args["request_id"]]
            assert all(name.split(".")[0] in ids for name in named), event
    for role in ("prefill", "decode"):
        inside: list[Event] = []
        on_track = spans(trace, role, "engine", ph="X")
        for event in sorted(on_track, key=lambda each: (each["ts"], -each["dur"])):
            while inside and inside[-1]["ts"] + inside[-1]["dur"] <= event["ts"] + 0.2:
                inside.pop()
            end = event["ts"] + event["dur"]
            assert not inside or end <= inside[-1]["ts"] + inside[-1]["dur"] + 0.2
            assert bool(inside) is (event["cat"] != "step")
            inside.append(event)
    begun, ended = (
        sorted((event["id"], event["name"]) for event in trace.events if event["ph"] == phase)
        for phase in ("b", "e")
    )
    assert begun == ended


def test_an_arrow_leads_from_prefill_to_decode(traced: tuple[Trace, list[str]]) -> None:
    trace, ids = traced
    starts = spans(trace, "prefill", "engine", cat="hand-over", ph="s")
    ends = spans(trace, "decode", "engine", cat="hand-over", ph="f")
    assert len(starts) == len(ids)
    at = {event["id"]: event["ts"] for event in starts}
    assert {event["id"] for event in ends} == set(at)
    assert all(at[event["id"]] < event["ts"] for event in ends)


def test_the_summary_adds_up(traced: tuple[Trace, list[str]]) -> None:
    trace, ids = traced
    summary = summarize(trace)
    assert summary.num_first_tokens == len(ids)
    roles = {(p.process.role, p.process.kind): p for p in summary.processes}
    assert set(roles) == {
        ("", "router"), ("prefill", "engine"), ("prefill", "api"),
        ("decode", "engine"), ("decode", "api"),
    }  # fmt: skip
    prefill = roles["prefill", "engine"]
    assert {spent.name for spent in prefill.steps} == {"prefill chunk"}
    assert {"qkv", "attention", "gate_up", "down"} <= {spent.name for spent in prefill.ops}
    assert 0 < prefill.busy_share <= 1


STAGES = {
    "router": ["queue", "placed", "answer"],
    "prefill api": ["read", "pair", "engine", "stream"],
    "prefill engine": ["awaiting_reservation", "queue", "prefill", "chunk 1", "chunk 3", "writing"],
    "decode api": ["read", "pair", "engine", "stream"],
    "decode engine": ["queued_for_blocks", "awaiting_kv", "decode"],
}


def assert_shows_all_stages(shown: str) -> None:
    place, seen = "", dict[str, list[str]]()
    for line in shown.partition("first token after")[0].splitlines():
        for known in STAGES:
            if line.startswith(known):
                place = known
        for name in STAGES.get(place, ()):
            if f" {name} " in line:
                seen.setdefault(place, []).append(name)
    assert seen == STAGES, shown
    assert "first token after" in shown
    assert "held longest by" in shown


def test_explain_shows_all_stages(
    pair: tuple[Server, Server, Server], traced: tuple[Trace, list[str]]
) -> None:
    front = pair[0]
    done = baton("explain", traced[1][0], "--url", front.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert_shows_all_stages(done.stdout)
    assert f"prefill {pair[1].url} (" in done.stdout.replace("\n", "")


def test_a_trace_file_is_explained_and_summed_up(
    traced: tuple[Trace, list[str]], tmp_path: Path
) -> None:
    trace, ids = traced
    path = tmp_path / "trace.json"
    path.write_bytes(msgspec.json.encode(trace))
    done = baton("explain", ids[-1], "--trace", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert_shows_all_stages(done.stdout)
    done = baton("profile", "summary", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("prefill engine", "decode step", "attention", "first token after", "idle"):
        assert words in done.stdout


def test_unknown_ids_and_servers_are_told_so(
    pair: tuple[Server, Server, Server], tmp_path: Path
) -> None:
    front, prefill, _ = pair
    for server in (front, prefill):
        done = baton("explain", "nobody", "--url", server.url)
        assert (done.returncode, done.stdout) == (1, "")
        assert "remembers no request 'nobody'" in done.stderr
    done = baton("explain", "r", "--trace", str(tmp_path / "none.json"))
    assert done.returncode == 1
    assert "cannot be read" in done.stderr


def test_profiles_of_one_role_and_of_so_many_steps(pair: tuple[Server, Server, Server]) -> None:
    front = pair[0]
    status, answer = front.post("/start_profile?role=decode", {"num_steps": 2})
    assert (status, [w["status"] for w in answer["workers"]]) == (200, [200])
    ask(front, "some-steps", 77)
    trace = msgspec.convert(front.post("/stop_profile?role=decode", {})[1], Trace)
    assert len(spans(trace, "decode", "engine", cat="step")) == 2
    assert {p.role for p in trace.facts.processes} == {"", "decode"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/stop_profile", {}, 409, "POST /start_profile first"),
        ("/start_profile?role=boss", {}, 400, "role is 'boss'"),
        ("/stop_profile?role=regular", {}, 409, "there are no such workers"),
        ("/start_profile", {"num_steps": 0}, 400, "num_steps is 0"),
        ("/start_profile", {"steps": 5}, 400, "steps is no field"),
    ],
)
def test_what_makes_no_sense_is_refused(
    pair: tuple[Server, Server, Server], path: str, body: Any, status: int, words: str
) -> None:
    got, answer = pair[0].post(path, body)
    assert got == status
    assert words in json.dumps(answer)


def test_a_worker_writes_its_trace_when_it_ends(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    whole = worker("null", tiny_model, tmp_path, "--num-threads=1", f"--profile-output={path}")
    with running(whole):
        ask(whole, "alone", 0)
        assert not path.exists()
        assert whole.stop() == 0
    trace = read_trace(path)
    steps = spans(trace, "unified", "engine", cat="step")
    assert [step["name"] for step in steps] == ["prefill chunk", *["decode step"] * 5]
    found = from_trace(trace, "alone")
    assert found is not None
    engine = [row.name for row in found.rows if row.place == "unified engine"]
    assert engine == ["queue", "prefill", "decode"]
    assert found.outcome == "HTTP 200"
