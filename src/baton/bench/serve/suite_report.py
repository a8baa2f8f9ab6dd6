"""What a suite found on several servers, as its JSON file has it.

Elsewhere: the loads (suite.py), one server's quantities (compare.py), the page (suite_page.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from baton.bench.machine import Machine
from baton.bench.report import Figure
from baton.bench.serve.compare import Candidate, figures_of
from baton.bench.serve.report import ServeReport
from baton.bench.serve.suite import SuiteLoad
from baton.core.errors import ConfigError


class LoadFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one server under one load. `bottlenecks` are those of the client."""

    figures: dict[str, Figure]
    bottlenecks: list[str]
    errors: dict[str, int]


class LoadCompared(msgspec.Struct, frozen=True, kw_only=True):
    """One load on all servers; `dataset` and `settings` as the last report has them."""

    about: str
    dataset: dict[str, Any]
    settings: dict[str, Any]
    servers: dict[str, LoadFigures]

    def figures(self) -> dict[str, dict[str, Figure]]:
        return {name: each.figures for name, each in self.servers.items()}


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """`server` is what it says of itself; `failure` why it has no more rounds than it has."""

    backend: str
    server: dict[str, Any]
    failure: str | None


class SuiteReport(msgspec.Struct, frozen=True, kw_only=True):
    """`left_out` servers were not tried, and why; `is_stopped`: before its
    end, by the user or whatever else."""

    benchmark: str = "suite"
    suite: str
    command: list[str]
    started_at: str
    machine: Machine
    rounds: int
    loads: dict[str, LoadCompared]
    servers: dict[str, Served]
    left_out: dict[str, str]
    is_stopped: bool = False

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def figure(self, load: str, server: str, quantity: str) -> Figure | None:
        compared = self.loads.get(load)
        measured = compared.servers.get(server) if compared is not None else None
        return measured.figures.get(quantity) if measured is not None else None

    def warnings(self) -> list[str]:
        """What is to be known before trusting the figures."""
        lines = ["stopped before its end: rounds are missing"] if self.is_stopped else []
        lines += [f"{name} was left out: {why}" for name, why in self.left_out.items()]
        for name, each in self.servers.items():
            if each.failure is not None:
                lines.append(f"{name} failed: {each.failure}")
        for load, compared in self.loads.items():
            for name, measured in compared.servers.items():
                lines += [f"{name}, {load}: {each}" for each in _doubts(measured)]
        return lines


_OTHERS_LIMIT = 0.1


def _doubts(measured: LoadFigures) -> list[str]:
    doubts = [f"{count} requests failed: {error}" for error, count in measured.errors.items()]
    if measured.bottlenecks:
        doubts.append(f"the client was the bottleneck: {measured.bottlenecks[0]}")
    others = measured.figures.get("others")
    if others is not None and others.highest > _OTHERS_LIMIT:
        doubts.append(f"others kept up to {others.highest:g} cores busy meanwhile")
    return doubts


@dataclass
class SuiteRounds:
    """What one server has done so far. A round that failed keeps the loads before the failure."""

    candidate: Candidate
    reports: dict[str, list[ServeReport]] = field(default_factory=dict)
    failure: str | None = None

    def add(self, load: str, report: ServeReport) -> None:
        self.reports.setdefault(load, []).append(report)

    def served(self) -> Served:
        last = next((each[-1] for each in self.reports.values()), None)
        return Served(
            backend=self.candidate.backend,
            server=last.server if last is not None else {},
            failure=self.failure,
        )


def compare_loads(
    loads: Sequence[SuiteLoad], done: Mapping[str, SuiteRounds]
) -> dict[str, LoadCompared]:
    """Those loads that at least one server has had."""
    found = {}
    for load in loads:
        reports = {name: each.reports.get(load.name, []) for name, each in done.items()}
        last = next((each[-1] for each in reports.values() if each), None)
        if last is not None:
            found[load.name] = LoadCompared(
                about=load.about,
                dataset=last.dataset,
                settings=last.settings,
                servers={name: _load_figures(each) for name, each in reports.items() if each},
            )
    return found


def _load_figures(reports: Sequence[ServeReport]) -> LoadFigures:
    errors: dict[str, int] = {}
    for report in reports:
        for error, count in report.requests.errors.items():
            errors[error] = errors.get(error, 0) + count
    return LoadFigures(
        figures=figures_of(reports),
        bottlenecks=[each.client.bottleneck for each in reports if each.client.bottleneck],
        errors=errors,
    )


def read_suite_report(path: Path) -> SuiteReport:
    """Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SuiteReport)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"--from-json {path} is no report of a suite: {error}") from error
