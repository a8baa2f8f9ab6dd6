"""The same load on several servers, in turn, several times: what is compared, and how it adds up.

Every round takes every server, every other round backwards; a server is started afresh for each, so
that no prefix cache has seen the prompts, and the rounds' prompts differ. Figures are medians over
the rounds with the lowest and highest.

Elsewhere: starting servers (peer_server.py), a load (bench_serve.py), the page (compare_table.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast, get_args

import msgspec

from baton.bench.machine import Machine
from baton.bench.report import Figure, figure
from baton.bench.serve.config import BackendName
from baton.bench.serve.report import ServeReport
from baton.core.errors import ConfigError


@dataclass(frozen=True)
class Candidate:
    """One server. `script`, with the port and `arguments` after it, starts it; None where it runs
    already, at `url`."""

    name: str
    backend: BackendName
    script: str | None = None
    arguments: tuple[str, ...] = ()
    url: str | None = None


KNOWN: Final = {
    each.name: each
    for each in (
        Candidate("baton-adaptive", "sglang", "baton-adaptive.sh"),
        Candidate("baton-pd", "sglang", "baton-pd.sh"),
        Candidate("baton-unified", "sglang", "baton-unified.sh"),
        Candidate("llama.cpp", "llama.cpp", "llama.cpp.sh"),
        Candidate("vllm-512", "vllm", "vllm.sh", ("512",)),
        Candidate("vllm-128", "vllm", "vllm.sh", ("128",)),
        Candidate("vllm-pd", "vllm", "vllm-pd.sh"),
        Candidate("openvino", "vllm", "openvino.sh", ("128",)),
    )
}

_QUANTITIES: Final = {
    "TTFT mean": ("ms", "latencies.ttft_ms.mean"),
    "TTFT p50": ("ms", "latencies.ttft_ms.p50"),
    "TTFT p99": ("ms", "latencies.ttft_ms.p99"),
    "ITL p50": ("ms", "latencies.itl_ms.p50"),
    "ITL p99": ("ms", "latencies.itl_ms.p99"),
    "TPOT p50": ("ms", "latencies.tpot_ms.p50"),
    "E2E p50": ("ms", "latencies.e2el_ms.p50"),
    "E2E p99": ("ms", "latencies.e2el_ms.p99"),
    "requests": ("1/s", "rates.requests_per_s"),
    "output": ("tokens/s", "rates.output_tokens_per_s"),
    "goodput": ("1/s", "attainment.goodput_per_s"),
    "limits met": ("share", "attainment.all_limits"),
    "sustained": ("sessions", "sustained_sessions"),
    "failed": ("requests", "requests.failed"),
    "server": ("cores", "cpu.server_cores"),
    "utilization": ("share", "cpu.server_share"),
    "others": ("cores", "cpu.other_cores"),
}
"""What is shown of each server: unit, and where a ServeReport has it."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`failure` says why a server has no more rounds than it has. `bottlenecks` are those of the
    client."""

    backend: str
    server: dict[str, Any]
    figures: dict[str, Figure]
    bottlenecks: list[str]
    failure: str | None


class CompareReport(msgspec.Struct, frozen=True, kw_only=True):
    """As the JSON file has it. `is_stopped`: the user ended it, and the round that ran is left
    out."""

    benchmark: str = "compare"
    command: list[str]
    started_at: str
    machine: Machine
    rounds: int
    settings: dict[str, Any]
    servers: dict[str, Compared]
    is_stopped: bool = False

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


@dataclass
class Rounds:
    """What one server has done so far."""

    candidate: Candidate
    reports: list[ServeReport] = field(default_factory=list)
    failure: str | None = None

    def compared(self) -> Compared:
        return Compared(
            backend=self.candidate.backend,
            server=self.reports[-1].server if self.reports else {},
            figures=figures_of(self.reports),
            bottlenecks=[each.client.bottleneck for each in self.reports if each.client.bottleneck],
            failure=self.failure,
        )


def parse_candidates(words: Sequence[str]) -> list[Candidate]:
    """Of names in KNOWN, and of NAME=BACKEND@URL for servers that run. Raises ConfigError."""
    found: dict[str, Candidate] = {}
    for word in words:
        candidate = KNOWN.get(word) or _running(word)
        if candidate.name in found:
            raise ConfigError(f"--servers names {candidate.name} twice; leave one")
        found[candidate.name] = candidate
    return list(found.values())


def turns(candidates: Sequence[Candidate], rounds: int) -> list[tuple[int, Candidate]]:
    """Every server in every round, every other round backwards: none always follows the same."""
    return [
        (number, candidate)
        for number in range(rounds)
        for candidate in (candidates if number % 2 == 0 else reversed(candidates))
    ]


def figures_of(reports: Sequence[ServeReport]) -> dict[str, Figure]:
    """Each quantity that every report has, over the reports."""
    found: dict[str, Figure] = {}
    for name, (unit, place) in _QUANTITIES.items():
        samples = [_value(report, place) for report in reports]
        known = [float(each) for each in samples if each is not None]
        if known and len(known) == len(reports):
            found[name] = figure(known, unit)
    return found


def _value(report: ServeReport, place: str) -> float | None:
    value: Any = report
    for name in place.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    return cast("float | None", value)


def _running(word: str) -> Candidate:
    name, _, rest = word.partition("=")
    backend, _, url = rest.partition("@")
    backends = get_args(BackendName)
    if not name or not url or backend not in backends:
        raise ConfigError(
            f"--servers {word!r} is none of {', '.join(KNOWN)}, nor NAME=BACKEND@URL with a backend"
            f" of {', '.join(backends)}"
        )
    return Candidate(name, cast("BackendName", backend), url=url)
