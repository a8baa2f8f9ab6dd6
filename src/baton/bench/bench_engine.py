"""`baton bench engine`: whole steps of one engine in this process, and other engines beside it.

The other engines' figures come from benchmarks/peers: over HTTP where an engine is a server, with
the client on the same cores. Ours have no HTTP in them, and say so in every ratio's reference.
Elsewhere: the workloads (workloads.py), reading the others' figures (peers.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from baton.bench.config import EngineBenchConfig
from baton.bench.local_engine import LocalEngine
from baton.bench.machine import OtherLoad, describe_machine
from baton.bench.peers import Peers, compare_with_peers
from baton.bench.report import Findings, Report
from baton.bench.timing import Sample, interleave
from baton.bench.workloads import Workloads
from baton.core.clock import MonotonicClock
from baton.engine.config import EngineConfig
from baton.kernels.native import open_kernels

PREFILL_TOKENS: Final = (512, 2048)
CHUNKS: Final = (128, 256, 512, 1024, 2048)
NUM_STREAMS: Final = 16
_POOL_TOKENS: Final = 8192
_KERNEL_SHARE_FLOOR: Final = 0.9
_UNIT: Final = "tokens/s"

RunPeers = Callable[[], Peers | str]
"""Measures the other engines now; a string says why it cannot."""


def bench_engine(
    config: EngineBenchConfig, model_path: Path, run_peers: RunPeers, peers_from: str
) -> Report:
    """Half of the rounds before the other engines run, half after, so that both sides see the same
    quarter of an hour. `peers_from` says where `run_peers` has its figures from. Raises what
    loading a model raises."""
    clock, findings = MonotonicClock(), Findings()
    others = OtherLoad(clock)
    engine = LocalEngine(
        model_path, EngineConfig(max_total_tokens=_POOL_TOKENS, num_threads=config.num_threads)
    )
    workloads = Workloads(engine, clock)
    cases = _cases(workloads, engine.config.chunked_prefill_size)
    before = interleave(cases, config.rounds - config.rounds // 2)
    peers = run_peers()
    after = interleave(cases, config.rounds // 2)
    for name in cases:
        findings.add(name, before[name] + after[name], _UNIT)
    _add_best_chunks(findings, engine.config.chunked_prefill_size)
    _add_kernel_share(findings, workloads)
    compare_with_peers(findings, peers)
    return Report(
        benchmark="engine",
        machine=describe_machine(open_kernels(1).isa, others),
        settings={
            "model": model_path.name,
            "rounds": config.rounds,
            "num_threads": engine.num_threads,
            "peers_from": peers_from,
            "chunked_prefill_size": engine.config.chunked_prefill_size,
        },
        figures=findings.figures,
        ratios=findings.ratios,
        skipped=findings.skipped,
    )


def _cases(workloads: Workloads, default_chunk: int) -> dict[str, Sample]:
    cases: dict[str, Sample] = {}
    for num_tokens in PREFILL_TOKENS:
        cases[f"prefill_{num_tokens}"] = workloads.prefill(num_tokens)
        for chunk in CHUNKS:
            if chunk <= num_tokens and chunk != default_chunk:
                name = f"prefill_{num_tokens}_chunk_{chunk}"
                cases[name] = workloads.prefill(num_tokens, chunk)
    cases["decode_1"] = workloads.one_stream()
    cases[f"decode_{NUM_STREAMS}"] = workloads.decode(NUM_STREAMS)
    return cases


def _add_best_chunks(findings: Findings, default_chunk: int) -> None:
    """The fastest chunk of every prompt as figures of their own."""
    for num_tokens in PREFILL_TOKENS:
        default = f"prefill_{num_tokens}"
        names = [name for name in findings.figures if name.startswith(f"{default}_chunk_")]
        best = max([default, *names], key=lambda name: findings.figures[name].median)
        chunk = default_chunk if best == default else int(best.rsplit("_", 1)[1])
        findings.add(f"{default}_best_chunk", findings.figures[best].samples, _UNIT)
        findings.add(f"{default}_best_chunk_tokens", [float(chunk)], "tokens a step")


def _add_kernel_share(findings: Findings, workloads: Workloads) -> None:
    name = "kernel_share_of_a_1_stream_step"
    if not workloads.kernel_shares:
        findings.skipped[name] = "the model runs on the torch reference, not on the C++ kernels"
        return
    findings.add(name, workloads.kernel_shares, "of a step")
    reference = "time of whole steps: scheduler, batch, kernels, sampler"
    findings.claim(name, findings.figures[name].median, _KERNEL_SHARE_FLOOR, reference)
