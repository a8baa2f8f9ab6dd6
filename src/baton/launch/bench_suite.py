"""`baton bench compare --suite`: several loads on several servers, in turn, and a page of it.

Invariant: the JSON file is written after every server's turn, so that a long run that breaks off
leaves what it had.
Elsewhere: the loads (bench/serve/suite.py), the page (bench/serve/suite_page.py), the command line
(bench_compare.py).
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from baton.bench.serve.config import DatasetConfig, LimitsConfig, SuiteConfig
from baton.core.errors import ConfigError
from baton.launch.bench_round import Running, require_scripts, running
from baton.launch.bench_serve import write_file

if TYPE_CHECKING:
    from baton.bench.serve.compare import Candidate
    from baton.bench.serve.suite import SuiteLoad
    from baton.bench.serve.suite_report import SuiteReport, SuiteRounds

_PEERS: Final = Path("build/peers")
_REQUEST_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class SuiteRun:
    """What is to be run, all of it checked. `left_out`: servers that cannot be, and why."""

    suite: str
    loads: "Sequence[SuiteLoad]"
    candidates: "Sequence[Candidate]"
    left_out: dict[str, str]
    rounds: int
    warmup_requests: int
    tokenizer: str | None
    start_timeout_s: float
    output_file: Path | None
    command: list[str]

    @classmethod
    def of(
        cls,
        config: SuiteConfig,
        dataset: DatasetConfig,
        limits: LimitsConfig,
        *,
        servers: Sequence[str],
        rounds: int,
        warmup_requests: int,
        tokenizer: str | None,
        start_timeout_s: float,
        output_file: Path | None,
        argv: Sequence[str],
    ) -> "SuiteRun":
        """Raises ConfigError."""
        from baton.bench.serve.bench_serve import checked_limits
        from baton.bench.serve.compare import parse_candidates
        from baton.bench.serve.suite import default_servers, plan_suite

        assert config.suite is not None
        loads = plan_suite(config, dataset, limits)
        for each in loads:
            checked_limits(each.limits)
            _require_file(each.dataset)
        left_out: dict[str, str] = {}
        if servers:
            candidates = parse_candidates(servers)
        else:
            candidates, left_out = default_servers(Path(os.environ.get("PEERS_DIR", _PEERS)))
        require_scripts(candidates)
        return cls(
            config.suite,
            loads,
            candidates,
            left_out,
            rounds,
            warmup_requests,
            tokenizer,
            start_timeout_s,
            output_file,
            ["baton", "bench", *without_folders(argv)],
        )


def run_suite(run: SuiteRun) -> "SuiteReport":
    """Every load on every server, in every round. Writes the JSON file after each turn."""
    from baton.bench.machine import OtherLoad, describe_machine
    from baton.bench.serve.compare import turns
    from baton.bench.serve.suite_report import SuiteReport, SuiteRounds, compare_loads
    from baton.core.clock import MonotonicClock

    others, started_at = OtherLoad(MonotonicClock()), datetime.now(UTC)
    done = {each.name: SuiteRounds(each) for each in run.candidates}

    def report(*, is_stopped: bool) -> SuiteReport:
        return SuiteReport(
            suite=run.suite,
            command=run.command,
            started_at=started_at.isoformat(timespec="seconds"),
            machine=describe_machine("the servers' own", others),
            rounds=run.rounds,
            loads=compare_loads(run.loads, done),
            servers={name: rounds.served() for name, rounds in done.items()},
            left_out=run.left_out,
            is_stopped=is_stopped,
        )

    is_stopped = False
    for number, candidate in turns(run.candidates, run.rounds):
        if done[candidate.name].failure is None:
            is_stopped = not _turn(run, done[candidate.name], number)
            if run.output_file is not None:
                write_file("--output-file", run.output_file, report(is_stopped=True).to_json())
        if is_stopped:
            break
    return report(is_stopped=is_stopped)


def _turn(run: SuiteRun, rounds: "SuiteRounds", number: int) -> bool:
    """False when the user stopped it."""
    from baton.bench.serve.server import ServerError

    begin_s = time.monotonic()
    tell = _teller(f"round {number + 1}, {rounds.candidate.name}")
    try:
        with running(rounds.candidate, start_timeout_s=run.start_timeout_s) as server:
            tell("started", begin_s)
            return _loads(run, rounds, server, number, tell)
    except ServerError as error:
        rounds.failure = str(error)
        tell(f"failed: {error}", begin_s)
    return True


def _loads(
    run: SuiteRun,
    rounds: "SuiteRounds",
    server: Running,
    number: int,
    tell: Callable[[str, float], None],
) -> bool:
    """Only the first load needs warming up: the server stays. False when the user stopped it."""
    for at, planned in enumerate(run.loads):
        begin_s = time.monotonic()
        load = planned.of_round(number)
        report = server.load(
            load.dataset,
            load.load,
            load.limits,
            warmup_requests=run.warmup_requests if at == 0 else 0,
            tokenizer=run.tokenizer,
            request_timeout_s=_REQUEST_TIMEOUT_S,
        )
        if report.is_stopped:
            return False
        rounds.add(load.name, report)
        tell(load.name, begin_s)
    return True


def _teller(prefix: str) -> Callable[[str, float], None]:
    def tell(what: str, begin_s: float) -> None:
        print(f"{prefix}: {what} ({time.monotonic() - begin_s:.0f} s)", file=sys.stderr)

    return tell


def write_page(report: "SuiteReport", path: Path) -> None:
    """The page at `path`, and its plots in the folder beside it that has its name."""
    from baton.bench.serve.suite_page import hand_written, plots_of, to_page

    kept = hand_written(path.read_text(encoding="utf-8")) if path.is_file() else ""
    plots, folder = plots_of(report), path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for name, (_, svg) in plots.items():
        write_file("--markdown", folder / name, svg.encode())
    titles = {f"{folder.name}/{name}": title for name, (title, _) in plots.items()}
    write_file("--markdown", path, to_page(report, kept, titles).encode())


def without_folders(argv: Sequence[str]) -> list[str]:
    """The command as it may stand on a page: of absolute paths, the last part."""
    return [Path(word).name if word.startswith("/") else word for word in argv]


def _require_file(dataset: DatasetConfig) -> None:
    path = dataset.dataset_path
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no file {path}; see --suite-traces and --dataset-path")
