"""A decode worker dies in the middle of a stream, and the client cannot tell from what it gets.

Each time the stream is compared, event by event, with that of an undisturbed run.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from baton.testing.processes import EventStream, Server, router, running, wait_until, worker

NUM_SEEN = 15
"""Events that the client has when the fault strikes; many are still to come."""

PAUSE_S = 20.0
"""A stopped process is noticed by health checks or silence, on a loaded machine; a dead one at
once."""

Cluster = tuple[Server, Server, list[Server]]


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """1p2d, on the slow reference ops, so that there is time to break something."""
    folder = tmp_path_factory.mktemp("resume")
    options = ["--max-total-tokens=4096", "--kernel-backend=torch"]
    prefill = worker("prefill", tiny_model, folder, *options)
    decodes = [worker("decode", tiny_model, folder, *options) for _ in range(2)]
    front = router(
        [prefill, *decodes], folder, "--health-check-timeout-secs=1", "--resume-stall-secs=4"
    )
    with running(prefill, *decodes, front):
        yield front, prefill, decodes


@pytest.fixture(autouse=True)
def serves_on_with_a_clean_ledger(cluster: Cluster) -> Iterator[None]:
    yield
    front, prefill, decodes = cluster
    for server in (prefill, *decodes):
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")
    wait_until(lambda: num_healthy(front) == 3, "the router uses every worker again")


def num_healthy(front: Server) -> int:
    return int(front.get("/readiness")[1]["healthy_workers"])


PROMPT = [5 + i % 200 for i in range(40)]
GREEDY = {"temperature": 0, "max_new_tokens": 150, "ignore_eos": True}
SEEDED = {
    "temperature": 0.9,
    "top_p": 0.95,
    "seed": 7,
    "max_new_tokens": 150,
    "ignore_eos": True,
    "frequency_penalty": 0.5,
    "min_new_tokens": 120,
}
CHAT = {
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "max_tokens": 150,
    "ignore_eos": True,
    "temperature": 1.0,
    "seed": 3,
    "presence_penalty": 0.7,
    "logprobs": True,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
}
TEXT = {
    "prompt": PROMPT,
    "max_tokens": 150,
    "ignore_eos": True,
    "temperature": 0.8,
    "seed": 11,
    "logprobs": 1,
    "repetition_penalty": 1.2,
}
LOGPROBS = {
    "input_ids": PROMPT,
    "rid": "r",
    "sampling_params": SEEDED,
    "return_logprob": True,
    "logprob_start_len": 30,
    "top_logprobs_num": 2,
}
REQUESTS = {
    "logprobs": ("/generate", LOGPROBS),
    "greedy": ("/generate", {"input_ids": PROMPT, "rid": "r", "sampling_params": GREEDY}),
    "seeded": ("/generate", {"input_ids": PROMPT, "rid": "r", "sampling_params": SEEDED}),
    "chat": ("/v1/chat/completions", CHAT),
    "text": ("/v1/completions", TEXT),
}


def shown(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what names or times one run."""
    event = {key: value for key, value in event.items() if key not in ("id", "created")}
    if event.get("usage"):
        del event["usage"]["prompt_tokens_details"]
    for name in ("e2e_latency", "cached_tokens"):
        event.get("meta_info", {}).pop(name, None)
    return event


def undisturbed(front: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with closing(EventStream(front, path, body)) as stream:
        return [shown(event) for event in stream.events()]


def serving(decodes: list[Server]) -> Server:
    (found,) = [server for server in decodes if server.num_blocks_in_use() > 0]
    return found


def resumes(front: Server) -> dict[str, float]:
    lines = str(front.get("/metrics")[1]).splitlines()
    counts = [line for line in lines if line.startswith("baton_router_resumes_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in counts}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_decode_engine_is_killed(cluster: Cluster, name: str) -> None:
    front, _, decodes = cluster
    path, body = REQUESTS[name]
    expected = undisturbed(front, path, body)
    before = resumes(front).get("resumed", 0)
    with closing(EventStream(front, path, body)) as stream:
        events = stream.events()
        seen = [next(events) for _ in range(NUM_SEEN)]
        decode = serving(decodes)
        os.kill(decode.engine_pid(), signal.SIGKILL)
        seen += events
    assert [shown(event) for event in seen] == expected
    assert len({(event.get("id"), event.get("created")) for event in seen}) == 1
    assert resumes(front)["resumed"] == before + 1
    assert decode.process is not None
    assert decode.process.wait(PAUSE_S) == 1
    decode.start()


def test_the_whole_decode_worker_is_killed(cluster: Cluster) -> None:
    front, _, decodes = cluster
    path, body = REQUESTS["seeded"]
    expected = undisturbed(front, path, body)
    with closing(EventStream(front, path, body)) as stream:
        events = stream.events()
        seen = [next(events) for _ in range(NUM_SEEN)]
        decode = serving(decodes)
        decode.kill()
        seen += events
    assert [shown(event) for event in seen] == expected
    decode.start()


@pytest.mark.parametrize("part", ["engine", "api"])
def test_a_part_of_the_decode_worker_is_stopped(cluster: Cluster, part: str) -> None:
    front, _, decodes = cluster
    path, body = REQUESTS["seeded"]
    expected = undisturbed(front, path, body)
    with closing(EventStream(front, path, body)) as stream:
        events = stream.events()
        seen = [next(events) for _ in range(NUM_SEEN)]
        decode = serving(decodes)
        stopped = decode.engine_pid() if part == "engine" else decode.pid
        os.kill(stopped, signal.SIGSTOP)
        stopped_s = time.monotonic()
        try:
            seen += events
            assert time.monotonic() - stopped_s < PAUSE_S
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert [shown(event) for event in seen] == expected
