"""A worker: its HTTP server in this process, its engine in a child process, wired together.

The worker lives exactly as long as its engine: when the engine dies, every stream ends with an
error and the process exits with code 1, so that whoever supervises it starts a fresh one.
Elsewhere: HTTP (api/), the engine process (engine_process.py), many workers at once (serve.py).
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import uvloop
from aiohttp import web

from baton.api.app import make_app, make_runner
from baton.api.state import SERVICE, ApiConfig, ServerState, Service
from baton.checkpoint import default_cache_dir, read_model_card, resolve_model
from baton.core.errors import BatonError, ConfigError
from baton.core.model_card import ModelCard
from baton.core.prompt_waking import ask_for_short_slice
from baton.core.request import DEFAULT_BOOTSTRAP_PORT
from baton.core.stop_requests import StopRequests
from baton.disagg.bootstrap import BootstrapClient, BootstrapServer, PrefillRank
from baton.disagg.config import DisaggConfig
from baton.disagg.core_sharing import SharingRules
from baton.engine.config import EngineConfig
from baton.ipc.engine_process_client import EngineProcessClient
from baton.launch.announcing import (
    ANNOUNCE_URL,
    ROUTER_URL,
    check_announcing,
    make_announcer,
)
from baton.launch.cluster_secret import (
    CLUSTER_SECRET_FILE,
    CLUSTER_SECRET_VARIABLE,
    is_loopback,
    read_cluster_secret,
    send_secret,
    without_secret,
)
from baton.launch.departure import depart
from baton.launch.engine_spec import EngineSpec, TransferBackend
from baton.launch.flags import API_KEY_VARIABLE, add_flags, from_args
from baton.launch.transfer_flags import (
    IB_DEVICE,
    MOONCAKE_PROTOCOL,
    SIMULATE_LINK,
    TRANSFER_BACKEND,
    VERIFY_KV,
    link_of,
    mooncake_environ,
    mooncake_of,
)
from baton.launch.worker_profile import profiled
from baton.messages.engine import EngineReady
from baton.obs.logs import configure_logging, event_log
from baton.obs.profile_config import ProfileConfig
from baton.tokenizer import Tokenizer, load_tokenizer
from baton.transfer.config import MooncakeConfig, TransferConfig

log = event_log("worker")

_ENGINE_EXIT_S = 3.0
_LAST_WORDS_S = 0.5
"""Time for connections to close, once what ran has had its grace period."""


@dataclass(frozen=True)
class WorkerConfig:
    """Options of one worker, besides those of its engine."""

    model_path: str | None = field(
        default=None,
        metadata={
            "help": "GGUF file, Hugging Face folder or hub name (default: the embedded "
            "SmolLM2-135M-Instruct)"
        },
    )
    served_model_name: str | None = field(
        default=None, metadata={"help": "name of the model for clients (default: --model-path)"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(
        default=30000,
        metadata={"help": "HTTP port, 0 for any free one", "minimum": 0, "maximum": 65535},
    )
    disaggregation_mode: Literal["null", "prefill", "decode"] = field(
        default="null", metadata={"help": "this worker's role; null does both"}
    )
    disaggregation_bootstrap_port: int = field(
        default=DEFAULT_BOOTSTRAP_PORT,
        metadata={
            "help": "prefill only: port where decode workers ask for this worker",
            "minimum": 0,
            "maximum": 65535,
        },
    )
    disaggregation_transfer_backend: TransferBackend = field(
        default="auto", metadata=TRANSFER_BACKEND
    )
    mooncake_protocol: str = field(default="tcp", metadata=MOONCAKE_PROTOCOL)
    disaggregation_ib_device: str = field(default="", metadata=IB_DEVICE)
    simulate_link: str | None = field(default=None, metadata=SIMULATE_LINK)
    verify_kv: bool = field(default=False, metadata=VERIFY_KV)
    base_gpu_id: int = field(
        default=0, metadata={"help": "first core, where --cores is given", "minimum": 0}
    )
    cores: int | None = field(
        default=None,
        metadata={"help": "keep the engine on this many cores (default: all)", "minimum": 1},
    )
    engine_nice: int = field(
        default=0,
        metadata={"help": "niceness added to the engine process", "minimum": 0, "maximum": 19},
    )
    shared_threads: int | None = field(
        default=None,
        metadata={
            "help": "decode only: threads while a prefill worker computes prompts for it on the "
            "same cores (default: as ever)",
            "minimum": 1,
        },
    )
    shared_time: float = field(
        default=1.0,
        metadata={"help": "decode only: then, at most this share of the time in steps"},
    )
    shared_rest_ms: float = field(
        default=20.0, metadata={"help": "decode only: then, longest rest between two steps"}
    )
    takes_whole_requests: bool = field(
        default=False,
        metadata={
            "help": "decode only: take requests without a prefill worker, too; for one that has "
            "no cores of its own (see --step-target-ms)"
        },
    )
    api_key: str | None = field(
        default=None,
        metadata={"help": "clients must send it as a bearer token", "env": API_KEY_VARIABLE},
    )
    cluster_secret_file: str | None = field(default=None, metadata=CLUSTER_SECRET_FILE)
    router_url: tuple[str, ...] = field(default=(), metadata=ROUTER_URL)
    announce_url: str | None = field(default=None, metadata=ANNOUNCE_URL)
    shutdown_grace_period_secs: float = field(
        default=30.0,
        metadata={
            "help": "time for running requests after SIGTERM or SIGINT; a second signal ends it",
            "metavar": "SECONDS",
            "minimum": 0,
        },
    )
    log_level: str = field(
        default="info",
        metadata={"help": "least level to log", "choices": ("debug", "info", "warning", "error")},
    )


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 after SIGTERM or SIGINT, 1 when the worker could not start or its engine died,
    2 for wrong options."""
    parser = argparse.ArgumentParser(
        prog="python -m baton.launch_server",
        description="Serve one model from one worker: prefill, decode, or both.",
        epilog="example: python -m baton.launch_server --disaggregation-mode prefill --port 30000",
    )
    add_flags(parser, WorkerConfig, EngineConfig, ProfileConfig)
    namespace = parser.parse_args(argv)
    try:
        worker = from_args(WorkerConfig, namespace, environ=os.environ)
        engine = from_args(EngineConfig, namespace, environ=os.environ)
        profile = from_args(ProfileConfig, namespace)
        configure_logging(worker.log_level, f"worker-{worker.disaggregation_mode}")
        disagg = DisaggConfig.from_environ(os.environ)
        link = link_of(worker.simulate_link)
        secret = read_cluster_secret(worker.cluster_secret_file, os.environ)
        check_announcing(worker.router_url, worker.announce_url, secret)
        cores = _cores(worker)
        num_cores = len(cores or os.sched_getaffinity(0))
        transfer = TransferConfig.from_environ(os.environ, num_cores)
        transfer = replace(transfer, mooncake=_mooncake(worker))
        sharing = SharingRules(
            worker.shared_threads, worker.shared_time, worker.shared_rest_ms / 1000
        )
        path = resolve_model(worker.model_path, cache_dir=default_cache_dir(os.environ))
        card = read_model_card(path)
        sockets = _Sockets.bind(worker)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BatonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    spec = EngineSpec(
        model_path=str(path),
        role=worker.disaggregation_mode,
        engine=engine,
        disagg=disagg,
        transfer=transfer,
        transfer_backend=worker.disaggregation_transfer_backend,
        link=link,
        verify_kv=worker.verify_kv,
        host=worker.host,
        cores=cores,
        nice=worker.engine_nice,
        sharing=sharing,
        log_level=worker.log_level,
        parent_pid=os.getpid(),
    )
    if spec.role != "null" and not secret and not is_loopback(worker.host):
        log.warning(
            f"other hosts can reach this worker and no cluster secret is set: whoever connects is "
            f"taken for a peer; set the same {CLUSTER_SECRET_VARIABLE} on all workers",
            host=worker.host,
        )
    ask_for_short_slice()
    return uvloop.run(_serve(worker, spec, profile, secret, card, sockets))


