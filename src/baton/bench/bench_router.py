"""`baton bench router`: what a router costs, Baton's beside SGLang's, over instant workers.

Both run as they would in production, with their defaults, each between the same two workers and the
same clients, which take turns with them: requests/s, latency and time to the first byte, of plain
answers and of streams, by number of clients. Streams once more through a Baton whose workers mark
them, as Baton's own do, so that what resuming costs is seen. And what a choice costs among many
workers.

Invariant: a rate of a load client that was itself the limit is in no ratio.
Elsewhere: processes (router_processes.py), workers (instant_worker.py), clients (load_client.py).
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from baton.bench.config import RouterBenchConfig
from baton.bench.load_client import BUSY_SHARE, Load, LoadResult
from baton.bench.machine import OtherLoad, describe_machine
from baton.bench.report import Findings, Report, paired_ratio
from baton.bench.router_choice import choice_cost
from baton.bench.router_processes import (
    Clients,
    Router,
    Workers,
    baton_router,
    baton_router_of_marks,
    body_of,
    sglang_router,
)
from baton.bench.timing import Sample, interleave
from baton.core.clock import MonotonicClock
from baton.kernels.native import open_kernels
from baton.router.config import RouterConfig

BATON: Final = "baton"
BATON_OF_MARKS: Final = "baton_marked"
SGLANG: Final = "sglang-router"
_PACKAGES: Final = ("uvloop", "httptools", "msgspec", SGLANG)
_PATHS: Final = {"generate": "/generate", "chat": "/v1/chat/completions"}
_PROMPT: Final = "Tell me of the sea. " * 8
_PLAIN_FLOOR: Final = 1.0
_STREAM_FLOOR: Final = 2.0
_TTFT_FLOOR: Final = 50.0
_MARKS_FLOOR: Final = 0.8
"""What is left of the rate of streams when each event has a mark, which is a token per event."""
_CHOICE_LIMIT_US: Final = 50.0
_NUM_CHOICES: Final = 2_000


@dataclass(frozen=True)
class _Case:
    """One kind of load."""

    streams: bool
    num_clients: int

    @property
    def name(self) -> str:
        return f"{'stream' if self.streams else 'plain'}_{self.num_clients}"


def bench_router(config: RouterBenchConfig) -> Report:
    """About a minute with the defaults."""
    findings, others = Findings(), OtherLoad(MonotonicClock())
    cases = [_Case(streams, num) for streams in (False, True) for num in config.clients]
    with contextlib.ExitStack() as stack:
        workers, clients = Workers(), Clients()
        stack.callback(workers.close)
        stack.callback(clients.close)
        routers = _start_routers(stack, workers, findings)
        for case in cases:
            taken = _measure(config, case, routers, clients)
            for router, results in taken.items():
                _add(findings, f"{router}_{case.name}", results)
            _compare(findings, case, taken)
    _measure_choice(findings, config.num_workers)
    return Report(
        benchmark="router",
        machine=describe_machine(open_kernels(1).isa, others, _PACKAGES),
        settings={
            "rounds": config.rounds,
            "seconds": str(config.seconds),
            "route": config.route,
            "workers_to_choose_from": config.num_workers,
        },
        figures=findings.figures,
        ratios=findings.ratios,
        skipped=findings.skipped,
    )


def _start_routers(
    stack: contextlib.ExitStack, workers: Workers, findings: Findings
) -> dict[str, Router]:
    starts: dict[str, Callable[[Workers], Router]] = {
        BATON: baton_router,
        BATON_OF_MARKS: baton_router_of_marks,
    }
    if find_spec("sglang_router") is None:
        findings.skipped[SGLANG] = "it is not installed; pip install sglang-router==0.3.2"
    else:
        starts[SGLANG] = sglang_router
    routers = {}
    for name, start in starts.items():
        routers[name] = start(workers)
        stack.callback(routers[name].close)
    return routers


def _measure(
    config: RouterBenchConfig, case: _Case, routers: Mapping[str, Router], clients: Clients
) -> dict[str, list[LoadResult]]:
    """Rounds in which the routers take turns; those that warm them up are left out. Plain answers
    have no marks."""
    if not case.streams:
        routers = {name: router for name, router in routers.items() if name != BATON_OF_MARKS}
    taken: dict[str, list[LoadResult]] = {name: [] for name in routers}

    def sample_of(name: str, router: Router) -> Sample:
        load = _load(config, case, router.port)

        def sample() -> float:
            taken[name].append(clients.run(load))
            return taken[name][-1].requests_per_s

        return sample

    interleave(
        {name: sample_of(name, router) for name, router in routers.items()},
        config.rounds,
        warm_ups=0,
    )
    return taken


def _load(config: RouterBenchConfig, case: _Case, port: int) -> Load:
    path = _PATHS[config.route]
    prompt = (
        {"text": _PROMPT, "sampling_params": {"max_new_tokens": 32, "temperature": 0}}
        if path == "/generate"
        else {
            "model": "instant",
            "messages": [{"role": "user", "content": _PROMPT}],
            "max_tokens": 32,
        }
    )
    return Load(
        port=port,
        path=path,
        body=body_of(**prompt, stream=case.streams),
        num_clients=case.num_clients,
        warm_up_s=config.seconds / 2,
        seconds=config.seconds,
    )


def _add(findings: Findings, name: str, results: list[LoadResult]) -> None:
    findings.add(name, [each.requests_per_s for each in results], "requests/s")
    findings.add(f"{name}_p50", [each.latency_p50_ms for each in results], "ms")
    findings.add(f"{name}_p99", [each.latency_p99_ms for each in results], "ms")
    findings.add(f"{name}_ttft_p50", [each.ttft_p50_ms for each in results], "ms")
    findings.add(f"{name}_ttft_p99", [each.ttft_p99_ms for each in results], "ms")


def _compare(findings: Findings, case: _Case, taken: Mapping[str, list[LoadResult]]) -> None:
    """One client tells latencies, many tell rates."""
    if case.num_clients == 1:
        _claim_times(findings, case, taken)
        return
    floor = _STREAM_FLOOR if case.streams else _PLAIN_FLOOR
    _compare_rates(findings, f"{case.name}_vs_sglang_router", case, taken, (BATON, SGLANG), floor)
    if case.streams:
        pair = (BATON_OF_MARKS, BATON)
        _compare_rates(findings, f"{case.name}_with_marks", case, taken, pair, _MARKS_FLOOR)


def _compare_rates(
    findings: Findings,
    name: str,
    case: _Case,
    taken: Mapping[str, list[LoadResult]],
    pair: tuple[str, str],
    floor: float,
) -> None:
    """The first of the `pair` by the second."""
    if SGLANG in pair and SGLANG not in taken:
        findings.skipped[name] = findings.skipped[SGLANG]
        return
    busiest = max(each.cpu_share for router in pair for each in taken[router])
    if busiest > BUSY_SHARE:
        findings.skipped[name] = f"the load client was the limit: it used {busiest:.2f} of a core"
        return
    ours, theirs = (f"{router}_{case.name}" for router in pair)
    reference = f"requests/s of {case.num_clients} clients, in turn"
    if BATON_OF_MARKS in pair:
        reference += ", with marks by without"
    findings.compare(name, ours, theirs, floor, reference)


def _claim_times(findings: Findings, case: _Case, taken: Mapping[str, list[LoadResult]]) -> None:
    name = "ttft_vs_sglang_router" if case.streams else "latency_vs_sglang_router"
    if SGLANG not in taken:
        findings.skipped[name] = findings.skipped[SGLANG]
        return
    ours, theirs = taken[BATON], taken[SGLANG]
    if case.streams:
        measured = paired_ratio(
            [each.ttft_p50_ms for each in theirs], [each.ttft_p50_ms for each in ours]
        )
        what, floor = "time to the first byte of a stream", _TTFT_FLOOR
    else:
        measured = paired_ratio(
            [each.latency_p50_ms for each in theirs], [each.latency_p50_ms for each in ours]
        )
        what, floor = "latency of a plain answer", 1.0
    findings.claim(name, measured, floor, f"sglang-router's median {what} / ours, one client")


def _measure_choice(findings: Findings, num_workers: int) -> None:
    """Every policy on its own; the last figure is of pairs, half of the workers each."""
    costs = choice_cost(num_workers, _NUM_CHOICES)
    for cost in costs:
        findings.add(f"choose_{cost.what.replace(', ', '_')}", [cost.p50_us], "us")
    policy = RouterConfig().policy
    (default,) = [cost for cost in costs if cost.what == policy]
    findings.claim(
        "choose_pair_under_50_us",
        _CHOICE_LIMIT_US / (2 * default.p50_us),
        1.0,
        f"50 us / the median time of two choices by {policy} among {num_workers} workers each",
    )
