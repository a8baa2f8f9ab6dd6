"""`baton profile`: record a trace at a running server, or sum one up.

Elsewhere: what a trace is (obs/chrome_trace.py), its sums (obs/trace_summary.py), one request
(explain.py).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from baton.core.errors import ConfigError
from baton.launch.ask import AskError, ask, reason_of
from baton.launch.flags import API_KEY_VARIABLE, add_flags, from_args
from baton.launch.trace_file import read_trace, write_trace
from baton.obs.trace_summary import ProcessSummary, Spent, TraceSummary, summarize

_EXAMPLES: Final = """\
examples:
  baton profile record trace.json --seconds 10    at the server on this machine
  baton profile summary trace.json                where the time went, and what to try

open the file at https://ui.perfetto.dev
"""

_MAX_ROWS: Final = 12


@dataclass(frozen=True)
class RecordConfig:
    url: str = field(
        default="http://127.0.0.1:8000",
        metadata={"help": "router (all its workers) or one worker", "metavar": "URL"},
    )
    seconds: float = field(default=10.0, metadata={"help": "how long", "minimum": 0.1})
    api_key: str | None = field(
        default=None, metadata={"help": "key of the server", "env": API_KEY_VARIABLE}
    )


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baton profile",
        description="Record a trace of a running server, or sum one up.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    summary = commands.add_parser("summary", help="where the time of a trace went")
    summary.add_argument("file", type=Path, metavar="FILE")
    summary.set_defaults(run=_summary)
    record = commands.add_parser("record", help="record a trace for some seconds")
    record.add_argument("file", type=Path, metavar="FILE")
    add_flags(record, RecordConfig)
    record.set_defaults(run=_record)
    return parser


def _summary(args: argparse.Namespace) -> int:
    print_summary(summarize(read_trace(args.file)), Console())
    return 0


def _record(args: argparse.Namespace) -> int:
    config = from_args(RecordConfig, args, environ=os.environ)
    if not args.file.absolute().parent.is_dir():
        raise ConfigError(f"{args.file}: there is no folder {args.file.parent}; make it first")
    _post(config, "/start_profile")
    try:
        time.sleep(config.seconds)
    except KeyboardInterrupt:
        print("stopped early; the trace has what was until now", file=sys.stderr)
    write_trace(args.file, _post(config, "/stop_profile"))
    print(f"trace: {args.file}", file=sys.stderr)
    return _summary(args)


def _post(config: RecordConfig, path: str) -> bytes:
    status, body = ask(config.url, path, api_key=config.api_key, body={})
    if status != 200:
        raise AskError(f"{config.url}{path} answered {status}: {reason_of(body)}")
    return body


def print_summary(summary: TraceSummary, console: Console) -> None:
    """Engines first: they are where time is spent."""

    def say(line: str, style: str = "") -> None:
        console.print(line, highlight=False, style=style)

    for process in sorted(summary.processes, key=lambda each: each.process.kind != "engine"):
        if process.process.kind == "engine":
            _print_engine(process, console)
        elif process.phases:
            say(f"\n{process.title} (pid {process.process.pid})")
            console.print(_table("phase of requests", process.phases, None))
    if summary.ttft_s is not None:
        say(
            f"\nfirst token after {summary.ttft_s * 1e3:.1f} ms on the mean of "
            f"{summary.num_first_tokens} requests"
        )
    for note in summary.notes:
        say(f"note: {note}", "yellow")
    if summary.advice:
        say("\nwhat to try")
    for advice in summary.advice:
        say(f"  {advice.figure}:\n    {advice.what_to_try}")


def _print_engine(process: ProcessSummary, console: Console) -> None:
    idle_s = max(0.0, process.wall_s - process.busy_s)
    console.print(
        f"\n{process.title} (pid {process.process.pid}): {process.wall_s:.2f} s, busy "
        f"{process.busy_s:.2f} s ({process.busy_share:.0%}), idle {idle_s:.2f} s; "
        f"{process.num_prompt_tokens} prompt tokens, {process.num_decode_tokens} decode tokens",
        highlight=False,
    )
    for title, spent in (
        ("step", process.steps),
        ("part of steps", process.parts),
        ("op, over all layers", process.ops),
        ("phase of requests", process.phases),
    ):
        whole_s = None if title == "phase of requests" else process.busy_s
        if spent:
            console.print(_table(title, spent, whole_s))


def _table(title: str, spent: list[Spent], whole_s: float | None) -> Table:
    """`whole_s`: what the shares are of; phases of many requests overlap and have none."""
    table = Table(box=None, pad_edge=False)
    table.add_column(title, min_width=22)
    for name in ("count", "seconds", "share", "mean ms", "longest ms"):
        table.add_column(name, justify="right", min_width=8)
    for each in spent[:_MAX_ROWS]:
        share = f"{each.seconds / whole_s:.0%}" if whole_s else ""
        table.add_row(
            each.name,
            str(each.count),
            f"{each.seconds:.3f}",
            share,
            f"{each.mean_s * 1e3:.2f}",
            f"{each.longest_s * 1e3:.2f}",
        )
    return table