@dataclass(frozen=True)
class _Sockets:
    """Ports taken before the model is loaded, so that a clash shows at once."""

    http: socket.socket
    bootstrap: socket.socket | None

    @staticmethod
    def bind(worker: WorkerConfig) -> "_Sockets":
        bootstrap = None
        if worker.disaggregation_mode == "prefill":
            port = worker.disaggregation_bootstrap_port
            bootstrap = _bind(worker.host, port, "--disaggregation-bootstrap-port")
        return _Sockets(_bind(worker.host, worker.port, "--port"), bootstrap)


def _bind(host: str, port: int, flag: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another {flag}"
        ) from error
    return bound


def _mooncake(worker: WorkerConfig) -> MooncakeConfig:
    backend = worker.disaggregation_transfer_backend
    config, ignored = mooncake_of(
        worker.mooncake_protocol, worker.disaggregation_ib_device, backend, os.environ
    )
    for name in ignored:
        log.warning(f"{name} is ignored: it is for mooncake only", transfer_backend=backend)
    return config


def _cores(worker: WorkerConfig) -> list[int]:
    allowed = sorted(os.sched_getaffinity(0))
    if worker.base_gpu_id >= len(allowed):
        # SGLang's guide gives every role its own device; on a machine with one core they share it.
        log.warning(
            "--base-gpu-id is ignored", base_gpu_id=worker.base_gpu_id, num_cores=len(allowed)
        )
        return []
    if worker.cores is None:
        return []
    chosen = allowed[worker.base_gpu_id : worker.base_gpu_id + worker.cores]
    if len(chosen) < worker.cores:
        raise ConfigError(
            f"--base-gpu-id {worker.base_gpu_id} with --cores {worker.cores} is beyond the "
            f"{len(allowed)} cores of this machine"
        )
    return chosen


