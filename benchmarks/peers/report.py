"""The one JSON object that every run script prints, and how figures become medians.

    {"engine", "version", "format", "threads", "method", "repetitions", "other_cores", "answer",
     "prefill_tokens_per_s": {"512": median, "2048": median},
     "decode_tokens_per_s": {"1": median, "16": median},
     "spread": {"prefill_tokens_per_s": {"lowest": {"512": ...}, "highest": {...}}, ...}}

Standard library only (see workload.py).
"""

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import DEFAULT_REPETITIONS, NUM_THREADS, pin_to_cores

Samples = Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class Engine:
    """What was measured. `answer` is its continuation of QUESTION (workload.py), to see that it
    computes the model rather than something faster; None where the interface takes no text."""

    name: str
    version: str
    format: str
    method: str
    answer: str | None = None


def summarize(
    engine: Engine, prefill: Samples, decode: Samples, *, other_cores: float | None
) -> dict[str, Any]:
    """The report of one engine. `prefill` maps prompt tokens, `decode` streams, to the tokens/s
    of each repetition; `other_cores` is what else ran meanwhile (other_load.py),
    None when unknown."""
    samples = {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}
    return {
        "engine": engine.name,
        "version": engine.version,
        "format": engine.format,
        "threads": NUM_THREADS,
        **{name: _each(statistics.median, each) for name, each in samples.items()},
        "spread": {
            name: {"lowest": _each(min, each), "highest": _each(max, each)}
            for name, each in samples.items()
        },
        "method": engine.method,
        "repetitions": max(len(each) for each in (*prefill.values(), *decode.values())),
        "other_cores": None if other_cores is None else round(other_cores, 2),
        "answer": engine.answer,
    }


def _each(reduce: Any, samples: Samples) -> dict[str, float]:
    return {str(size): round(float(reduce(values)), 1) for size, values in samples.items()}


def run_script_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every run script has."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, default=None, help="write here instead of stdout")
    parser.add_argument("--repetitions", type=_at_least_3, default=DEFAULT_REPETITIONS)
    return parser


def _at_least_3(text: str) -> int:
    if (number := int(text)) < 3:
        raise argparse.ArgumentTypeError(f"{number} repetitions have no median; try 3")
    return number


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the flags and pin this process to the cores of the comparison. From here on SIGTERM
    unwinds the stack, so that a server that was started is stopped too."""
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    pin_to_cores()
    return flags


def emit(report: Mapping[str, Any], path: Path | None) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if path is None:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")
