"""`baton bench`: measure kernels, engine, KV transfer and router, and servers over HTTP.

Invariant: what is printed is what the JSON file says; a missed floor is shown, not an error.
Elsewhere: the benchmarks (baton/bench), other engines' scripts (benchmarks/peers), load on a
server (bench_serve.py).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from baton.bench.config import (
    EngineBenchConfig,
    KernelBenchConfig,
    RouterBenchConfig,
    TransferBenchConfig,
)
from baton.checkpoint.source import default_cache_dir, resolve_model
from baton.core.errors import ConfigError
from baton.launch.bench_compare import add_compare_parser, run_compare
from baton.launch.bench_serve import add_serve_parser, run_serve
from baton.launch.flags import add_flags, from_args

if TYPE_CHECKING:  # both bring torch, which --help does not need
    from baton.bench.peers import Peers
    from baton.bench.report import Report

_EXAMPLES = """\
examples:
  baton bench kernels                      the C++ kernels against torch's and the machine's limits
  baton bench kernels --json kernels.json
  baton bench engine --model-path MODEL    whole steps of the engine, and other engines if installed
  baton bench engine --peers peers.json    compare with figures taken before
  baton bench transfer                     KV blocks into another process, over every backend
  baton bench router                       Baton's router beside sglang-router, over instant workers
  baton bench serve --request-rate 2       load on a running server, any that speaks OpenAI's API
  baton bench compare --max-concurrency 8  the same load on Baton and other servers, in turn

other engines are installed by benchmarks/peers, into PEERS_DIR (default: build/peers)
"""
_PEERS_DRIVER: Final = Path("benchmarks/peers/run_all.py")


@dataclass(frozen=True)
class _Output:
    json: Path | None = field(default=None, metadata={"help": "write the report here, too"})


@dataclass(frozen=True)
class _Peers:
    peers: Path | None = field(
        default=None, metadata={"help": "figures of other engines, taken before by run_all.py"}
    )
    peers_dir: Path = field(
        default=Path("build/peers"),
        metadata={"help": "where other engines are installed", "env": "PEERS_DIR"},
    )
    peer_repetitions: int = field(
        default=3, metadata={"help": "samples of every other engine's figures", "minimum": 3}
    )


def main(argv: Sequence[str]) -> int | None:
    # Two pools of threads take turns on the same cores: those that wait must not spin. Read when
    # torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = _parser().parse_args(argv)
    if flags.benchmark in _SERVERS:
        return _SERVERS[flags.benchmark](flags, argv)
    report = _BENCHMARKS[flags.benchmark](flags)
    _publish(report, from_args(_Output, flags))
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baton bench",
        description="Measure kernels, engine, KV transfer or router, or a running server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    kernels = benchmarks.add_parser("kernels", help="the C++ kernels, one by one")
    add_flags(kernels, KernelBenchConfig, _Output)
    engine = benchmarks.add_parser("engine", help="whole steps of the engine")
    add_flags(engine, EngineBenchConfig, _Peers, _Output)
    transfer = benchmarks.add_parser("transfer", help="KV blocks into another process")
    add_flags(transfer, TransferBenchConfig, _Output)
    router = benchmarks.add_parser("router", help="the router, beside SGLang's")
    add_flags(router, RouterBenchConfig, _Output)
    add_serve_parser(benchmarks)
    add_compare_parser(benchmarks)
    return parser


def _kernels(flags: argparse.Namespace) -> "Report":
    from baton.bench.bench_kernels import bench_kernels

    return bench_kernels(from_args(KernelBenchConfig, flags))


def _engine(flags: argparse.Namespace) -> "Report":
    from baton.bench.bench_engine import bench_engine
    from baton.bench.peers import read_peers

    config = from_args(EngineBenchConfig, flags)
    source = from_args(_Peers, flags, environ=os.environ)
    given = read_peers(source.peers) if source.peers is not None else None
    model_path = resolve_model(config.model_path, cache_dir=default_cache_dir(os.environ))

    def peers() -> "Peers | str":
        return given if given is not None else run_peers(source.peers_dir, source.peer_repetitions)

    peers_from = "this run" if source.peers is None else f"before, {source.peers.name}"
    return bench_engine(config, model_path, peers, peers_from)


def _transfer(flags: argparse.Namespace) -> "Report":
    from baton.bench.bench_transfer import bench_transfer

    return bench_transfer(from_args(TransferBenchConfig, flags))


def _router(flags: argparse.Namespace) -> "Report":
    from baton.bench.bench_router import bench_router

    return bench_router(from_args(RouterBenchConfig, flags))


_BENCHMARKS: "Final[dict[str, Callable[[argparse.Namespace], Report]]]" = {
    "kernels": _kernels,
    "engine": _engine,
    "transfer": _transfer,
    "router": _router,
}


_SERVERS: Final = {"serve": run_serve, "compare": run_compare}
"""Those that have reports of their own."""


def run_peers(peers_dir: Path, repetitions: int) -> "Peers | str":
    """Measure the engines that are installed in `peers_dir`, or say why none were."""
    from baton.bench.peers import read_peers

    if not peers_dir.is_dir():
        return f"no other engines are installed in {peers_dir} (see benchmarks/peers)"
    if not _PEERS_DRIVER.exists():
        return f"{_PEERS_DRIVER} is not here; run from Baton's repository"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peers.json"
        command = [sys.executable, str(_PEERS_DRIVER), "--json", str(path)]
        command.append(f"--repetitions={repetitions}")
        environ = {**os.environ, "PEERS_DIR": str(peers_dir.resolve())}
        environ.pop("OMP_WAIT_POLICY", None)  # theirs to choose
        status = subprocess.run(command, env=environ, stdout=sys.stderr, check=False).returncode
        if not path.exists():  # it writes what it has even when one of the engines fails
            return f"{_PEERS_DRIVER} ended with exit status {status}, without figures"
        return read_peers(path)


def _publish(report: "Report", output: _Output) -> None:
    from rich.console import Console

    from baton.bench.table import print_report

    print_report(report, Console())
    if output.json is not None:
        try:
            output.json.write_bytes(report.to_json())
        except OSError as error:
            raise ConfigError(f"--json {output.json} cannot be written: {error}") from error
