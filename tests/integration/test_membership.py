"""Workers that announce themselves to two routers, leave in the middle of a stream, and die, and
a router that is restarted. Whatever happens, no request fails."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from baton.testing.processes import EventStream, Server, router, running, wait_until, worker

SECRET = {"BATON_CLUSTER_SECRET": "a secret of the members' tests"}
NUM_TOKENS = 300
BODY = {
    "input_ids": [5 + i % 200 for i in range(40)],
    "sampling_params": {"temperature": 0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True},
}
SHORT = {"input_ids": [7, 8, 9], "sampling_params": {"temperature": 0, "max_new_tokens": 2}}

Cluster = tuple[list[Server], Server, list[Server]]


@pytest.fixture
def cluster(tiny_model: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Two routers that were told of no worker; 1p2d on the slow reference ops, so that there is
    time to leave."""
    fronts = [router([], tmp_path, "--pd-disaggregation") for _ in range(2)]
    options = ["--max-total-tokens=4096", "--kernel-backend=torch"]
    options += [f"--router-url={front.url}" for front in fronts]
    prefill = worker("prefill", tiny_model, tmp_path, *options)
    decodes = [worker("decode", tiny_model, tmp_path, *options) for _ in range(2)]
    for server in (prefill, *decodes, *fronts):
        server.environ = dict(SECRET)
    with running(prefill, *decodes, *fronts):
        for front in fronts:
            wait_until(lambda front=front: len(usable(front)) == 3, "all workers are known")
        yield fronts, prefill, decodes


def workers_of(front: Server) -> dict[str, dict[str, Any]]:
    return {each["url"]: each for each in front.get("/workers")[1]["workers"]}


def usable(front: Server) -> set[str]:
    return {
        url
        for url, each in workers_of(front).items()
        if each["is_healthy"] and not each["is_draining"]
    }


def streaming(decodes: list[Server]) -> Server:
    """Whose the long stream is: short requests come and go beside it."""
    wait_until(lambda: any(running_tokens(server) > 40 for server in decodes), "it has begun")
    return max(decodes, key=running_tokens)


def running_tokens(server: Server) -> int:
    return int(server.get("/v1/loads")[1]["loads"][0]["num_used_tokens"])


def serves(front: Server) -> bool:
    return bool(front.post("/generate", SHORT)[0] == 200)


@contextmanager
def under_load(fronts: list[Server]) -> Iterator[list[int]]:
    """Short requests through every router, one after another; their statuses."""
    statuses: list[int] = []
    is_over = threading.Event()

    def ask(front: Server) -> None:
        while not is_over.is_set():
            statuses.append(front.post("/generate", SHORT)[0])

    with ThreadPoolExecutor(len(fronts)) as threads:
        asking = [threads.submit(ask, front) for front in fronts]
        try:
            yield statuses
        finally:
            is_over.set()
    for each in asking:
        each.result()


def test_workers_come_leave_and_die_and_no_request_fails(cluster: Cluster) -> None:
    fronts, prefill, decodes = cluster
    for front in fronts:
        assert all(each["is_announced"] for each in workers_of(front).values())
        assert workers_of(front)[prefill.url]["bootstrap_port"] == prefill.bootstrap_port
    with under_load(fronts) as statuses:
        leaver = leaves_in_the_middle_of_a_stream(fronts, decodes)
        comes_back(fronts, leaver)
    assert set(statuses) == {200}
    assert len(statuses) > 20
    is_found_by_a_restarted_router(fronts[0], fronts[1])
    dies(fronts, prefill, leaver)


def leaves_in_the_middle_of_a_stream(fronts: list[Server], decodes: list[Server]) -> Server:
    """SIGTERM: both routers hear it, the stream ends whole where it began, others are served."""
    with closing(EventStream(fronts[0], "/generate", BODY)) as stream:
        events = stream.events()
        next(events)
        leaver = streaming(decodes)
        assert leaver.process is not None
        leaver.process.send_signal(signal.SIGTERM)
        for front in fronts:
            wait_until(lambda front=front: leaver.url not in usable(front), "it drains", 2.0)
            assert serves(front)
        assert leaver.get("/health")[1]["error"]["code"] == "draining"
        assert workers_of(fronts[1])[leaver.url]["drained_by"] != []
        (*_, last) = events
    assert len(last["output_ids"]) == NUM_TOKENS
    assert last["meta_info"]["finish_reason"]["type"] == "length"
    assert fronts[0].metric("baton_router_resumes_total") == 0
    assert leaver.process.wait(10) == 0
    for front in fronts:
        wait_until(lambda front=front: leaver.url not in workers_of(front), "it is gone", 2.0)
        assert serves(front)
    return leaver


def comes_back(fronts: list[Server], leaver: Server) -> None:
    leaver.start()
    for front in fronts:
        wait_until(lambda front=front: leaver.url in usable(front), "it is used again", 5.0)


def is_found_by_a_restarted_router(restarted: Server, other: Server) -> None:
    restarted.kill()
    assert serves(other)
    restarted.start()
    wait_until(lambda: len(usable(restarted)) == 3, "workers announce themselves anew", 8.0)
    assert serves(restarted)


def dies(fronts: list[Server], prefill: Server, victim: Server) -> None:
    """Noticed within seconds; the others serve on."""
    victim.kill()
    for front in fronts:
        wait_until(lambda front=front: victim.url not in usable(front), "its death is seen", 3.0)
        assert all(serves(front) for _ in range(4))
    victim.start()
    for front in fronts:
        wait_until(lambda front=front: len(usable(front)) == 3, "the new process is used", 5.0)


def test_a_worker_without_the_secret_is_told_how_to_mend_it(tmp_path: Path) -> None:
    server = worker("null", None, tmp_path, "--router-url=http://127.0.0.1:1")
    done = subprocess.run(server.argv, capture_output=True, timeout=30, check=False)
    assert done.returncode == 2
    assert b"BATON_CLUSTER_SECRET" in done.stderr