async def _serve(
    worker: WorkerConfig,
    spec: EngineSpec,
    profile: ProfileConfig,
    secret: str,
    card: ModelCard,
    sockets: _Sockets,
) -> int:
    stop = StopRequests()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    process, connection = _start_engine(spec, secret)
    engine = await EngineProcessClient.connect(connection)
    try:
        tokenizer = await asyncio.to_thread(load_tokenizer, card.path)
        await _first_of(engine.wait_ready(), stop.asked.wait())
        if stop.asked.is_set():
            return 0
        listening = _listening(worker, spec, profile, secret, card, tokenizer, engine, sockets)
        async with listening as service:
            await _work(worker, secret, service, engine, sockets, stop)
        if engine.death and not stop.asked.is_set():
            raise BatonError(engine.death)
        return 0
    except BatonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        engine.shut_down()
        await asyncio.to_thread(_end_engine, process)
        await engine.close()


async def _work(
    worker: WorkerConfig,
    secret: str,
    service: Service,
    engine: EngineProcessClient,
    sockets: _Sockets,
    stop: StopRequests,
) -> None:
    """Until the engine is dead, or we were asked to stop and have done what was begun."""
    state = service.state
    host, port = sockets.http.getsockname()[:2]
    announcer = make_announcer(
        worker.router_url,
        secret,
        announce_url=worker.announce_url,
        host=host,
        port=port,
        role=state.role,
        bootstrap_port=state.bootstrap_port,
    )
    announcer.start()
    try:
        log.info("worker ready", url=f"http://{host}:{port}", role=state.role, pid=os.getpid())
        await _first_of(engine.dead.wait(), stop.asked.wait())
        if stop.asked.is_set():
            service.is_draining = True
            grace_s = worker.shutdown_grace_period_secs
            leaving = depart(stop, announcer, lambda: service.running.num_requests, grace_s)
            await _first_of(engine.dead.wait(), leaving)
    finally:
        await announcer.leave()


def _start_engine(spec: EngineSpec, secret: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    # A prefill and a decode worker share cores, so a thread that waits must not spin. A unified
    # one gains a third of its step from spinning for a moment (docs/experiments.md).
    spins = "10000" if spec.role == "null" else "0"
    inherited = mooncake_environ(spec.transfer.mooncake, without_secret(os.environ))
    environ = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": spins, **inherited}
    fd, options = str(theirs.fileno()), msgspec.json.encode(spec).decode()
    process = subprocess.Popen(
        [sys.executable, "-m", "baton.launch.engine_process", fd, options],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=environ,
    )
    theirs.close()
    with contextlib.suppress(BrokenPipeError):  # its death shows when we wait for it
        send_secret(ours, secret)
    return process, ours


def _end_engine(process: subprocess.Popen[bytes]) -> None:
    """Wait for the engine to end by itself, then make it."""
    try:
        process.wait(_ENGINE_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _first_of(*waits: Coroutine[object, object, object]) -> None:
    """Returns when the first is done; raises what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


@contextlib.asynccontextmanager
async def _listening(
    worker: WorkerConfig,
    spec: EngineSpec,
    profile: ProfileConfig,
    secret: str,
    card: ModelCard,
    tokenizer: Tokenizer,
    engine: EngineProcessClient,
    sockets: _Sockets,
) -> AsyncIterator[Service]:
    """HTTP and, on a prefill worker, the bootstrap server."""
    bootstrap_client = BootstrapClient()
    bootstrap_port = sockets.bootstrap.getsockname()[1] if sockets.bootstrap is not None else None
    state = ServerState(
        engine=engine,
        tokenizer=tokenizer,
        card=card,
        served_model_name=worker.served_model_name or worker.model_path or card.path.stem,
        role=spec.role,
        resolve_prefill=bootstrap_client.resolve,
        config=ApiConfig(api_key=worker.api_key),
        bootstrap_port=bootstrap_port,
        takes_whole_requests=worker.takes_whole_requests and spec.role == "decode",
    )
    port = sockets.http.getsockname()[1]
    app = make_app(state)
    profiling = contextlib.AsyncExitStack()
    await profiling.enter_async_context(profiled(app[SERVICE], profile))
    runner = make_runner(app, shutdown_timeout_s=_LAST_WORDS_S)
    runners = [await _listen(runner, sockets.http)]
    try:
        if sockets.bootstrap is not None:
            bootstrap = _bootstrap_server(worker, secret, engine.ready, port)
            runner = web.AppRunner(bootstrap.make_app(), access_log=None)
            runners.append(await _listen(runner, sockets.bootstrap))
        yield app[SERVICE]
    finally:
        for runner in runners:
            await runner.cleanup()
        await profiling.aclose()  # what was still running then has ended
        await bootstrap_client.close()


def _bootstrap_server(
    worker: WorkerConfig, secret: str, ready: EngineReady, http_port: int
) -> BootstrapServer:
    server = BootstrapServer(prefill_http_port=http_port, secret=secret)
    server.register(
        PrefillRank(
            rank_ip=worker.host,
            rank_port=ready.control_port,
            page_size=ready.block_size,
            kv_cache_dtype=ready.kv_cache_dtype,
        )
    )
    return server


async def _listen(runner: web.AppRunner, bound: socket.socket) -> web.AppRunner:
    await runner.setup()
    await web.SockSite(runner, bound).start()
    return runner
