"""`baton bench serve` and a real worker understand each other, in every dialect that it speaks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.launch import cli
from baton.testing.processes import Server, running, worker

NUM_SESSIONS, NUM_OUTPUT = 6, 5


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    unified = worker("null", tiny_model, tmp_path_factory.mktemp("bench-serve"))
    with running(unified):
        yield unified


def bench(server: Server, model: Path, folder: Path, *options: str) -> dict[str, Any]:
    path = folder / "report.json"
    status = cli.main(
        [
            *["bench", "serve", f"--base-url={server.url}", f"--tokenizer={model}"],
            *[f"--num-prompts={NUM_SESSIONS}", f"--random-output-len={NUM_OUTPUT}"],
            *["--random-input-len=20", "--random-range-ratio=1", "--token-id-range", "20", "250"],
            *[f"--server-pid={server.pid}", "--goodput", "e2el:60000", f"--json={path}", *options],
        ]
    )
    report: dict[str, Any] = json.loads(path.read_bytes())
    assert status == 0, report["requests"]["errors"]
    return report


@pytest.mark.parametrize("backend", ["sglang", "vllm", "openai", "sglang-oai-chat", "openai-chat"])
@pytest.mark.parametrize("options", [[], ["--disable-stream"], ["--num-turns=2"]])
def test_every_dialect(
    server: Server, tiny_model: Path, tmp_path: Path, backend: str, options: list[str]
) -> None:
    report = bench(server, tiny_model, tmp_path, f"--backend={backend}", *options)
    requests, rates = report["requests"], report["rates"]
    num_requests = NUM_SESSIONS * (2 if "--num-turns=2" in options else 1)
    assert requests["errors"] == {}
    assert (requests["planned"], requests["succeeded"]) == (num_requests, num_requests)
    assert requests["counted_by"] == {"server": num_requests}
    assert report["attainment"]["all_limits"] == 1.0
    assert report["cpu"]["num_server_processes"] == 2
    if not backend.startswith("openai"):  # which has no way to go past an end token
        assert rates["total_output_tokens"] == num_requests * NUM_OUTPUT
    if backend in ("sglang", "vllm", "openai") and "--num-turns=2" not in options:
        assert rates["total_input_tokens"] == num_requests * 20
    assert (rates["tokens_per_arrival"] is None) == ("--disable-stream" in options)


def test_a_prompt_that_is_too_long_is_a_failure_with_the_servers_words(
    server: Server, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    options = ["--num-prompts=2", "--random-input-len=100000", "--random-range-ratio=1"]
    options += ["--warmup-requests=0", "--token-id-range", "20", "250", f"--json={path}"]
    assert cli.main(["bench", "serve", f"--base-url={server.url}", *options]) == 1
    (error,) = json.loads(path.read_bytes())["requests"]["errors"]
    assert error.startswith("HTTP 400: ")
    assert "0 of 2 succeeded" in capsys.readouterr().out
