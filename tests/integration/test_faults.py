"""What can go wrong in a request's life, done to real processes.

Each time: the client gets one answer or one terminal event that says what happened, the workers'
ledgers return to zero, and the next request is served.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from baton.testing.processes import EventStream, Server, router, running, wait_until, worker

NOTICED_S = 8.0
"""A dead worker is noticed at once where a connection breaks; the rest is for a loaded machine."""

LONG_PROMPT = {"input_ids": [5 + i % 200 for i in range(3000)]}
LONG_ANSWER = {"temperature": 0, "max_new_tokens": 1000, "ignore_eos": True}

Cluster = tuple[Server, Server, Server]


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Small chunks through the slow reference ops, so that a prompt takes seconds and there is time
    to break something."""
    folder = tmp_path_factory.mktemp("faults")
    options = [
        "--chunked-prefill-size=4",
        "--max-total-tokens=8192",
        "--kernel-backend=torch",
    ]
    prefill = worker("prefill", tiny_model, folder, *options)
    decode = worker("decode", tiny_model, folder, *options)
    front = router([prefill, decode], folder, "--worker-wait-secs=0")
    with running(prefill, decode, front):
        yield front, prefill, decode


_streams: list[EventStream] = []


@pytest.fixture(autouse=True)
def serves_on_with_a_clean_ledger(cluster: Cluster) -> Iterator[None]:
    """After every fault: nothing in use, and the next request is answered."""
    yield
    while _streams:
        _streams.pop().close()
    front, prefill, decode = cluster
    for server in (prefill, decode):
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")
    wait_until(lambda: front.get("/readiness")[0] == 200, "the router is ready again")
    status, answer = front.post(
        "/generate", {"text": "hello", "sampling_params": {"max_new_tokens": 4}}
    )
    assert status == 200, answer


def stream(front: Server, prompt: dict[str, Any], sampling: dict[str, Any]) -> EventStream:
    opened = EventStream(front, "/generate", {**prompt, "sampling_params": sampling})
    _streams.append(opened)
    return opened


def ending_of(events: Iterator[Any]) -> dict[str, Any]:
    """The last event; every one before it is an ordinary one."""
    *before, last = list(events)
    assert all("error" not in event for event in before)
    return last  # type: ignore[no-any-return]


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/generate", {"input_ids": [5] * 5000}, 400, "4096"),
        (
            "/generate",
            {"input_ids": [5] * 4000, "sampling_params": {"max_new_tokens": 500}},
            400,
            "4096",
        ),
        ("/generate", {"input_ids": []}, 400, "input_ids"),
        ("/generate", {"input_ids": [999999]}, 400, "input_ids"),
        ("/generate", {"text": "x", "sampling_params": {"temperature": -1}}, 400, "temperature"),
        ("/generate", {"text": "x", "sampling_params": {"top_p": 7}}, 400, "top_p"),
        (
            "/generate",
            {"text": "x", "sampling_params": {"max_new_tokens": "many"}},
            400,
            "max_new_tokens",
        ),
        ("/v1/chat/completions", {**CHAT, "model": "gpt-17"}, 404, "gpt-17"),
        ("/v1/chat/completions", {**CHAT, "messages": "hi"}, 400, "messages"),
        ("/v1/chat/completions", {**CHAT, "n": 0}, 400, "n"),
        ("/v1/completions", {"prompt": 5}, 400, "prompt"),
        ("/generate", b'{"text": "x"', 400, "JSON"),
        ("/generate", b'{"text": "\xff\xfe"}', 400, "UTF-8"),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "user", "content": "\xc3("}]}',
            400,
            "UTF-8",
        ),
        ("/generate", b'{"text": "\\ud800"}', 400, ""),
        ("/generate", b"", 400, ""),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_request_is_answered_once(
    cluster: Cluster, path: str, body: Any, status: int, named: str, streaming: bool
) -> None:
    if streaming and isinstance(body, dict):
        body = {**body, "stream": True}
    got, answer = cluster[0].post(path, body)
    assert got == status, answer
    assert set(answer) == {"error"}
    assert {"message", "type", "param", "code"} <= set(answer["error"])
    assert named in f"{answer['error']['message']} {answer['error']['param']}"


def test_a_client_that_leaves_while_it_is_answered(cluster: Cluster) -> None:
    front, _, decode = cluster
    left = stream(front, {"text": "hello"}, LONG_ANSWER)
    next(left.events())
    left.close()
    wait_until(lambda: decode.num_blocks_in_use() == 0, "decode stops at once", NOTICED_S)


def test_a_client_that_leaves_while_its_prompt_is_read(cluster: Cluster) -> None:
    front, prefill, decode = cluster
    left = stream(front, LONG_PROMPT, LONG_ANSWER)
    wait_until(lambda: prefill.num_blocks_in_use() > 0, "prefill has begun")
    left.close()
    for server in (prefill, decode):
        wait_until(lambda s=server: s.num_blocks_in_use() == 0, f"{server.name} stops", NOTICED_S)


def transferred_bytes(server: Server) -> float:
    lines = str(server.get("/metrics")[1]).splitlines()
    values = [float(line.split()[-1]) for line in lines if line.startswith("baton:transfer_bytes")]
    return sum(values)


