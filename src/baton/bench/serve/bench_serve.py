"""`baton bench serve`: makes the dataset, warms up, runs the load, and reports.

Elsewhere: the parts (see __init__.py), the command line (baton/launch/bench_serve.py).
"""

import asyncio
import contextlib
import gc
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from baton.bench.machine import Machine, OtherLoad, describe_machine
from baton.bench.serve.arrival import plan_arrivals
from baton.bench.serve.backends import Backend, History, make_backend
from baton.bench.serve.background import Background, background_sessions
from baton.bench.serve.config import (
    DatasetConfig,
    LimitsConfig,
    LoadConfig,
    OutputConfig,
    TargetConfig,
)
from baton.bench.serve.cpu_use import CpuMeter, CpuUse, require_processes
from baton.bench.serve.datasets import LoadTokenizer, as_text, make_dataset
from baton.bench.serve.exchange import OnArrival, Sender
from baton.bench.serve.http_client import HttpClient
from baton.bench.serve.live import Live, terminal
from baton.bench.serve.load import Load, Plan, draw_pauses
from baton.bench.serve.metrics import (
    Latencies,
    Limit,
    attainment,
    errors,
    latencies,
    lateness_ms,
    parse_limits,
    rates,
    summarize,
)
from baton.bench.serve.profiling import Profiling
from baton.bench.serve.records import Record
from baton.bench.serve.report import Requests, ServeReport, Step, details_of, judge_client
from baton.bench.serve.server import ServerError, describe, first_model, flush_cache
from baton.bench.serve.session_search import SessionSearch
from baton.bench.serve.sessions import Content, Dataset
from baton.bench.serve.wake_meter import WakeMeter
from baton.core.clock import MonotonicClock
from baton.core.errors import ConfigError
from baton.core.prompt_waking import ask_for_short_slice
from baton.obs.profile_config import ProfileConfig
from baton.tokenizer.tokenizer import Tokenizer

_WARM_UP_TOKENS: Final = 32
_SEED_STEP: Final = 7919  # steps of a search send different prompts


@dataclass(frozen=True)
class ServeBench:
    """All options of a run. `command` is what the user typed."""

    target: TargetConfig
    dataset: DatasetConfig
    load: LoadConfig
    limits: LimitsConfig
    output: OutputConfig
    profile: ProfileConfig
    command: tuple[str, ...]
    load_tokenizer: LoadTokenizer


@dataclass(frozen=True)
class _Run:
    """One load that has ended. `is_stopped`: by Ctrl-C; then `records` are of what had ended.
    `background`: of the streams beside it, None where there were none."""

    dataset: Dataset
    records: list[Record]
    cpu: CpuUse
    is_stopped: bool
    wakes_ms: list[float]
    background: Background | None

    def latencies(self) -> Latencies:
        """ITL is the background's where there is one: what the load does to it is the question."""
        found = latencies(self.records)
        if self.background is None:
            return found
        itl_ms = summarize([gap_s * 1e3 for gap_s in self.background.gaps_s()])
        return msgspec.structs.replace(found, itl_ms=itl_ms)

    def requests(self) -> Requests:
        background = self.background.ended() if self.background is not None else []
        return count_requests([*self.records, *background])


@dataclass(frozen=True)
class Outcome:
    """`records` are those that the report's figures are of; `trace` is that of the last load, where
    one was asked for."""

    report: ServeReport
    records: list[Record]
    trace: bytes | None


async def bench_serve(bench: ServeBench) -> Outcome:
    """Raises ConfigError, and ServerError when the server is not there or cannot be warmed up."""
    limits = checked_limits(bench.limits)
    _check_streamed(bench.target, limits)
    require_processes(bench.output.server_pid)
    _raise_file_limit()
    ask_for_short_slice()
    runner = await _Runner.start(bench)
    others, started_at = OtherLoad(MonotonicClock()), datetime.now(UTC)
    steps: list[Step] | None = None
    sustained: int | None = None
    if bench.limits.find_sessions:
        run, sustained, steps = await runner.search(limits)
    else:
        run = await runner.run("load", bench.dataset, bench.load)
    report = ServeReport(
        command=list(bench.command),
        started_at=started_at.isoformat(timespec="seconds"),
        machine=_machine(others, run.cpu),
        server=runner.server,
        settings=_settings(bench),
        dataset=_about(run.dataset),
        requests=run.requests(),
        latencies=run.latencies(),
        rates=rates(run.records),
        limits=limits,
        attainment=attainment(run.records, limits) if limits else None,
        cpu=run.cpu,
        client=judge_client(
            lateness_ms(run.records), summarize(run.wakes_ms), run.cpu.client_cores
        ),
        sustained_sessions=sustained,
        steps=steps,
        is_stopped=run.is_stopped,
        details=details_of(run.records) if bench.output.output_details else None,
    )
    return Outcome(report, run.records, runner.trace)


