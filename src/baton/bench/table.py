"""A report in the terminal.

Elsewhere: the same as a file (Report.to_json).
"""

from rich.console import Console
from rich.table import Table

from baton.bench.report import Figure, Report

_MAX_REFERENCE_COLUMNS = 60


def print_report(report: Report, console: Console) -> None:
    """Figures, ratios and what was skipped, under a line about the machine."""
    machine = report.machine
    console.print(
        f"{machine.cpu}, {machine.cores} cores, {machine.isa}; load average "
        f"{machine.load_average_before:g} before, others kept {machine.other_cores:g} cores busy",
        highlight=False,
    )
    console.print(_figures(report.figures))
    if report.ratios:
        console.print(_ratios(report))
    for reason in dict.fromkeys(report.skipped.values()):
        names = ", ".join(name for name, each in report.skipped.items() if each == reason)
        console.print(f"left out, {reason}: {names}", highlight=False, markup=False)


def _figures(figures: dict[str, Figure]) -> Table:
    table = Table(title="medians", title_justify="left")
    table.add_column("measured", no_wrap=True)
    for heading in ("median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for name, each in figures.items():
        values = (each.median, each.lowest, each.highest)
        table.add_row(name, *(number(value) for value in values), each.unit)
    return table


def _ratios(report: Report) -> Table:
    table = Table(title="ratios, larger is better", title_justify="left")
    table.add_column("ratio", no_wrap=True)
    for heading in ("measured", "floor", "margin"):
        table.add_column(heading, justify="right")
    table.add_column("reference", max_width=_MAX_REFERENCE_COLUMNS, min_width=24)
    for name, ratio in report.ratios.items():
        margin = f"{ratio.measured / ratio.floor - 1:+.0%}"
        style = "" if ratio.holds else "bold red"
        measured, floor = f"{ratio.measured:.2f}", f"{ratio.floor:g}"
        table.add_row(name, measured, floor, margin, ratio.reference, style=style)
    return table


def number(value: float) -> str:
    """At most four significant digits, thousands apart."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