def test_the_prefill_worker_is_killed_while_it_reads_and_writes(cluster: Cluster) -> None:
    front, prefill, _ = cluster
    before = transferred_bytes(prefill)
    request = stream(front, LONG_PROMPT, LONG_ANSWER)
    wait_until(lambda: transferred_bytes(prefill) > before, "blocks are being written")
    prefill.kill()
    killed_s = time.monotonic()
    if request.status == 200:
        error = ending_of(request.events())["error"]
        assert "prefill" in error["message"]
    else:
        assert request.status in (502, 503)
    assert time.monotonic() - killed_s < NOTICED_S
    prefill.start()


def test_the_prefill_engine_alone_is_killed(cluster: Cluster) -> None:
    front, prefill, _ = cluster
    request = stream(front, LONG_PROMPT, LONG_ANSWER)
    wait_until(lambda: prefill.num_blocks_in_use() > 0, "prefill has begun")
    os.kill(prefill.engine_pid(), signal.SIGKILL)
    assert request.status >= 500 or "error" in ending_of(request.events())
    assert prefill.process is not None
    assert prefill.process.wait(NOTICED_S) == 1
    prefill.start()


def test_the_decode_worker_is_killed_while_it_answers(cluster: Cluster) -> None:
    front, _, decode = cluster
    request = stream(front, {"text": "hello"}, LONG_ANSWER)
    events = request.events()
    next(events)
    decode.kill()
    killed_s = time.monotonic()
    error = ending_of(events)["error"]
    assert error["message"]
    assert time.monotonic() - killed_s < NOTICED_S
    decode.start()


def test_the_decode_worker_is_killed_while_it_waits_for_kv(cluster: Cluster) -> None:
    front, prefill, decode = cluster
    request = stream(front, LONG_PROMPT, LONG_ANSWER)
    wait_until(lambda: prefill.num_blocks_in_use() > 0, "prefill has begun")
    decode.kill()
    killed_s = time.monotonic()
    assert request.status >= 500 or "error" in ending_of(request.events())
    assert time.monotonic() - killed_s < NOTICED_S
    wait_until(lambda: prefill.num_blocks_in_use() == 0, "prefill gives up", NOTICED_S)
    decode.start()


def test_a_prefill_engine_that_hangs_is_given_up_and_used_again(cluster: Cluster) -> None:
    front, prefill, decode = cluster
    request = stream(front, LONG_PROMPT, LONG_ANSWER)
    wait_until(lambda: decode.num_blocks_in_use() > 0, "decode has reserved")
    engine = prefill.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        stopped_s = time.monotonic()
        assert request.status >= 500 or "error" in ending_of(request.events())
        assert time.monotonic() - stopped_s < 2 * NOTICED_S
    finally:
        os.kill(engine, signal.SIGCONT)


def test_a_pool_that_is_too_small_for_all_serves_all_in_turn(
    tiny_model: Path, tmp_path: Path
) -> None:
    options = ["--max-total-tokens=640", "--max-running-requests=16"]
    prefill = worker("prefill", tiny_model, tmp_path, *options)
    decode = worker("decode", tiny_model, tmp_path, *options)
    front = router([prefill, decode], tmp_path, "--worker-wait-secs=0")
    with running(prefill, decode, front):

        def ask(index: int) -> tuple[int, Any]:
            prompt = [5 + (index * 7 + i) % 200 for i in range(100)]
            sampling = {"temperature": 0, "max_new_tokens": 80, "ignore_eos": True}
            return front.post("/generate", {"input_ids": prompt, "sampling_params": sampling})

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        assert [status for status, _ in answers] == [200] * 12
        assert all(answer["meta_info"]["completion_tokens"] == 80 for _, answer in answers)
        status, answer = front.post(
            "/generate", {"input_ids": [5] * 600, "sampling_params": {"max_new_tokens": 100}}
        )
        assert status == 400
        assert "640" in answer["error"]["message"]
        for server in (prefill, decode):
            wait_until(lambda s=server: s.num_blocks_in_use() == 0, f"{server.name} at rest")


def test_a_worker_without_its_peer_says_what_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    decode = worker("decode", tiny_model, tmp_path)
    with running(decode):
        status, answer = decode.post("/generate", {"text": "x"})
        assert (status, answer["error"]["param"]) == (400, "bootstrap_room")
        body = {
            "text": "x",
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": 9,
            "bootstrap_room": 1,
        }
        status, answer = decode.post("/generate", body)
        assert status == 503
        assert "127.0.0.1:9" in answer["error"]["message"]
        assert decode.get("/health_generate")[0] == 200


def test_an_unsupported_model_is_refused_by_name_at_start(tiny_model: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    server = worker("null", folder, tmp_path)
    server.launch()
    assert server.process is not None
    assert server.process.wait(60) == 1
    assert "MambaForCausalLM" in server.log()
    assert "Traceback" not in server.log()


def test_ending_a_worker_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    shared_before = set(os.listdir("/dev/shm"))
    server = worker("null", tiny_model, tmp_path)
    with running(server):
        engine = server.engine_pid()
        assert server.stop() == 0
        assert not Path(f"/proc/{engine}").exists()
        assert set(os.listdir("/dev/shm")) <= shared_before
        assert "Traceback" not in server.log()
