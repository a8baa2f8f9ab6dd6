"""`baton bench serve` from the command line, against a server over real sockets."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from baton.launch import cli
from baton.launch.bench_serve import without_key
from baton.testing.processes import wait_until
from baton.testing.scripted_server import (
    DONE,
    STREAM_HEAD,
    Request,
    ScriptedServer,
    Step,
    event,
    generated,
    whole,
)

PROCESS = {"pid": 1, "kind": "engine", "role": "prefill", "start_s": 0, "end_s": 2}
CLOCK = {"boot_id": "b", "wall_offset_s": 0}
NO_EVENTS = {"traceEvents": [], "otherData": {"clock": CLOCK, "processes": [PROCESS]}}
SHORT = ["--random-input-len=8", "--random-output-len=3", "--random-range-ratio=1"]


def answer(request: Request) -> Sequence[Step]:
    if request.path == "/flush_cache":
        return [whole("done")]
    if request.path.startswith("/start_profile"):
        return [whole({}, "503 No" if "role=decode" in request.path else "200 OK")]
    if request.path.startswith("/stop_profile"):
        return [whole(NO_EVENTS)]
    number = request.body["sampling_params"]["max_new_tokens"]
    return [
        STREAM_HEAD,
        *(event(generated(each, is_end=each == number)) for each in range(1, number + 1)),
        DONE,
    ]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(answer).in_thread() as running:
        yield running


def bench(server: ScriptedServer, *options: str) -> int:
    return cli.main(["bench", "serve", f"--base-url={server.url}", *SHORT, *options])


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def test_a_load_is_sent_reported_and_written(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "report.json", tmp_path / "report.html"
    options = ["--num-prompts=5", "--goodput", "ttft:60000", "itl:60000", "--output-details"]
    options += [f"--output-file={path}", f"--html={page}", f"--server-pid={os.getpid()}"]
    assert bench(server, *options, "--api-key=secret-key", "--flush-cache") == 0
    report = report_of(path)
    assert report["requests"] == {
        "planned": 5,
        "succeeded": 5,
        "failed": 0,
        "errors": {},
        "counted_by": {"server": 5},
    }
    assert report["rates"]["total_output_tokens"] == 15
    assert report["attainment"]["by_limit"] == {"ttft": 1.0, "itl": 1.0}
    assert report["latencies"]["e2el_ms"]["count"] == 5
    assert report["settings"]["seed"] == 1
    assert report["server"]["model"] == "scripted"
    assert report["cpu"]["num_server_processes"] >= 1
    assert [each["num_output"] for each in report["details"]] == [3] * 5
    assert "--api-key=..." in report["command"]
    shown = capsys.readouterr().out
    assert "time to first token" in shown
    assert "5 of 5 succeeded" in shown
    text = page.read_text()
    assert "secret-key" not in path.read_text() + text + shown
    assert text.count("<svg") == text.count("<figure>") >= 5
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!#)', text)  # nothing from elsewhere


def test_the_key_is_sent_and_warm_ups_come_first(server: ScriptedServer) -> None:
    options = ["--num-prompts=2", "--warmup-requests=3", "--flush-cache", "--max-concurrency=1"]
    assert bench(server, *options, "--api-key", "k") == 0
    assert [each.path for each in server.requests] == [
        *["/generate"] * 3,
        "/flush_cache",
        *["/generate"] * 2,
    ]
    assert {each.headers["authorization"] for each in server.requests} == {"Bearer k"}
    prompts = [tuple(each.body["input_ids"]) for each in server.requests if each.body]
    # Warm-ups are as long as the real prompts, but no prefix cache knows these from them.
    assert [len(each) for each in prompts] == [8] * 5
    assert prompts[0] == prompts[3][::-1]


def test_a_profile_is_of_the_load_alone(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    options = ["--num-prompts=2", f"--profile-output={path}", "--profile-prefill-worker"]
    assert bench(server, *options, "--warmup-requests=1") == 0
    assert [each.path for each in server.requests] == [
        "/generate",
        "/start_profile?role=prefill",
        *["/generate"] * 2,
        "/stop_profile?role=prefill",
    ]
    assert json.loads(path.read_bytes()) == NO_EVENTS
    assert "prefill engine (pid 1): 2.00 s, busy 0.00 s" in capsys.readouterr().out


def test_a_server_that_cannot_be_profiled_ends_the_run(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    options = ["--num-prompts=2", f"--profile-output={path}", "--profile-decode-worker"]
    assert bench(server, *options) == 1
    assert "/start_profile?role=decode answered 503" in capsys.readouterr().err
    assert not path.exists()


def test_one_seed_sends_the_same_whatever_the_rate(server: ScriptedServer) -> None:
    for rate in ("inf", "500"):
        bench(server, "--num-prompts=4", f"--request-rate={rate}", "--warmup-requests=0")
    sent = [str(each.body) for each in server.requests]
    assert sorted(sent[:4]) == sorted(sent[4:])


def test_find_sessions_reports_its_steps(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    options = ["--find-sessions", "--max-sessions=4", "--goodput", "ttft:60000"]
    assert bench(server, *options, f"--output-file={path}", "--requests-per-session=2") == 0
    report = report_of(path)
    assert report["sustained_sessions"] == 4
    assert [each["sessions"] for each in report["steps"]] == [1, 2, 4]
    assert [each["requests"]["planned"] for each in report["steps"]] == [2, 4, 8]
    assert report["requests"]["planned"] == 8
    assert server.most_running <= 4
    prompts = {tuple(each.body["input_ids"]) for each in server.requests}
    assert len(prompts) == len(server.requests) == 1 + 2 + 4 + 8


def test_find_sessions_ends_where_limits_are_missed(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    options = ["--find-sessions", "--goodput", "ttft:0.000001", f"--output-file={path}"]
    assert bench(server, *options) == 0
    report = report_of(path)
    assert report["sustained_sessions"] == 0
    assert [each["is_within_limits"] for each in report["steps"]] == [False]


def test_failures_are_told_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def script(request: Request) -> Sequence[Step]:
        return [whole({"error": "full"}, "503 x")] if len(served.requests) % 2 else answer(request)

    path = tmp_path / "report.json"
    options = [
        "--num-prompts=4",
        "--warmup-requests=0",
        f"--json={path}",
        "--goodput",
        "e2el:60000",
    ]
    with ScriptedServer(script).in_thread() as served:
        assert bench(served, *options) == 0
    report = report_of(path)
    assert report["requests"]["errors"] == {"HTTP 503: full": 2}
    assert report["attainment"]["all_limits"] == 0.5
    assert "2 failed: HTTP 503: full" in capsys.readouterr().out


def test_a_load_of_failures_alone_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(lambda _request: [whole({}, "500 x")]).in_thread() as served:
        assert bench(served, "--num-prompts=2", "--warmup-requests=0") == 1
        assert "0 of 2 succeeded" in capsys.readouterr().out
        assert bench(served, "--num-prompts=2") == 1
    assert "error: the warm-up failed: HTTP 500" in capsys.readouterr().err


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(answer).in_thread() as gone:
        pass
    assert bench(gone) == 1
    assert f"cannot reach {gone.url}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--find-sessions"], "--find-sessions needs limits"),
        (["--disable-stream", "--goodput", "itl:9"], "--goodput itl needs streams"),
        (["--goodput", "ttft"], "--goodput 'ttft' is not NAME:MS"),
        (["--extra-request-body", "{"], "--extra-request-body"),
        (["--server-pid", "999999999"], "--server-pid 999999999: there is no such process"),
        (["--output-file", "/absent/x.json"], "there is no folder /absent"),
        (["--html", "/absent/x.html"], "there is no folder /absent"),
        (["--dataset-name", "mooncake"], "add --dataset-path FILE"),
    ],
)
def test_wrong_options_are_told_before_anything_is_sent(
    server: ScriptedServer, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, *options) == 1
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_plots_without_their_package_name_the_mend(
    server: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert bench(server, f"--html={tmp_path / 'page.html'}") == 1
    assert "pip install 'baton[bench]'" in capsys.readouterr().err
    assert server.requests == []


def test_keys_stay_out_of_the_command() -> None:
    assert without_key(["serve", "--api-key", "a", "--port", "1"]) == [
        "serve",
        "--api-key",
        "...",
        "--port",
        "1",
    ]
    assert without_key(["--api-key=a", "--api", "b"]) == ["--api-key=...", "--api", "..."]


def test_ctrl_c_reports_what_had_ended(tmp_path: Path) -> None:
    """The first request is answered, the second never; then the user has enough."""
    path = tmp_path / "report.json"
    never = asyncio.Event()

    def script(request: Request) -> Sequence[Step]:
        return answer(request) if len(served.requests) == 1 else [STREAM_HEAD, never]

    with ScriptedServer(script).in_thread() as served:
        command = [sys.executable, "-m", "baton.launch.cli", "bench", "serve", *SHORT]
        command += [f"--base-url={served.url}", "--num-prompts=3", "--warmup-requests=0"]
        command += ["--max-concurrency=1", f"--json={path}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            wait_until(lambda: len(served.requests) == 2, "the second request")
            client.send_signal(signal.SIGINT)
            shown, _ = client.communicate(timeout=60)
    assert client.returncode == 130
    assert b"1 of 1 succeeded" in shown
    assert b"stopped" in shown
    report = report_of(path)
    assert report["is_stopped"] is True
    assert (report["requests"]["planned"], report["requests"]["errors"]) == (1, {})