class _Runner:
    """One server, ready for loads."""

    def __init__(
        self, bench: ServeBench, client: HttpClient, backend: Backend, server: dict[str, Any]
    ):
        self.server = server
        self._bench = bench
        self._client = client
        self._backend = backend
        self._is_warm = False
        is_profiled = bench.profile.profile_output is not None
        url, config = bench.target.url(), bench.profile
        self._profiling = Profiling(client, url, config) if is_profiled else None
        # Counting by a model's tokenizer that nobody named would be counting by a wrong one.
        named = bench.target.tokenizer is not None
        self._tokenizer: Tokenizer | None = bench.load_tokenizer() if named else None

    @classmethod
    async def start(cls, bench: ServeBench) -> "_Runner":
        target = bench.target
        key = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
        client = HttpClient(target.url(), key)
        model = target.model or await first_model(client, target.url())
        backend = make_backend(target, model)
        server = {"url": target.url(), "model": model, **await describe(client)}
        return cls(bench, client, backend, server)

    async def run(self, title: str, dataset_config: DatasetConfig, load: LoadConfig) -> _Run:
        dataset = make_dataset(
            dataset_config, self._bench.load_tokenizer, takes_ids=self._backend.takes_ids
        )
        await self._prepare(dataset)
        if self._profiling is not None:
            await self._profiling.start()
        sessions = dataset.sessions
        plan = Plan(
            sessions,
            plan_arrivals(sessions, load, dataset_config.seed),
            draw_pauses(sessions, load.think_time_s, dataset_config.seed),
            load.max_concurrency,
        )
        live = Live(title, plan.num_requests, stream=terminal(self._bench.output.disable_tqdm))
        sender = self._sender(live.on_arrival)
        background = await self._background(load, dataset_config)
        wakes = WakeMeter()
        watching = [asyncio.create_task(each) for each in (live.show(), wakes.run())]
        meter = CpuMeter(self._bench.output.server_pid)
        load_run = Load(plan, sender, on_start=live.on_start, on_end=live.on_end)
        try:
            with _frozen_heap():
                is_stopped = await _was_stopped(load_run)
            cpu = meter.use()
        finally:
            if background is not None:
                await background.stop()
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
        if self._profiling is not None:
            await self._profiling.stop()
        return _Run(dataset, load_run.ended(), cpu, is_stopped, wakes.late_ms, background)

    @property
    def trace(self) -> bytes | None:
        return self._profiling.trace if self._profiling is not None else None

    async def search(self, limits: list[Limit]) -> tuple[_Run, int, list[Step]]:
        """The run of the best step, or of the last where none was good; the most sessions; all
        steps."""
        wanted = self._bench.limits
        search = SessionSearch(wanted.max_sessions, wanted.first_sessions, wanted.session_precision)
        steps = list[Step]()
        best: _Run | None = None
        last: _Run | None = None
        while (number := search.next_number()) is not None:
            num_requests = max(number * wanted.requests_per_session, wanted.requests_per_step)
            config = _for_sessions(self._bench.dataset, num_requests, len(steps))
            load = replace(self._bench.load, request_rate=float("inf"), max_concurrency=number)
            last = await self.run(f"{number} sessions", config, load)
            if last.is_stopped:
                break
            step = _step(number, last.records, limits, wanted.attainment)
            steps.append(step)
            search.note(number, is_good=step.is_within_limits)
            best = last if number == search.best else best
        run = best or last
        assert run is not None
        return run, search.best, steps

    async def _prepare(self, dataset: Dataset) -> None:
        """Once: warm up, then empty the cache if that was asked for. Raises ServerError."""
        if self._is_warm:
            return
        sender, number = self._sender(None), self._bench.target.warmup_requests
        for index in range(number):
            turn = dataset.sessions[index % len(dataset.sessions)].turns[0]
            history = History([backwards(turn.content)])
            record = Record(-1, 0, 0.0)
            await sender.send(history, min(turn.num_output, _WARM_UP_TOKENS), record, 0.0)
            if not record.is_ok:
                raise ServerError(f"the warm-up failed: {record.error}")
        if self._bench.target.flush_cache:
            await flush_cache(self._client, self._bench.target.url())
        self._is_warm = True

    async def _background(self, load: LoadConfig, dataset: DatasetConfig) -> Background | None:
        """With all its streams running. Raises ServerError when they do not."""
        if not load.background_streams:
            return None
        sessions = background_sessions(load, dataset)
        if not self._backend.takes_ids:
            tokenizer = self._bench.load_tokenizer()
            sessions = [as_text(each, tokenizer) for each in sessions]
        background = Background(self._sender, sessions, load.background_streams)
        await background.start()
        return background

    def _sender(self, on_arrival: OnArrival | None) -> Sender:
        return Sender(
            self._client,
            self._backend,
            timeout_s=self._bench.target.request_timeout_s,
            tokenizer=self._tokenizer,
            on_arrival=on_arrival,
        )


