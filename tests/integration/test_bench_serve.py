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


def test_background_streams_run_as_long_as_the_load(
    server: Server, tiny_model: Path, tmp_path: Path
) -> None:
    options = ["--background-streams=2", "--background-output-len=20", "--max-concurrency=1"]
    options += ["--random-output-len=1"]  # so that all gaps are the streams'
    report = bench(server, tiny_model, tmp_path, *options)
    assert report["requests"]["errors"] == {}
    assert report["requests"]["planned"] >= NUM_SESSIONS  # and streams that came to their end
    assert report["rates"]["total_output_tokens"] == NUM_SESSIONS
    assert report["latencies"]["itl_ms"]["count"] > 0
    assert report["latencies"]["ttft_ms"]["count"] == NUM_SESSIONS


def test_a_suite_of_loads_on_a_worker(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    """All its loads at a tiny size, and the page of what they gave."""
    questions, trace = tmp_path / "sharegpt.json", tmp_path / "azure.csv"
    conversation = [("human", "who wrote this?"), ("gpt", "nobody did")]
    rows = [{"conversations": [{"from": who, "value": text} for who, text in conversation]}] * 40
    questions.write_text(json.dumps(rows))
    times = [f"2023-11-16 18:15:{at % 60:02}.0000000,40,20" for at in range(100)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *times]))
    saved, page = tmp_path / "suite.json", tmp_path / "page.md"
    status = cli.main(
        [
            *["bench", "compare", "--suite", "article", "--rounds=1", f"--tokenizer={tiny_model}"],
            *[f"--dataset-path={questions}", f"--suite-traces={trace}"],
            *["--suite-burst=4", "--suite-rate=50", "--suite-seconds=0.1", "--suite-long-len=40"],
            *["--suite-long-prompts=2", "--suite-streams=2", "--sharegpt-output-len=5"],
            *["--token-id-range", "20", "250", "--max-sessions=2", "--goodput", "e2el:60000"],
            *[f"--json={saved}", f"--markdown={page}"],
            *["--servers", f"baton-pd=sglang@{server.url}", f"other=vllm@{server.url}"],
        ]
    )
    assert status == 0
    loads = json.loads(saved.read_bytes())["loads"]
    assert list(loads) == ["steady", "saturated", "azure", "sessions", "interference"]
    for name, load in loads.items():
        for measured in load["servers"].values():
            assert measured["errors"] == {}, name
            assert measured["figures"]["failed"]["median"] == 0
    for server_figures in loads["sessions"]["servers"].values():
        assert server_figures["figures"]["sustained"]["median"] == 2
    assert "| throughput, 1/s | saturated | baton-pd: " in page.read_text()


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
