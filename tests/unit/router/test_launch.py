"""The command line, and the process around it: starting early, noise on the port, going away."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from baton.core.errors import ConfigError
from baton.launch.router import config_from, make_parser
from baton.router.breaker import BreakerRules
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.policies import CacheRules, PolicyName
from baton.router.server import StopRequests, run_router
from baton.router.split import SplitRules
from baton.router.waiting import WaitingRules
from baton.testing.fake_worker import FakeWorker, Script

from .conftest import FAST_PROBES

Run = Callable[[Callable[[], Any]], None]


def config_of(*argv: str) -> RouterConfig:
    return config_from(make_parser().parse_args(argv))


def test_flags_of_a_pd_router() -> None:
    config = config_of(
        "--pd-disaggregation",
        *("--prefill", "http://a:1", "8999", "--prefill", "http://b:1/", "none"),
        *("--prefill", "http://c:1", "--decode", "http://d:1", "--decode", "http://e:1"),
        *("--routing-policy", "random", "--decode-policy", "round_robin"),
    )
    assert config.workers == (
        WorkerSpec("http://a:1", WorkerRole.PREFILL, 8999),
        WorkerSpec("http://b:1", WorkerRole.PREFILL),
        WorkerSpec("http://c:1", WorkerRole.PREFILL),
        WorkerSpec("http://d:1", WorkerRole.DECODE),
        WorkerSpec("http://e:1", WorkerRole.DECODE),
    )
    assert config.policy_for(WorkerRole.PREFILL) is PolicyName.RANDOM
    assert config.policy_for(WorkerRole.DECODE) is PolicyName.ROUND_ROBIN


def test_defaults_and_other_flags() -> None:
    assert config_of() == RouterConfig()
    config = config_of(
        *("--worker-urls", "http://a:1", "http://b:1", "--policy", "round_robin"),
        *("--host", "::", "--port", "0", "--max-payload-size", "9", "--api-key", "k"),
        *("--request-timeout-secs", "2.5", "--health-check-interval-secs", "3"),
    )
    assert [w.role for w in config.workers] == [WorkerRole.REGULAR] * 2
    assert (config.host, config.port, config.max_payload_bytes) == ("::", 0, 9)
    assert (config.request_timeout_s, config.health.interval_s, config.api_key) == (2.5, 3, "k")


def test_rules_of_placement_breaker_and_queue() -> None:
    config = config_of(
        *("--cache-threshold", "0.5", "--balance-abs-threshold", "8"),
        *("--balance-rel-threshold", "2", "--max-prefix-hashes", "99"),
        *("--always-split", "--split-margin", "0.1", "--max-stall-ms", "20"),
        *("--max-whole-tokens", "99"),
        *("--cb-failure-threshold", "3", "--cb-success-threshold", "2"),
        *("--cb-window-duration-secs", "10", "--cb-cool-down-secs", "2"),
        *("--cb-timeout-duration-secs", "30", "--disable-circuit-breaker"),
        *("--max-concurrent-requests", "4", "--queue-size", "7", "--queue-timeout-secs", "5"),
        *("--schedule-low-priority-values-first", "--tenant-header", "x-tenant"),
    )
    assert config.cache == CacheRules(0.5, 8, 2.0, 99)
    assert config.split == SplitRules(False, 0.1, 0.02, 99)
    assert config.breaker == BreakerRules(False, 3, 2, 10.0, 2.0, 30.0)
    assert config.waiting == WaitingRules(4, 7, 5.0, low_values_first=True)
    assert config.tenant_header == "x-tenant"


def test_resuming() -> None:
    config = config_of("--max-resumes", "5", "--resume-stall-secs", "2.5")
    assert (config.max_resumes, config.resume_stall_s) == (5, 2.5)
    assert config_of("--max-resumes", "5", "--disable-resume").max_resumes == 0


def test_event_ids_need_a_secret_and_routers_with_the_same_agree(tmp_path: Path) -> None:
    def key_of(*argv: str, **environ: str) -> bytes | None:
        return config_from(make_parser().parse_args(argv), environ=environ).event_id_key

    secret = "sixteen letters and more"
    file = tmp_path / "secret"
    file.write_text(secret + "\n")
    assert key_of(BATON_CLUSTER_SECRET=secret) is None
    key = key_of("--event-ids", BATON_CLUSTER_SECRET=secret)
    assert key is not None
    assert secret.encode() not in key
    assert key_of("--event-ids", "--cluster-secret-file", str(file)) == key
    assert key_of("--event-ids", BATON_CLUSTER_SECRET=secret + "!") != key
    assert "event_id_key" not in repr(RouterConfig(event_id_key=key))
    with pytest.raises(ConfigError, match="BATON_CLUSTER_SECRET or --cluster-secret-file"):
        key_of("--event-ids")
    with pytest.raises(ConfigError, match="leave out --disable-resume"):
        key_of("--event-ids", "--disable-resume", BATON_CLUSTER_SECRET=secret)


def test_unified_workers_may_join_a_pool_of_pairs() -> None:
    config = config_of("--pd-disaggregation", "--worker-urls", "http://a:1")
    assert [w.role for w in config.workers] == [WorkerRole.REGULAR]


def test_the_key_comes_from_the_environment_unless_a_flag_gives_one() -> None:
    environ = {"BATON_API_KEY": "sesame"}
    assert config_from(make_parser().parse_args([]), environ=environ).api_key == "sesame"
    args = make_parser().parse_args(["--api-key", "k"])
    assert config_from(args, environ=environ).api_key == "k"
    assert config_from(make_parser().parse_args([]), environ={}).api_key is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prefill", "http://a:1"], "--pd-disaggregation"),
        (["--worker-urls", "a:1"], "try http://a:1"),
        (["--worker-urls", "http://a:99999"], "is not a URL"),
        (["--worker-urls", "http://a:1/v1"], "leave the rest out"),
        (["--worker-urls", "http://a:1", "http://a:1"], "given twice"),
        (["--pd-disaggregation", "--prefill", "http://a:1", "x"], "bootstrap port 'x'"),
        (["--pd-disaggregation", "--prefill", "http://a:1", "1", "2"], "repeat --prefill"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--health-check-interval-secs", "0"], "not above 0"),
        (["--request-timeout-secs", "nan"], "not above 0"),
        (["--health-failure-threshold", "0"], "at least 1"),
        (["--cache-threshold", "1.5"], "from 0 to 1"),
        (["--balance-abs-threshold", "-1"], "at least 0"),
        (["--balance-rel-threshold", "0.9"], "is below 1"),
        (["--max-prefix-hashes", "0"], "at least 1"),
        (["--split-margin", "-0.1"], "from 0 to 1"),
        (["--max-stall-ms", "-1"], "is negative"),
        (["--max-whole-tokens", "-1"], "must be at least 0"),
        (["--cb-failure-threshold", "0"], "at least 1"),
        (["--cb-success-threshold", "0"], "at least 1"),
        (["--cb-window-duration-secs", "0"], "not above 0"),
        (["--cb-timeout-duration-secs", "0.5"], "is below --cb-cool-down-secs 1"),
        (["--max-concurrent-requests", "0"], "at least 1"),
        (["--queue-size", "-1"], "at least 0"),
        (["--queue-timeout-secs", "0"], "not above 0"),
        (["--max-resumes", "-1"], "--max-resumes -1"),
        (["--resume-stall-secs", "0"], "--resume-stall-secs 0"),
    ],
)
def test_wrong_flags_name_the_flag_and_the_mend(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(*argv)


@pytest.mark.parametrize("flag", ["--dp-aware", "--policy=bucket", "--mini-lb"])
def test_what_is_not_implemented_is_not_accepted(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        config_of(flag)
    assert flag.partition("=")[0] in capsys.readouterr().err


@asynccontextmanager
async def running(
    config: RouterConfig,
) -> AsyncIterator[tuple[int, StopRequests, asyncio.Task[None]]]:
    """A router in this loop; its port, how to stop it, and its task."""
    stop, port = StopRequests(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_router(config, ready=port.set_result, stop=stop))
    try:
        await asyncio.wait({task, port}, return_when=asyncio.FIRST_COMPLETED)
        yield await port, stop, task
    finally:
        stop.ask()
        stop.ask()
        await task


def for_worker(worker: FakeWorker, **options: Any) -> RouterConfig:
    spec = WorkerSpec(worker.url, WorkerRole.REGULAR)
    return RouterConfig(port=0, workers=(spec,), health=FAST_PROBES, **options)


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        async with session.get(url + "/readiness") as response:
            if response.status == 200:
                return


def test_running_streams_are_finished_before_it_goes(run: Run) -> None:
    async def scenario() -> None:
        may_go_on = asyncio.Event()
        async with (
            FakeWorker("regular", script=Script(gates={2: may_go_on})) as worker,
            running(for_worker(worker)) as (port, stop, task),
            aiohttp.ClientSession() as session,
        ):
            url = f"http://127.0.0.1:{port}"
            await until_ready(session, url)
            async with session.post(url + "/generate", json={"stream": True}) as response:
                await response.content.readuntil(b"\n\n")
                stop.ask()
                with pytest.raises(aiohttp.ClientConnectorError):
                    await until_refused(url)
                may_go_on.set()
                rest = await response.content.read()
                assert rest.count(b"data: {") == 7
                assert rest.endswith(b"data: [DONE]\n\n")
            await task

    run(scenario)


async def until_refused(url: str) -> None:
    while True:
        async with aiohttp.ClientSession() as session, session.get(url + "/health"):
            continue


def test_what_outlasts_the_grace_period_is_told_so(run: Run) -> None:
    async def scenario() -> None:
        async with (
            FakeWorker("regular", script=Script(gates={2: asyncio.Event()})) as worker,
            running(for_worker(worker, shutdown_grace_s=0.0)) as (port, stop, task),
            aiohttp.ClientSession() as session,
        ):
            url = f"http://127.0.0.1:{port}"
            await until_ready(session, url)
            async with session.post(url + "/generate", json={"stream": True}) as response:
                await response.content.readuntil(b"\n\n")
                stop.ask()
                rest = await response.content.read()
            assert b'"router_stopping"' in rest
            assert rest.endswith(b"data: [DONE]\n\n")
            await worker.until(lambda w: w.num_hung_up == 1)
            await task

    run(scenario)


@pytest.mark.parametrize(
    "noise",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 64,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_noise_is_closed_quietly(run: Run, caplog: pytest.LogCaptureFixture, noise: bytes) -> None:
    async def scenario() -> None:
        async with running(RouterConfig(port=0)) as (port, _stop, _task):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            writer.write_eof()
            answer = await reader.read()
            assert not answer or answer.startswith(b"HTTP/1.1 400")
            writer.close()
            await writer.wait_closed()

    with caplog.at_level(logging.WARNING):
        run(scenario)
    assert not caplog.records


def test_a_taken_port_is_one_line(run: Run) -> None:
    async def scenario() -> None:
        async with running(RouterConfig(port=0)) as (port, _stop, _task):
            with pytest.raises(ConfigError, match=f"--port {port} cannot be listened on"):
                await run_router(RouterConfig(port=port), stop=StopRequests())

    run(scenario)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_starts_before_its_workers_and_ends_cleanly(number: int) -> None:
    command = [sys.executable, "-W", "error", "-m", "baton.launch_router", "--port", "0"]
    command += ["--pd-disaggregation", "--prefill", "http://127.0.0.1:1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert line.startswith("baton router listening on http://127.0.0.1:")
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
