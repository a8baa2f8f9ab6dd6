"""The real `sglang-router` drives Baton's workers in PD mode, unchanged."""

import itertools
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.testing.processes import PORTS, Server, running, wait_until


@pytest.fixture(scope="module")
def sglang_router(
    smol_pd: tuple[Server, Server, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    _, prefill, decode = smol_pd
    port = PORTS.take()
    argv = [
        *(sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"),
        *("--prefill", prefill.url, str(prefill.bootstrap_port), "--decode", decode.url),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(PORTS.take())),
    ]
    log = tmp_path_factory.mktemp("sglang-router") / "router.log"
    server = Server("sglang-router", argv, port, Path(log), "/readiness")
    with running(server):
        yield server


def events_of(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().split("\n\n")
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


GREEDY = {"temperature": 0, "max_new_tokens": 12}


def test_generate(sglang_router: Server, smol_unified: Server) -> None:
    body = {"text": "The capital of France is", "sampling_params": GREEDY}
    status, answer = sglang_router.post("/generate", body)
    assert status == 200
    assert answer["text"] == smol_unified.post("/generate", body)[1]["text"]
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 12}
    assert meta["completion_tokens"] == 12 == len(answer["output_ids"])


def test_generate_streams_cumulative_text(sglang_router: Server) -> None:
    body = {"text": "Once upon a time", "sampling_params": GREEDY, "stream": True}
    events = events_of(sglang_router, "/generate", body)
    texts = [event["text"] for event in events]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert events[-1]["meta_info"]["completion_tokens"] == 12
    whole = sglang_router.post("/generate", {**body, "stream": False})[1]
    assert texts[-1] == whole["text"]


def test_generate_batch_and_logprobs(sglang_router: Server) -> None:
    body = {"input_ids": [[504, 3575], [338]], "sampling_params": GREEDY}
    status, answers = sglang_router.post("/generate", body)
    assert status == 200
    assert len(answers) == 2
    body = {
        "text": "The capital of France is",
        "sampling_params": GREEDY,
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    status, answer = sglang_router.post("/generate", body)
    assert status == 200
    assert len(answer["meta_info"]["input_token_logprobs"]) == answer["meta_info"]["prompt_tokens"]
    assert len(answer["meta_info"]["output_token_logprobs"]) == 12


def test_chat_and_its_stream(sglang_router: Server, smol_unified: Server) -> None:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    status, answer = sglang_router.post("/v1/chat/completions", body)
    assert status == 200
    expected = smol_unified.post("/v1/chat/completions", body)[1]
    assert answer["choices"] == expected["choices"]
    assert "light" in answer["choices"][0]["message"]["content"]
    events = events_of(sglang_router, "/v1/chat/completions", {**body, "stream": True})
    text = "".join(
        choice["delta"].get("content") or "" for event in events for choice in event["choices"]
    )
    assert text == answer["choices"][0]["message"]["content"]


def test_several_samples_under_one_room(sglang_router: Server) -> None:
    body = {"text": "A fruit:", "sampling_params": {"max_new_tokens": 5, "n": 2, "temperature": 1}}
    status, answers = sglang_router.post("/generate", body)
    assert status == 200
    assert len(answers) == 2


def test_the_workers_are_at_rest_afterwards(smol_pd: tuple[Server, Server, Server]) -> None:
    for server in smol_pd[1:]:
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")
