"""The same load on several servers: which, in which order, and what is said of them."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from baton.bench.serve.compare import KNOWN, Candidate, parse_candidates, turns
from baton.bench.serve.peer_server import started
from baton.bench.serve.server import ServerError
from baton.core.errors import ConfigError
from baton.launch import cli
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

REPOSITORY = Path(__file__).resolve().parents[4]
SHORT = ["--random-input-len=6", "--random-output-len=2", "--num-prompts=3"]


def answer(_request: Request) -> Sequence[Step]:
    return [STREAM_HEAD, event(generated(2, is_end=True)), DONE]


def test_servers_are_known_by_name_or_given_by_address() -> None:
    known, given = parse_candidates(["baton-pd", "mine=vllm-chat@http://x:1/a=b"])
    assert known == KNOWN["baton-pd"]
    assert given == Candidate("mine", "vllm-chat", url="http://x:1/a=b")


@pytest.mark.parametrize("word", ["nobody", "x=vllm", "x=vllm@", "=vllm@http://x", "x=y@http://x"])
def test_a_server_that_is_neither_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=f"--servers '{re.escape(word)}' is none of"):
        parse_candidates([word])


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="names baton-pd twice"):
        parse_candidates(["baton-pd", "baton-pd"])


def test_every_other_round_goes_backwards() -> None:
    a, b = Candidate("a", "vllm", url="x"), Candidate("b", "vllm", url="y")
    assert [(number, each.name) for number, each in turns([a, b], 3)] == [
        *[(0, "a"), (0, "b")],
        *[(1, "b"), (1, "a")],
        *[(2, "a"), (2, "b")],
    ]


def test_every_known_server_has_a_script_that_takes_a_port() -> None:
    for candidate in KNOWN.values():
        assert candidate.script is not None
        script = REPOSITORY / "benchmarks/peers/start" / candidate.script
        assert os.access(script, os.X_OK), script
        assert '"$1"' in script.read_text()
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_servers_get_the_same_prompts_and_rounds_different_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compared.json"
    with ScriptedServer(answer).in_thread() as one, ScriptedServer(answer).in_thread() as other:
        status = cli.main(
            [
                *[
                    "bench",
                    "compare",
                    "--rounds=2",
                    "--warmup-requests=0",
                    f"--json={path}",
                    *SHORT,
                ],
                *["--servers", f"one=sglang@{one.url}", f"other=sglang@{other.url}"],
                *["--goodput", "e2el:60000", "--max-concurrency=1"],
            ]
        )
    assert status == 0
    sent = [[str(each.body) for each in server.requests] for server in (one, other)]
    assert sent[0] == sent[1]
    assert len(set(sent[0])) == len(sent[0]) == 6
    report = json.loads(path.read_bytes())
    assert list(report["servers"]) == ["one", "other"]
    figures = report["servers"]["one"]["figures"]
    assert figures["limits met"]["samples"] == [1.0, 1.0]
    assert figures["failed"]["median"] == 0
    assert len(figures["TTFT p50"]["samples"]) == 2
    assert "server" not in figures  # no process of theirs is known
    assert "sustained" not in figures
    assert "TTFT p99, ms" in capsys.readouterr().out


def test_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compared.json"
    with (
        ScriptedServer(answer).in_thread() as good,
        ScriptedServer(lambda _request: [whole({"error": "no"}, "500 x")]).in_thread() as bad,
    ):
        servers = [f"bad=sglang@{bad.url}", f"good=sglang@{good.url}"]
        options = ["--rounds=2", f"--json={path}", *SHORT, "--servers", *servers]
        assert cli.main(["bench", "compare", *options]) == 1
    report = json.loads(path.read_bytes())
    assert "the warm-up failed: HTTP 500: no" in report["servers"]["bad"]["failure"]
    assert report["servers"]["good"]["failure"] is None
    assert len(report["servers"]["good"]["figures"]["requests"]["samples"]) == 2
    assert len(bad.requests) == 1  # not tried again
    assert "bad failed: the warm-up failed" in capsys.readouterr().out


def test_scripts_are_looked_for_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "compare", "--servers", "baton-pd", *SHORT]) == 1
    assert "run from Baton's repository" in capsys.readouterr().err


SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(child.pid).encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_started_server_is_gone_with_its_children() -> None:
    with started([sys.executable, "-c", SERVER, "PORT"], timeout_s=60) as (url, pid):
        assert url.startswith("http://127.0.0.1:")
        (child,) = psutil.Process(pid).children()
    assert not psutil.pid_exists(pid)
    child.wait(20)


def test_a_server_that_does_not_come_up_shows_what_it_wrote() -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
    with pytest.raises(ServerError, match="it ended before it answered: no model here"):
        with started(broken, timeout_s=60):
            pass
    silent = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ServerError, match=r"not ready after 0\.1 s: it wrote nothing"):
        with started(silent, timeout_s=0.1):
            pass
    with pytest.raises(ServerError, match="cannot be started"):
        with started(["/absent/program"], timeout_s=1):
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--goodput", "x:1"], "--goodput 'x:1' is not NAME:MS"),
        (["--find-sessions"], "--find-sessions needs limits"),
        (["--json", "/absent/x.json"], "there is no folder /absent"),
        (["--trace-time-scale", "0"], "--trace-time-scale 0"),
        (["--request-rate", "0"], "--request-rate 0"),
    ],
)
def test_wrong_options_are_told_before_anything_is_sent(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(answer).in_thread() as server:
        command = ["bench", "compare", "--servers", f"one=sglang@{server.url}", *options]
        assert cli.main(command) == 1
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_ctrl_c_reports_the_rounds_that_had_ended(tmp_path: Path) -> None:
    """One server answers all, the other one request and then never; then the user has enough."""
    path, never = tmp_path / "compared.json", asyncio.Event()

    def script(request: Request) -> Sequence[Step]:
        return answer(request) if len(stuck.requests) == 1 else [STREAM_HEAD, never]

    with (
        ScriptedServer(answer).in_thread() as good,
        ScriptedServer(script).in_thread() as stuck,
    ):
        command = [sys.executable, "-m", "baton.launch.cli", "bench", "compare", *SHORT]
        command += ["--servers", f"good=sglang@{good.url}", f"stuck=sglang@{stuck.url}"]
        command += ["--warmup-requests=0", "--max-concurrency=1", f"--json={path}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            wait_until(lambda: len(stuck.requests) == 2, "the second request")
            client.send_signal(signal.SIGINT)
            shown, _ = client.communicate(timeout=60)
    assert client.returncode == 130
    assert b"stopped: the round that ran is left out" in shown
    report = json.loads(path.read_bytes())
    assert len(report["servers"]["good"]["figures"]["requests"]["samples"]) == 1
    assert report["servers"]["stuck"]["figures"] == {}
    assert len(good.requests) == 3


def test_sigterm_ends_the_server_that_was_started(tmp_path: Path) -> None:
    scripts = tmp_path / "benchmarks/peers/start"
    scripts.mkdir(parents=True)
    script, pid_file = scripts / "baton-pd.sh", tmp_path / "pid"
    lines = [f"echo $$ > {pid_file}.new", f"mv {pid_file}.new {pid_file}", "sleep 600"]
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    script.chmod(0o755)
    command = [sys.executable, "-m", "baton.launch.cli", "bench", "compare"]
    command += ["--servers", "baton-pd", *SHORT]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as client:
        wait_until(pid_file.exists, "the server's start")
        server = psutil.Process(int(pid_file.read_text()))
        client.terminate()
        client.communicate(timeout=60)
    assert client.returncode == 128 + signal.SIGTERM
    server.wait(20)
