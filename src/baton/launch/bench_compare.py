"""The command line of `baton bench compare`.

Elsewhere: one load (baton/bench/serve/bench_serve.py), several (bench_suite.py), the scripts that
start the servers (benchmarks/peers/start).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from baton.bench.serve.config import (
    DatasetConfig,
    LimitsConfig,
    LoadConfig,
    SuiteConfig,
)
from baton.core.errors import ConfigError
from baton.launch.bench_round import ended_by_sigterm, require_scripts, running
from baton.launch.bench_serve import EXIT_INTERRUPTED, check_folder, write_file
from baton.launch.bench_suite import SuiteRun, run_suite, write_page
from baton.launch.flags import add_flags, from_args

if TYPE_CHECKING:
    from rich.console import Console

    from baton.bench.serve.compare import Candidate, CompareReport, Rounds
    from baton.bench.serve.report import ServeReport
    from baton.bench.serve.suite_report import SuiteReport

_SEED_STEP: Final = 104_729
_FILE_COLUMNS: Final = 140
_EXAMPLES: Final = """\
examples:
  baton bench compare --servers baton-pd baton-unified --rounds 3 --request-rate 1
  baton bench compare --max-concurrency 8 --goodput ttft:1000 itl:100   all that are known
  baton bench compare --servers baton-pd mine=vllm@http://127.0.0.1:8001
  baton bench compare --suite article --suite-traces TRACE.csv --json suite.json \\
      --markdown docs/benchmarks.md
  baton bench compare --from-json suite.json --markdown docs/benchmarks.md   nothing is measured

known: baton-adaptive, baton-pd, baton-unified, llama.cpp, vllm-512, vllm-128, vllm-pd, openvino;
the scripts in benchmarks/peers/start start them, where benchmarks/peers has installed them
"""


@dataclass(frozen=True)
class CompareConfig:
    servers: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "known names, or NAME=BACKEND@URL for one that runs (default: all known; of a"
            " suite those that are installed)",
            "metavar": "SERVER",
        },
    )
    rounds: int = field(default=3, metadata={"help": "loads on each server", "minimum": 1})
    warmup_requests: int = field(
        default=2, metadata={"help": "requests before each load", "minimum": 0}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "model whose tokenizer makes text (default: the embedded model's)"},
    )
    start_timeout_s: float = field(
        default=300.0, metadata={"help": "how long a server may take to start"}
    )
    output_file: Path | None = field(
        default=None,
        metadata={"help": "write the report as JSON", "flags": ("--output-file", "--json")},
    )
    markdown: Path | None = field(
        default=None,
        metadata={
            "help": "write a suite's page, its plots into the folder of that name beside it; what"
            " stands by hand between its marks is kept"
        },
    )
    from_json: Path | None = field(
        default=None,
        metadata={"help": "measure nothing: show a suite's saved report, for --markdown"},
    )


def add_compare_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = benchmarks.add_parser(
        "compare",
        help="the same load on several servers, in turn",
        description="Start several servers in turn, several times, and put the same load on each.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {
        "what is compared": CompareConfig,
        "several loads": SuiteConfig,
        "what is sent": DatasetConfig,
        "when it is sent": LoadConfig,
        "what is good enough": LimitsConfig,
    }
    for title, config_type in groups.items():
        add_flags(parser.add_argument_group(title), config_type)


def run_compare(flags: argparse.Namespace, argv: Sequence[str]) -> int:
    """Prints one page. 1 when a server failed, 130 when the user stopped it."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    config, suite = from_args(CompareConfig, flags), from_args(SuiteConfig, flags)
    _check_page(config, suite)
    if config.from_json is not None:
        from baton.bench.serve.suite_report import read_suite_report

        report = read_suite_report(config.from_json)
        _show_suite(report, config, console)
        return 0
    if suite.suite is not None:
        return _run_suite(flags, argv, console)
    return _run_compare(flags, argv, console)


def _run_compare(flags: argparse.Namespace, argv: Sequence[str], console: "Console") -> int:
    from baton.bench.serve.compare_table import print_comparison

    comparison = _Comparison.of(flags)
    with ended_by_sigterm():
        report = _compare(comparison, argv)
    print_comparison(report, console)
    output_file = comparison.config.output_file
    if output_file is not None:
        write_file("--output-file", output_file, report.to_json())
    return _status(report)


