"""Prefill on one host, decode on another: KV over TCP or a transfer library, the same tokens, and a
cable that is cut.

The hosts are network namespaces. The test itself stands on the first one, where the router and
the prefill worker are, and with them what two hosts are compared with: a unified worker, and
decode workers that share the prefill worker's host.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baton.testing.network_hosts import NetworkHost, two_hosts, why_no_hosts
from baton.testing.processes import EventStream, Server, router, running, wait_until, worker
from baton.transfer.registry import why_missing

NUM_NEW = 16
LENGTHS = (1, 2, 15, 16, 17, 40, 100, 257, 500, 1000, 1500, 2000)
LEAST_KV_BYTES = 200 * sum(LENGTHS)
"""The tiny model has 256 bytes a token, and hardly a prefix is shared."""

NOTICED_S = 8.0
"""Three heartbeats of 1 s; the rest is for a loaded machine."""


@dataclass(frozen=True)
class Cluster:
    """`apart`, `wildcard`, `shared` and `tcp` are routers to one prefill and one decode worker."""

    here: NetworkHost
    there: NetworkHost
    prefill: Server
    decode_apart: Server
    unified: Server
    apart: Server
    wildcard: Server
    shared: Server
    tcp: Server


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("two-hosts")
    with two_hosts() as (here, there), here.entered():

        def on(host: NetworkHost, role: str, *options: str, bind: str = "") -> Server:
            return worker_on(host, role, tiny_model, folder, *options, bind=bind)

        # Small chunks through the slow reference ops, so that there is time to cut the cable while
        # a prompt is read.
        prefill = on(here, "prefill", "--chunked-prefill-size=8")
        unified = on(here, "null")
        decodes = [
            on(there, "decode"),
            on(there, "decode", bind="0.0.0.0"),
            on(here, "decode"),
            on(here, "decode", "--disaggregation-transfer-backend=tcp"),
        ]
        fronts = [router([prefill, decode], folder, "--worker-wait-secs=0") for decode in decodes]
        for front in fronts:
            front.prefix = here.prefix
        with running(prefill, unified, *decodes, *fronts):
            yield Cluster(here, there, prefill, decodes[0], unified, *fronts)


def worker_on(
    host: NetworkHost, role: str, model: Path, folder: Path, *options: str, bind: str = ""
) -> Server:
    options = (*options, "--max-total-tokens=16384", "--kernel-backend=torch")
    server = worker(role, model, folder, *options, host=bind or host.address)
    server.prefix, server.host = host.prefix, host.address
    return server


def prompt_of(length: int, start: int = 0) -> list[int]:
    return [5 + (start + 7 * i + i * i // 11) % 200 for i in range(length)]


def ids_from(server: Server, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations, several at a time."""
    sampling = {"temperature": 0, "max_new_tokens": NUM_NEW, "ignore_eos": True}

    def ask(prompt: list[int]) -> list[int]:
        body = {"input_ids": prompt, "sampling_params": sampling}
        status, answer = server.post("/generate", body)
        assert status == 200, answer
        ids: list[int] = answer["output_ids"]
        return ids

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, prompts))


def transferred_bytes(server: Server) -> float:
    lines = str(server.get("/metrics")[1]).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("baton:transfer_bytes"))


def traffic(cluster: Cluster, front: Server, interface: str, prompts: list[list[int]]) -> Any:
    """What came out, bytes of KV handed over for it, and bytes sent through the interface."""
    cluster.prefill.post("/flush_cache", {})
    kv, sent = transferred_bytes(cluster.prefill), cluster.here.sent_bytes(interface)
    ids = ids_from(front, prompts)
    wait_until(lambda: cluster.prefill.num_blocks_in_use() == 0, "prefill at rest")
    kv, sent = transferred_bytes(cluster.prefill) - kv, cluster.here.sent_bytes(interface) - sent
    return ids, kv, sent


def test_two_hosts_make_the_same_tokens_as_one(cluster: Cluster) -> None:
    prompts = [prompt_of(length, start=length) for length in LENGTHS]
    expected = ids_from(cluster.unified, prompts)
    assert len({tuple(ids) for ids in expected}) > len(prompts) // 2
    for front, interface, is_over_tcp in (
        (cluster.apart, cluster.here.interface, True),
        (cluster.wildcard, cluster.here.interface, True),
        (cluster.tcp, "lo", True),
        (cluster.shared, "lo", False),
    ):
        ids, kv, sent = traffic(cluster, front, interface, prompts)
        assert ids == expected
        assert kv > LEAST_KV_BYTES
        assert (sent > kv) == is_over_tcp, f"{sent} bytes sent for {kv:g} bytes of KV"


def num_in_use_there(cluster: Cluster) -> int:
    """Asked from the far host itself, so that it needs no cable."""
    with cluster.there.entered():
        return cluster.decode_apart.num_blocks_in_use()


def test_a_cut_cable_ends_the_request_and_nothing_else(cluster: Cluster) -> None:
    before = transferred_bytes(cluster.prefill)
    body = {
        "input_ids": prompt_of(3000, start=1),
        "sampling_params": {"temperature": 0, "max_new_tokens": 500, "ignore_eos": True},
    }
    request = EventStream(cluster.apart, "/generate", body)
    try:
        wait_until(lambda: transferred_bytes(cluster.prefill) > before, "blocks are being written")
        cluster.here.cut()
        cut_s = time.monotonic()
        if request.status == 200:
            (event,) = request.events()
            assert event["error"]["message"]
        else:
            assert request.status in (502, 503, 504)
        assert time.monotonic() - cut_s < NOTICED_S
        wait_until(lambda: cluster.prefill.num_blocks_in_use() == 0, "prefill gives up", NOTICED_S)
        wait_until(lambda: num_in_use_there(cluster) == 0, "decode gives up", NOTICED_S)
        short = [prompt_of(40)]
        expected = ids_from(cluster.unified, short)
        assert ids_from(cluster.shared, short) == expected
    finally:
        cluster.here.mend()
        request.close()
    wait_until(lambda: cluster.apart.get("/readiness")[0] == 200, "the router is ready again")
    assert ids_from(cluster.apart, short) == expected
    for server in (cluster.prefill, cluster.decode_apart):
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")


@pytest.mark.parametrize("backend", ["mooncake", "nixl"])
def test_a_transfer_library_carries_the_kv(
    cluster: Cluster, backend: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The same tokens as the unified worker's, by way of the cable, and no block left in use."""
    if reason := why_missing(backend):
        pytest.skip(reason)
    option = f"--disaggregation-transfer-backend={backend}"
    prefill = worker_on(cluster.here, "prefill", tiny_model, tmp_path, option)
    decode = worker_on(cluster.there, "decode", tiny_model, tmp_path, option)
    for server in (prefill, decode):
        # Both are on one kernel, where UCX would otherwise copy from process to process.
        server.environ["UCX_TLS"] = "tcp"
    front = router([prefill, decode], tmp_path)
    front.prefix = cluster.here.prefix
    prompts = [prompt_of(length, start=length) for length in LENGTHS]
    expected = ids_from(cluster.unified, prompts)
    with cluster.here.entered(), running(prefill, decode, front):
        before = cluster.here.sent_bytes(cluster.here.interface)
        assert ids_from(front, prompts) == expected
        kv = transferred_bytes(prefill)
        assert kv > LEAST_KV_BYTES
        assert cluster.here.sent_bytes(cluster.here.interface) - before > kv
        for server in (prefill, decode):
            wait_until(lambda server=server: server.num_blocks_in_use() == 0, "at rest")
            assert server.stop() == 0
