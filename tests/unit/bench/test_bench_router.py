"""The router benchmark, small: real routers and workers, all figures, no process stays."""

import dataclasses
import os
from typing import Literal

import msgspec
import psutil
import pytest

from baton.bench import bench_router as subject
from baton.bench.config import RouterBenchConfig
from baton.bench.instant_worker import NUM_EVENTS, answers_of
from baton.bench.load_client import BUSY_SHARE, Load, LoadResult
from baton.bench.report import Findings, Report
from baton.bench.router_processes import Clients, Router, Workers, body_of
from baton.core.errors import ConfigError
from baton.router.marks import MarkedStream

SMALL = RouterBenchConfig(rounds=1, seconds=0.1, clients=(1, 4), num_workers=10)


def children() -> set[int]:
    """Other tests' servers may be among them."""
    return {each.pid for each in psutil.Process(os.getpid()).children()}


@pytest.mark.parametrize("route", ["generate", "chat"])
def test_a_small_run_has_every_figure_and_claim(route: Literal["generate", "chat"]) -> None:
    before = children()
    report = subject.bench_router(dataclasses.replace(SMALL, route=route))
    for router in ("baton", "sglang-router"):
        for case in ("plain_1", "plain_4", "stream_1", "stream_4"):
            name = f"{router}_{case}"
            assert report.figures[name].unit == "requests/s"
            assert report.figures[name].median > 0
            assert report.figures[f"{name}_ttft_p50"].median > 0
            assert report.figures[f"{name}_p50"].median <= report.figures[f"{name}_p99"].median
    assert report.figures["baton_marked_stream_4"].median > 0
    assert "baton_marked_plain_4" not in report.figures
    assert {name: ratio.floor for name, ratio in report.ratios.items()} == {
        "latency_vs_sglang_router": 1.0,
        "ttft_vs_sglang_router": 50.0,
        "plain_4_vs_sglang_router": 1.0,
        "stream_4_vs_sglang_router": 2.0,
        "stream_4_with_marks": 0.8,
        "choose_pair_under_50_us": 1.0,
    }
    assert report.skipped == {}
    assert {"httptools", "uvloop", "sglang-router"} <= report.machine.versions.keys()
    assert msgspec.json.decode(report.to_json(), type=Report) == report
    assert children() == before


def test_without_sglangs_router_batons_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "find_spec", lambda _: None)
    report = subject.bench_router(SMALL)
    assert "not installed" in report.skipped["sglang-router"]
    assert "baton_plain_4" in report.figures
    assert not any("sglang" in name for name in (*report.figures, *report.ratios))
    assert set(report.skipped) == {
        "sglang-router",
        "latency_vs_sglang_router",
        "ttft_vs_sglang_router",
        "plain_4_vs_sglang_router",
        "stream_4_vs_sglang_router",
    }


def test_a_rate_that_the_client_limited_is_no_claim() -> None:
    def result(cpu_share: float) -> LoadResult:
        return LoadResult(
            requests_per_s=1.0,
            latency_p50_ms=1.0,
            latency_p99_ms=1.0,
            ttft_p50_ms=1.0,
            ttft_p99_ms=1.0,
            cpu_share=cpu_share,
        )

    findings = Findings()
    taken = {"baton": [result(BUSY_SHARE + 0.01)], "sglang-router": [result(0.2)]}
    subject._compare(findings, subject._Case(streams=False, num_clients=64), taken)
    assert findings.ratios == {}
    assert "0.91 of a core" in findings.skipped["plain_64_vs_sglang_router"]


def test_instant_workers_answer_whole_streams() -> None:
    for role, num in (("prefill", 1), ("decode", NUM_EVENTS)):
        answers = answers_of(role)
        for path in (b"/generate", b"/v1/chat/completions"):
            stream = answers[path, True]
            assert stream.count(b"data: {") == num
            assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            head, _, body = answers[path, False].partition(b"\r\n\r\n")
            assert b"Content-Length: %d" % len(body) in head
            assert msgspec.json.decode(body)


@pytest.mark.parametrize("path", [b"/generate", b"/v1/chat/completions"])
def test_marked_streams_are_the_others_with_marks(path: bytes) -> None:
    """As the router reads them: every event but the last is marked, and none is changed."""
    bare, marked = (answers_of("decode", marks)[path, True] for marks in (False, True))
    assert b"X-Baton-Marks: 7 1 instant\r\n" in marked.partition(b"\r\n\r\n")[0]
    stream = MarkedStream("7 1 instant")
    passed = stream.feed(events_of(marked)) + stream.take_held()
    assert passed == events_of(bare)
    assert stream.num_tokens == NUM_EVENTS - 1


def events_of(answer: bytes) -> bytes:
    """The body, without its chunks' sizes."""
    rest, events = answer.partition(b"\r\n\r\n")[2], b""
    while size := int(rest.partition(b"\r\n")[0], 16):
        rest = rest.partition(b"\r\n")[2]
        events, rest = events + rest[:size], rest[size + 2 :]
    return events


def test_a_load_client_says_why_it_failed() -> None:
    workers, clients = Workers(), Clients()
    try:
        port = int(workers.decode_url.rpartition(":")[2])
        load = Load(port=port, path="/none", body="{}", num_clients=2, warm_up_s=0.0, seconds=0.05)
        with pytest.raises(ConfigError, match="load client failed: an answer has status 404"):
            clients.run(load)
    finally:
        workers.close()
        clients.close()


def test_a_router_that_ends_says_why() -> None:
    before = children()
    with pytest.raises(ConfigError, match="it does not become ready: nothing to do"):
        Router(["/bin/sh", "-c", "echo nothing to do >&2"], "it", 1)
    assert children() == before
    assert body_of(text="a", stream=True) == '{"text":"a","stream":true}'
