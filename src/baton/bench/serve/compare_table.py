"""The comparison on one page of the terminal, and that of a suite, a table for each load.

Elsewhere: the same as a file (CompareReport.to_json), a suite's page (suite_page.py).
"""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from baton.bench.report import Figure
from baton.bench.serve.claims import beside_best_peer, beside_unified
from baton.bench.serve.compare import CompareReport
from baton.bench.serve.suite_page import VERDICT_COLUMNS, verdict_cells
from baton.bench.serve.suite_report import SuiteReport
from baton.bench.table import number

_OTHERS_LIMIT = 0.1


def print_comparison(report: CompareReport, console: Console) -> None:
    """Figures as rows, servers as columns; below, what is to be known before trusting them."""
    machine = report.machine
    console.print(
        f"{machine.cpu}, {machine.cores} cores; {report.rounds} rounds, every server afresh in"
        " each; medians, under them the lowest and highest",
        highlight=False,
        markup=False,
    )
    console.print(_figures({name: each.figures for name, each in report.servers.items()}))
    for line in _warnings(report):
        console.print(line, style="red", highlight=False, markup=False)


def print_suite(report: SuiteReport, console: Console) -> None:
    """A table for each load, then what is measured beside the goals."""
    for name, compared in report.loads.items():
        console.print(f"{name}: {compared.about}", highlight=False, markup=False)
        console.print(_figures(compared.figures()))
    table = Table(title="beside the goals", title_justify="left")
    for heading in VERDICT_COLUMNS:
        table.add_column(heading, overflow="fold")
    for verdict in (*beside_best_peer(report), *beside_unified(report)):
        table.add_row(*verdict_cells(verdict), style="" if verdict.is_reached else "red")
    if table.row_count:
        console.print(table)
    for line in report.warnings():
        console.print(line, style="red", highlight=False, markup=False)


def _figures(servers: Mapping[str, Mapping[str, Figure]]) -> Table:
    table = Table()
    table.add_column("", no_wrap=True)
    for name in servers:
        table.add_column(name, justify="right", overflow="fold")
    names = dict.fromkeys(name for each in servers.values() for name in each)
    for name in names:
        figures = [each.get(name) for each in servers.values()]
        unit = next(each.unit for each in figures if each is not None)
        table.add_row(f"{name}, {unit}", *(_cell(each) for each in figures))
    return table


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if len(figure.samples) == 1:
        return number(figure.median)
    return f"{number(figure.median)}\n{number(figure.lowest)}-{number(figure.highest)}"


def _warnings(report: CompareReport) -> list[str]:
    lines = ["stopped: the round that ran is left out"] if report.is_stopped else []
    for name, each in report.servers.items():
        if each.failure is not None:
            lines.append(f"{name} failed: {each.failure}")
        if each.bottlenecks:
            lines.append(f"{name}: the client was the bottleneck: {each.bottlenecks[0]}")
        others = each.figures.get("others")
        if others is not None and others.highest > _OTHERS_LIMIT:
            lines.append(f"{name}: others kept up to {others.highest:g} cores busy meanwhile")
    return lines