async def _was_stopped(load: Load) -> bool:
    """Whether the user stopped it after something had ended, so that there is something to say."""
    try:
        await load.run()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or not load.ended():
            raise
        task.uncancel()
        return True
    return False


def backwards(content: Content) -> Content:
    """As long as `content`, but with a beginning that warms no prefix cache for it."""
    if isinstance(content, str):
        return " ".join(reversed(content.split(" ")))
    return content[::-1]


def count_requests(records: list[Record]) -> Requests:
    counted: dict[str, int] = {}
    for record in records:
        if record.is_ok:
            counted[record.counted_by.value] = counted.get(record.counted_by.value, 0) + 1
    failed = sum(not record.is_ok for record in records)
    return Requests(
        planned=len(records),
        succeeded=len(records) - failed,
        failed=failed,
        errors=errors(records),
        counted_by=counted,
    )


def checked_limits(config: LimitsConfig) -> list[Limit]:
    """Raises ConfigError."""
    limits = parse_limits(config.goodput)
    if config.find_sessions and not limits:
        raise ConfigError("--find-sessions needs limits; add --goodput ttft:1000 itl:100")
    return limits


def _check_streamed(target: TargetConfig, limits: list[Limit]) -> None:
    for limit in limits:
        if target.disable_stream and limit.name != "e2el":
            raise ConfigError(
                f"--goodput {limit.name} needs streams; leave out --disable-stream, or give e2el"
            )


def _for_sessions(config: DatasetConfig, num_sessions: int, step: int) -> DatasetConfig:
    """As many sessions as a step needs, with prompts that no step before has sent."""
    per_group = -(-num_sessions // config.gsp_num_groups)
    return replace(
        config,
        num_prompts=num_sessions,
        gsp_prompts_per_group=per_group,
        gsp_num_groups=min(config.gsp_num_groups, num_sessions),
        seed=config.seed + step * _SEED_STEP,
    )


def _step(number: int, records: list[Record], limits: list[Limit], least_share: float) -> Step:
    kept = attainment(records, limits)
    return Step(
        sessions=number,
        is_within_limits=all(share >= least_share for share in kept.by_limit.values()),
        requests=count_requests(records),
        latencies=latencies(records),
        rates=rates(records),
        attainment=kept,
    )


def _machine(others: OtherLoad, cpu: CpuUse) -> Machine:
    """The client's machine. The server is no other, where its processes are known."""
    machine = describe_machine("the server's own", others)
    if cpu.other_cores is None:
        return machine
    return msgspec.structs.replace(machine, other_cores=cpu.other_cores)


def _raise_file_limit() -> None:
    """An open loop may need thousands of sockets; the usual soft limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _settings(bench: ServeBench) -> dict[str, Any]:
    """Every option but the key and where output goes. Infinite rates as text: JSON has none."""
    settings: dict[str, Any] = {}
    for part in (bench.target, bench.dataset, bench.load, bench.limits):
        settings |= asdict(part)
    del settings["api_key"]
    if settings["dataset_path"] is not None:
        settings["dataset_path"] = settings["dataset_path"].name
    if settings["request_rate"] == float("inf"):
        settings["request_rate"] = "inf"
    return settings


def _about(dataset: Dataset) -> dict[str, Any]:
    return {
        "source": dataset.source,
        "sessions": len(dataset.sessions),
        "left_out": dataset.num_left_out,
        **dataset.notes,
    }


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """What the dataset holds is not walked by the garbage collector while tokens arrive."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