def _run_suite(flags: argparse.Namespace, argv: Sequence[str], console: "Console") -> int:
    config = from_args(CompareConfig, flags)
    run = SuiteRun.of(
        from_args(SuiteConfig, flags),
        from_args(DatasetConfig, flags),
        from_args(LimitsConfig, flags),
        servers=config.servers,
        rounds=config.rounds,
        warmup_requests=config.warmup_requests,
        tokenizer=config.tokenizer,
        start_timeout_s=config.start_timeout_s,
        output_file=config.output_file,
        argv=argv,
    )
    with ended_by_sigterm():
        report = run_suite(run)
    _show_suite(report, config, console)
    if config.output_file is not None:
        write_file("--output-file", config.output_file, report.to_json())
    return _status(report)


def _show_suite(report: "SuiteReport", config: CompareConfig, console: "Console") -> None:
    from baton.bench.serve.compare_table import print_suite

    print_suite(report, console)
    if config.markdown is not None:
        write_page(report, config.markdown)


def _status(report: "CompareReport | SuiteReport") -> int:
    if report.is_stopped:
        return EXIT_INTERRUPTED
    return int(any(each.failure is not None for each in report.servers.values()))


def _check_page(config: CompareConfig, suite: SuiteConfig) -> None:
    """Raises ConfigError for what would be known only at the end."""
    check_folder("--output-file", config.output_file)
    check_folder("--markdown", config.markdown)
    if config.markdown is not None and suite.suite is None and config.from_json is None:
        raise ConfigError("--markdown is a suite's page; add --suite article, or --from-json FILE")


@dataclass(frozen=True)
class _Comparison:
    """What the flags say, all of it checked before the first server starts."""

    config: CompareConfig
    dataset: DatasetConfig
    load: LoadConfig
    limits: LimitsConfig
    candidates: "tuple[Candidate, ...]"

    @classmethod
    def of(cls, flags: argparse.Namespace) -> "_Comparison":
        from baton.bench.serve.bench_serve import checked_limits
        from baton.bench.serve.compare import KNOWN, parse_candidates

        config, limits = from_args(CompareConfig, flags), from_args(LimitsConfig, flags)
        candidates = parse_candidates(config.servers or tuple(KNOWN))
        require_scripts(candidates)
        checked_limits(limits)
        return cls(
            config,
            from_args(DatasetConfig, flags),
            from_args(LoadConfig, flags),
            limits,
            tuple(candidates),
        )


def _compare(comparison: _Comparison, argv: Sequence[str]) -> "CompareReport":
    from datetime import UTC, datetime

    from baton.bench.machine import OtherLoad, describe_machine
    from baton.bench.serve.compare import CompareReport, Rounds, turns
    from baton.bench.serve.server import ServerError
    from baton.core.clock import MonotonicClock

    others, started_at = OtherLoad(MonotonicClock()), datetime.now(UTC)
    done = {each.name: Rounds(each) for each in comparison.candidates}
    is_stopped = False
    for number, candidate in turns(comparison.candidates, comparison.config.rounds):
        rounds = done[candidate.name]
        if rounds.failure is not None:
            continue
        try:
            report = _round(comparison, candidate, number)
        except ServerError as error:
            rounds.failure = str(error)
        else:
            if is_stopped := report.is_stopped:
                break
            rounds.reports.append(report)
        _tell(rounds, number)
    reports = [each for rounds in done.values() for each in rounds.reports]
    return CompareReport(
        command=["baton", "bench", *argv],
        started_at=started_at.isoformat(timespec="seconds"),
        machine=describe_machine("the servers' own", others),
        rounds=comparison.config.rounds,
        settings=reports[0].settings if reports else {},
        servers={name: rounds.compared() for name, rounds in done.items()},
        is_stopped=is_stopped,
    )


def _round(comparison: _Comparison, candidate: "Candidate", number: int) -> "ServeReport":
    config, dataset = comparison.config, comparison.dataset
    with running(candidate, start_timeout_s=config.start_timeout_s) as server:
        return server.load(
            replace(dataset, seed=dataset.seed + number * _SEED_STEP),
            comparison.load,
            comparison.limits,
            warmup_requests=config.warmup_requests,
            tokenizer=config.tokenizer,
        )


def _tell(rounds: "Rounds", number: int) -> None:
    name = rounds.candidate.name
    if rounds.failure is not None:
        print(f"round {number + 1}, {name}: {rounds.failure}", file=sys.stderr)
        return
    rate = rounds.reports[-1].rates.output_tokens_per_s
    print(f"round {number + 1}, {name}: {rate:g} output tokens/s", file=sys.stderr)
