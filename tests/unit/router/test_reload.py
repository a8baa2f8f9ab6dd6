"""SIGHUP: what is changed while requests run, what is not, and that an error changes nothing."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton.core.errors import ConfigError
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.policies import PolicyName
from baton.router.reload import Reloading, combined, flag_of
from baton.router.waiting import WaitingRules
from baton.router.workers import Drainer
from baton.testing.fake_worker import FakeWorker, Script
from baton.testing.processes import Server, router, running, wait_until

from .conftest import FAST_PROBES, Cluster, ClusterMaker, until

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello"}


def spec_of(worker: FakeWorker) -> WorkerSpec:
    return WorkerSpec(worker.url, WorkerRole(worker.role))


def reload(c: Cluster, config: RouterConfig) -> None:
    c.reloading.reload(lambda: config)


def config_of(c: Cluster, *workers: FakeWorker, **fields: Any) -> RouterConfig:
    fields = {"health": FAST_PROBES, "seed": 1} | fields
    return RouterConfig(workers=tuple(spec_of(worker) for worker in workers), **fields)


def test_only_live_fields_are_changed() -> None:
    old = RouterConfig()
    new = replace(
        old,
        port=7,
        policy=PolicyName.RANDOM,
        waiting=WaitingRules(max_running=3, low_values_first=True),
        max_payload_bytes=9,
    )
    config, changed, ignored = combined(old, new, {"policy", "waiting.max_running"})
    assert config == replace(old, policy=PolicyName.RANDOM, waiting=WaitingRules(max_running=3))
    assert changed == ["policy", "waiting.max_running"]
    assert [flag_of(name) for name in ignored] == [
        *("--port", "--max-payload-size", "--schedule-low-priority-values-first")
    ]
    assert combined(old, old, set()) == (old, [], [])


def test_workers_come_and_go_and_what_runs_is_finished(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 2) as c, FakeWorker("regular") as new:
            gone, kept = c.regulars
            gate = asyncio.Event()
            gone.script = kept.script = Script(gates={1: gate})
            asked = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(2)]
            await gone.until(lambda w: len(w.requests) == 1)
            (id_,) = [worker.id for worker in c.fleet.pool if worker.url == kept.url]
            reload(c, config_of(c, kept, new))
            (leaver,) = [worker for worker in c.fleet.pool if worker.url == gone.url]
            assert (leaver.drainers, leaver.num_in_flight) == ({Drainer.CONFIGURATION}, 1)
            gate.set()
            assert [(await each)[0] for each in asked] == [200, 200]
            await c.fleet.until(lambda pool: {w.url for w in pool} == {kept.url, new.url})
            await c.until_healthy(2)
            assert c.fleet.pool.get(id_) is not None
            for _ in range(4):
                assert (await c.post("/generate", GENERATE))[0] == 200
            assert len(gone.requests) == 1

    run(scenario)


def test_a_worker_named_again_while_it_drains_stays(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1) as c:
            (worker,) = c.fleet.pool
            gate = asyncio.Event()
            c.regulars[0].script = Script(gates={1: gate})
            asked = asyncio.create_task(c.post("/generate", GENERATE))
            await c.regulars[0].until(lambda w: len(w.requests) == 1)
            reload(c, config_of(c))
            assert worker.is_draining
            reload(c, config_of(c, *c.regulars))
            gate.set()
            assert (await asked)[0] == 200
            assert (await c.post("/generate", GENERATE))[0] == 200
            assert list(c.fleet.pool) == [worker]

    run(scenario)


def test_policies_and_limits_change_for_the_next_request(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 2, policy=PolicyName.ROUND_ROBIN) as c:
            limits = WaitingRules(max_running=1, max_waiting=0)
            hashing = PolicyName.CONSISTENT_HASH
            reload(c, config_of(c, *c.regulars, policy=hashing, waiting=limits))
            for _ in range(4):
                assert (await c.post("/generate", {**GENERATE, "user": "me"}))[0] == 200
            assert sorted(len(worker.requests) for worker in c.regulars) == [0, 4]
            gate = asyncio.Event()
            for worker in c.regulars:
                worker.script = Script(gates={1: gate})
            asked = asyncio.create_task(c.post("/generate", GENERATE))
            await until(lambda: any(worker.num_in_flight for worker in c.fleet.pool))
            assert (await c.post("/generate", GENERATE))[0] == 429
            reload(c, config_of(c, *c.regulars))
            gate.set()
            assert [(await c.post("/generate", GENERATE))[0], (await asked)[0]] == [200, 200]

    run(scenario)


def test_those_who_wait_are_let_in_when_the_limit_goes(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1, waiting=WaitingRules(max_running=1)) as c:
            gate = asyncio.Event()
            c.regulars[0].script = Script(gates={1: gate})
            asked = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(3)]
            await c.regulars[0].until(lambda w: len(w.requests) == 1)
            reload(c, config_of(c, *c.regulars))
            await c.regulars[0].until(lambda w: len(w.requests) == 3)
            gate.set()
            assert [(await each)[0] for each in asked] == [200] * 3

    run(scenario)


def test_an_error_in_any_part_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    changes: list[RouterConfig] = []
    reloading = Reloading(RouterConfig())
    reloading.add(("policy",), lambda config: lambda: changes.append(config))
    keys_are_right = False

    def prepare_keys(_config: RouterConfig) -> Callable[[], None]:
        if not keys_are_right:
            raise ConfigError("--api-keys keys.yaml: line 3 has no tenant; name one")
        return lambda: None

    reloading.add((), prepare_keys)
    wanted = RouterConfig(policy=PolicyName.RANDOM, port=1)
    with caplog.at_level(logging.INFO):
        reloading.reload(lambda: wanted)
        assert changes == []
        assert "line 3 has no tenant" in str(vars(caplog.records[-1]))
        keys_are_right = True
        reloading.reload(lambda: wanted)
    assert changes == [RouterConfig(policy=PolicyName.RANDOM)]
    ignored = [record for record in caplog.records if "ignored" in record.getMessage()]
    assert ["--port" in str(vars(record)) for record in ignored] == [True]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "router.yaml").write_text("workers: [{url: 'http://127.0.0.1:9'}]\n")
    server = router([], tmp_path, f"--config={tmp_path / 'router.yaml'}")
    server.argv.remove("--worker-urls")
    server.probe = "/health"
    with running(server):
        yield server


def test_sighup_reads_the_file_anew(front: Server, tmp_path: Path) -> None:
    def urls() -> set[str]:
        return {worker["url"] for worker in front.get("/workers")[1]["workers"]}

    def hup(text: str) -> None:
        (tmp_path / "router.yaml").write_text(text)
        assert front.process is not None
        front.process.send_signal(signal.SIGHUP)

    assert urls() == {"http://127.0.0.1:9"}
    hup("workers: [{url: 'http://127.0.0.1:8'}]\nmax-payload-size: 9\n")
    wait_until(lambda: urls() == {"http://127.0.0.1:8"}, "the other worker is there", 5.0)
    wait_until(lambda: "--max-payload-size" in front.log(), "what is ignored is named", 5.0)
    hup("workers: [{url: 'http://127.0.0.1:7', rol: decode}]\n")
    wait_until(lambda: "did you mean 'role'" in front.log(), "the error is named", 5.0)
    assert urls() == {"http://127.0.0.1:8"}
    assert front.stop() == 0
