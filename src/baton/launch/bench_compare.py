"""The command line of `baton bench compare`.

Elsewhere: one load (baton/bench/serve/bench_serve.py), the scripts that start the servers
(benchmarks/peers/start).
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from baton.bench.serve.config import (
    DatasetConfig,
    LimitsConfig,
    LoadConfig,
    OutputConfig,
    TargetConfig,
)
from baton.core.errors import ConfigError
from baton.launch.bench_serve import (
    EXIT_INTERRUPTED,
    check_folder,
    load_tokenizer,
    write_file,
)
from baton.launch.flags import add_flags, from_args
from baton.obs.profile_config import ProfileConfig

if TYPE_CHECKING:
    from baton.bench.serve.compare import Candidate, CompareReport, Rounds
    from baton.bench.serve.report import ServeReport

_SCRIPTS: Final = Path("benchmarks/peers/start")
_SEED_STEP: Final = 104_729
_FILE_COLUMNS: Final = 140
_EXAMPLES: Final = """\
examples:
  baton bench compare --servers baton-pd baton-unified --rounds 3 --request-rate 1
  baton bench compare --max-concurrency 8 --goodput ttft:1000 itl:100   all that are known
  baton bench compare --servers baton-pd mine=vllm@http://127.0.0.1:8001

known: baton-adaptive, baton-pd, baton-unified, llama.cpp, vllm-512, vllm-128, openvino; the
scripts in benchmarks/peers/start start them, where benchmarks/peers has installed them
"""


@dataclass(frozen=True)
class CompareConfig:
    servers: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "known names, or NAME=BACKEND@URL for one that runs (default: all known)",
            "metavar": "SERVER",
        },
    )
    rounds: int = field(default=3, metadata={"help": "loads on each server", "minimum": 1})
    warmup_requests: int = field(
        default=2, metadata={"help": "requests before each load", "minimum": 0}
    )
    start_timeout_s: float = field(
        default=300.0, metadata={"help": "how long a server may take to start"}
    )
    output_file: Path | None = field(
        default=None,
        metadata={"help": "write the report as JSON", "flags": ("--output-file", "--json")},
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
        "what is sent": DatasetConfig,
        "when it is sent": LoadConfig,
        "what is good enough": LimitsConfig,
    }
    for title, config_type in groups.items():
        add_flags(parser.add_argument_group(title), config_type)


def run_compare(flags: argparse.Namespace, argv: Sequence[str]) -> int:
    """Prints one page. 1 when a server failed, 130 when the user stopped it."""
    from rich.console import Console

    from baton.bench.serve.compare_table import print_comparison

    comparison = _Comparison.of(flags)
    with _ended_by_sigterm():
        report = _compare(comparison, argv)
    is_piped = not sys.stdout.isatty()
    print_comparison(report, Console(width=_FILE_COLUMNS if is_piped else None))
    output_file = comparison.config.output_file
    if output_file is not None:
        write_file("--output-file", output_file, report.to_json())
    if report.is_stopped:
        return EXIT_INTERRUPTED
    return int(any(each.failure is not None for each in report.servers.values()))


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
        _require_scripts(candidates)
        checked_limits(limits)
        check_folder("--output-file", config.output_file)
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
    from baton.bench.serve.peer_server import started

    if candidate.url is not None:
        return _load(comparison, candidate, number, candidate.url, ())
    assert candidate.script is not None
    command = [str(_SCRIPTS / candidate.script), "PORT", *candidate.arguments]
    with started(command, timeout_s=comparison.config.start_timeout_s) as (url, pid):
        return _load(comparison, candidate, number, url, (pid,))


def _load(
    comparison: _Comparison, candidate: "Candidate", number: int, url: str, pids: tuple[int, ...]
) -> "ServeReport":
    import uvloop

    from baton.bench.serve.bench_serve import ServeBench, bench_serve

    config, dataset = comparison.config, comparison.dataset
    bench = ServeBench(
        target=TargetConfig(
            backend=candidate.backend, base_url=url, warmup_requests=config.warmup_requests
        ),
        dataset=replace(dataset, seed=dataset.seed + number * _SEED_STEP),
        load=comparison.load,
        limits=comparison.limits,
        output=OutputConfig(server_pid=pids),
        profile=ProfileConfig(),
        command=(),
        load_tokenizer=lambda: load_tokenizer(None),
    )
    return uvloop.run(bench_serve(bench)).report


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves as an exception does, so that a server that was started is ended, too."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_scripts(candidates: "Sequence[Candidate]") -> None:
    for each in candidates:
        if each.script is not None and not os.access(_SCRIPTS / each.script, os.X_OK):
            raise ConfigError(
                f"--servers {each.name}: {_SCRIPTS / each.script} is not here; run from Baton's"
                " repository"
            )


def _tell(rounds: "Rounds", number: int) -> None:
    name = rounds.candidate.name
    if rounds.failure is not None:
        print(f"round {number + 1}, {name}: {rounds.failure}", file=sys.stderr)
        return
    rate = rounds.reports[-1].rates.output_tokens_per_s
    print(f"round {number + 1}, {name}: {rate:g} output tokens/s", file=sys.stderr)
