"""The command line of `baton bench serve`.

Invariant: what would fail at the end (a folder that is not there, a package for the plots) fails
before anything is sent.
Elsewhere: the benchmark (baton/bench/serve), the other benchmarks (bench.py).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from baton.bench.serve.config import (
    DatasetConfig,
    LimitsConfig,
    LoadConfig,
    OutputConfig,
    TargetConfig,
)
from baton.core.errors import ConfigError
from baton.launch.flags import add_flags, from_args
from baton.obs.profile_config import ProfileConfig

if TYPE_CHECKING:
    from rich.console import Console

    from baton.bench.serve.bench_serve import Outcome
    from baton.tokenizer.tokenizer import Tokenizer

_EXAMPLES: Final = """\
examples:
  baton bench serve --port 8000 --num-prompts 50 --request-rate 2
  baton bench serve --max-concurrency 8 --random-input-len 512 --random-output-len 128
  baton bench serve --dataset-name sharegpt --goodput ttft:1000 itl:100 --html report.html
  baton bench serve --dataset-name azure --dataset-path TRACE.csv --trace-time-scale 20 \\
      --trace-length-scale 0.25
  baton bench serve --find-sessions --goodput ttft:1000 itl:100
  baton bench serve --backend vllm --base-url http://127.0.0.1:8001

every figure is defined in docs/benchmarking.md
"""

EXIT_INTERRUPTED: Final = 130  # as every command of baton
_GROUPS: Final = {
    "the server": TargetConfig,
    "what is sent": DatasetConfig,
    "when it is sent": LoadConfig,
    "what is good enough": LimitsConfig,
    "what is reported": OutputConfig,
    "what is profiled": ProfileConfig,
}


def add_serve_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = benchmarks.add_parser(
        "serve",
        help="load on a running server, over HTTP",
        description="Send load to a running server and report latencies and rates.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, config_type in _GROUPS.items():
        add_flags(parser.add_argument_group(title), config_type)


def run_serve(flags: argparse.Namespace, argv: Sequence[str]) -> int:
    """Prints the report and writes what was asked for. 1 when no request succeeded, 130 when the
    user stopped it."""
    import uvloop
    from rich.console import Console

    from baton.bench.serve.bench_serve import ServeBench, bench_serve
    from baton.bench.serve.table import print_serve_report

    output = from_args(OutputConfig, flags)
    _check_output(output)
    profile = from_args(ProfileConfig, flags)
    target = from_args(TargetConfig, flags, environ=os.environ)
    bench = ServeBench(
        target=target,
        dataset=from_args(DatasetConfig, flags),
        load=from_args(LoadConfig, flags),
        limits=from_args(LimitsConfig, flags),
        output=output,
        profile=profile,
        command=("baton", "bench", *without_key(argv)),
        load_tokenizer=lambda: load_tokenizer(target.tokenizer),
    )
    outcome = uvloop.run(bench_serve(bench))
    print_serve_report(outcome.report, Console())
    _write(outcome, output)
    if profile.profile_output is not None and outcome.trace is not None:
        _show_trace(profile.profile_output, outcome.trace, Console())
    if outcome.report.is_stopped:
        return EXIT_INTERRUPTED
    return 0 if outcome.report.requests.succeeded else 1


def without_key(argv: Sequence[str]) -> list[str]:
    """The command as it may stand in a report: the key after --api-key, or what argparse takes for
    it, is left out."""
    shown: list[str] = []
    is_key = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        is_flag = len(flag) > len("--") and "--api-key".startswith(flag)
        if is_key:
            shown.append("...")
        else:
            shown.append(f"{flag}=..." if is_flag and equals else word)
        is_key = is_flag and not equals and not is_key
    return shown


def load_tokenizer(name: str | None) -> "Tokenizer":
    from baton.checkpoint.source import default_cache_dir, resolve_model
    from baton.tokenizer import load

    return load.load_tokenizer(resolve_model(name, cache_dir=default_cache_dir(os.environ)))


def _check_output(output: OutputConfig) -> None:
    check_folder("--output-file", output.output_file)
    check_folder("--html", output.html)
    if output.html is not None:
        from baton.bench.serve.plots import require_plots

        require_plots()


def check_folder(flag: str, path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}; make it first")


def _show_trace(path: Path, trace: bytes, console: "Console") -> None:
    from baton.launch.profile import print_summary
    from baton.launch.trace_file import read_trace
    from baton.obs.trace_summary import summarize

    write_file("--profile-output", path, trace)
    print_summary(summarize(read_trace(path)), console)


def _write(outcome: "Outcome", output: OutputConfig) -> None:
    if output.output_file is not None:
        write_file("--output-file", output.output_file, outcome.report.to_json())
    if output.html is not None:
        from baton.bench.serve.html import to_html

        page = to_html(outcome.report, outcome.records)
        write_file("--html", output.html, page.encode())


def write_file(flag: str, path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error}") from error
    print(f"{flag.removeprefix('--')}: {path}", file=sys.stderr)
