"""Measure every installed peer, one after the other, on the same cores, into one JSON list.

    PEERS_DIR=... python benchmarks/peers/run_all.py --json FILE [--only NAME ...]

A peer that fails leaves its error in the list, and the others still run; the exit code is then 1.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workload import DEFAULT_REPETITIONS, peers_dir

_HERE: Final = Path(__file__).resolve().parent
_THIS_PYTHON: Final = sys.executable


@dataclass(frozen=True)
class Run:
    """One run script with its flags. `installed` is what its install script leaves behind."""

    name: str
    script: str
    flags: tuple[str, ...]
    installed: str
    python: str = _THIS_PYTHON


def all_runs(root: Path) -> list[Run]:
    """Every combination of the comparison; llama.cpp's binary and the environments are under
    `root`."""
    bench = "llama_cpp/build/bin/llama-bench"
    tools = [
        Run(f"llama.cpp-{each}", "run_llama_cpp.py", ("--format", each), bench)
        for each in ("Q4_1", "Q4_0", "Q8_0", "BF16")
    ]
    http = [
        Run(f"llama.cpp-{each}-http", "run_llama_cpp.py", ("--format", each, "--over=http"), bench)
        for each in ("Q4_1", "Q4_0", "Q8_0")
    ]
    vllm = Run("vllm-bf16", "run_vllm.py", (), "vllm/bin/python")
    python = "openvino/bin/python"
    openvino = [
        Run(f"openvino-{each}", "run_openvino.py", ("--format", each), python, str(root / python))
        for each in ("Q8_0", "Q4_0")
    ]
    return [*tools, *http, vllm, *openvino]


def perform(run: Run, repetitions: int) -> dict[str, Any]:
    """The report of one run, or its error."""
    command = [run.python, str(_HERE / run.script), *run.flags, f"--repetitions={repetitions}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate()
        except BaseException:  # also SIGTERM and Ctrl-C: it has a server to stop, so not SIGKILL
            process.terminate()
            raise
    if process.returncode:
        return {"name": run.name, "error": errors[-2000:]}
    # Libraries may write to stdout as well; the report is what begins at the last line "{".
    _, _, report = ("\n" + output).rpartition("\n{\n")
    return {"name": run.name, **json.loads("{" + report)}


def main(arguments: Sequence[str] | None = None) -> int:
    runs = all_runs(peers_dir())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=DEFAULT_REPETITIONS)
    parser.add_argument("--only", nargs="+", choices=[run.name for run in runs], default=None)
    flags = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    reports: list[dict[str, Any]] = []
    for run in runs:
        if flags.only is not None and run.name not in flags.only:
            continue
        if not (peers_dir() / run.installed).exists():
            print(f"{run.name}: not installed", file=sys.stderr)
            continue
        report = perform(run, flags.repetitions)
        reports.append(report)
        flags.json.write_text(json.dumps(reports, indent=2, ensure_ascii=False) + "\n")
        print(f"{run.name}: {_line(report)}", file=sys.stderr)
    return int(not reports or any("error" in each for each in reports))


def _line(report: dict[str, Any]) -> str:
    if "error" in report:
        return f"failed: {report['error'].strip().splitlines()[-1:]}"
    prefill, decode = report["prefill_tokens_per_s"], report["decode_tokens_per_s"]
    others = report["other_cores"]
    return f"prefill {prefill}, decode {decode} tokens/s; others took {others} cores"


if __name__ == "__main__":
    sys.exit(main())
