"""`baton bench kernels`: the C++ kernels one by one, against torch's and the machine's limits."""

from baton.bench.bench_attention import measure_attention
from baton.bench.bench_linear import measure_many_rows, measure_one_row
from baton.bench.config import KernelBenchConfig
from baton.bench.machine import OtherLoad, describe_machine, last_level_cache_bytes, num_cores
from baton.bench.report import Findings, Report
from baton.core.clock import MonotonicClock
from baton.kernels.native import open_kernels


def bench_kernels(config: KernelBenchConfig) -> Report:
    """Some minutes of work. Raises ConfigError for an instruction set that is not there."""
    clock, findings = MonotonicClock(), Findings()
    others = OtherLoad(clock)
    num_threads = config.num_threads or num_cores()
    measure_many_rows(findings, config.rounds, clock)
    measure_one_row(findings, config.rounds, num_threads, last_level_cache_bytes(), clock)
    measure_attention(findings, config.rounds, num_threads, clock)
    return Report(
        benchmark="kernels",
        machine=describe_machine(open_kernels(1).isa, others),
        settings={"rounds": config.rounds, "num_threads": num_threads},
        figures=findings.figures,
        ratios=findings.ratios,
        skipped=findings.skipped,
    )
