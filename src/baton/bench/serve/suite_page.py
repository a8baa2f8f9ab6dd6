"""A suite's report as a Markdown page with plots beside it.

Pure. Invariant: the page follows from the report and from what stands by hand between MARKS in the
page before it, which is kept word for word.
Elsewhere: the claims (claims.py), plots (bars.py), the same in a terminal (compare_table.py).
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from baton.bench.report import Figure
from baton.bench.serve.bars import bars, with_spread
from baton.bench.serve.claims import (
    CLAIMS,
    OURS,
    UNIFIED,
    Claim,
    Measure,
    Verdict,
    beside_best_peer,
    beside_unified,
)
from baton.bench.serve.suite_report import SuiteReport

MARKS: Final = ("<!-- by hand, kept: begin -->", "<!-- by hand, kept: end -->")

_OWN: Final = frozenset((*OURS, UNIFIED))
_INTRODUCTION: Final = """\
# Benchmarks: goals and what is measured

This page is written by one command (below), which starts every server, puts every load on it and
writes what it saw. Only the section *What bounds it* is written by hand.

What an article on serving with prefill and decode apart claims stands in the column of that name:
it was not measured here. Goals are Baton's own. All other columns were measured: medians over the
rounds, with the lowest and highest, both servers on the same processors with the same requests in
the same sitting. *Measured* is the median of the rounds' own ratios, above 1 where Baton is better.
Of the other engines the one stands there that Baton compares worst with."""


def hand_written(page: str) -> str:
    """What stands between MARKS in `page`; empty where they are not there."""
    _, begin, rest = page.partition(MARKS[0])
    kept, end, _ = rest.partition(MARKS[1])
    return kept.strip("\n") if begin and end else ""


def to_page(report: SuiteReport, kept: str, plots: Mapping[str, str]) -> str:
    """`kept` is what stands by hand; `plots` are titles by the paths of their files from the
    page."""
    parts = [
        _INTRODUCTION,
        "## Beside the best other engine",
        _verdicts(beside_best_peer(report)),
        "## Beside Baton with prefill and decode in one engine",
        _verdicts(beside_unified(report)),
        "## What bounds it",
        "\n".join(part for part in (MARKS[0], kept, MARKS[1]) if part),
        "## All servers",
        "\n\n".join(f"![{title}]({path})" for path, title in plots.items()),
        *_loads(report),
        "## How it was measured",
        _how(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plots_of(report: SuiteReport) -> dict[str, tuple[str, str]]:
    """Title and SVG text by file name, one for each claim that was measured."""
    found = {}
    for claim in CLAIMS:
        figures = {
            name: figure
            for name in report.servers
            if (figure := report.figure(claim.load, name, claim.quantity)) is not None
        }
        if figures:
            title = f"{_quantity(claim, next(iter(figures.values())))}, load: {claim.load}"
            found[_file_name(claim)] = (title, bars(title, figures, _OWN))
    return found


def _file_name(claim: Claim) -> str:
    return f"{claim.load}-{claim.quantity.replace(' ', '-').lower()}.svg"


def _quantity(claim: Claim, figure: Figure) -> str:
    return f"{claim.title}, {figure.unit}"


VERDICT_COLUMNS: Final = (
    *("", "load", "Baton", "the other", "measured", "goal", "reached", "article's claim"),
)


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "Not measured."
    return table(VERDICT_COLUMNS, [verdict_cells(each) for each in verdicts])


def verdict_cells(verdict: Verdict) -> list[str]:
    """What, under which load, both figures, what follows, the goal, whether it is reached, and the
    claim."""
    claim = verdict.claim
    return [
        _quantity(claim, verdict.our_figure),
        claim.load,
        f"{verdict.ours}: {with_spread(verdict.our_figure)}",
        f"{verdict.theirs}: {with_spread(verdict.their_figure)}",
        _measured(verdict),
        verdict.goal.text,
        "yes" if verdict.is_reached else "no",
        claim.article,
    ]


def _measured(verdict: Verdict) -> str:
    measure = verdict.claim.measure
    median, *spread = (
        _value(measure, each) for each in (verdict.median, verdict.lowest, verdict.highest)
    )
    if min(len(verdict.our_figure.samples), len(verdict.their_figure.samples)) == 1:
        return median + _UNITS[measure]
    return f"{median} ({' to '.join(spread)}){_UNITS[measure]}"


_UNITS: Final = {
    Measure.TIMES_LESS: " x",
    Measure.TIMES_MORE: " x",
    Measure.OWN_SHARE: " %",
}


def _value(measure: Measure, value: float) -> str:
    if math.isinf(value):
        return "∞"
    if measure is Measure.OWN_SHARE:
        return f"{value * 100:.0f}"
    return f"{value:.2f}"


def _loads(report: SuiteReport) -> Iterator[str]:
    for name, compared in report.loads.items():
        yield f"### {name}"
        yield f"{compared.about[:1].upper()}{compared.about[1:]}."
        figures = compared.figures()
        quantities = {
            quantity: figure.unit for each in figures.values() for quantity, figure in each.items()
        }
        yield table(
            ("", *figures),
            [
                [f"{quantity}, {unit}", *(_cell(each.get(quantity)) for each in figures.values())]
                for quantity, unit in quantities.items()
            ],
        )


def _cell(figure: Figure | None) -> str:
    return "-" if figure is None else with_spread(figure)


def _how(report: SuiteReport) -> str:
    machine = report.machine
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    sources = dict.fromkeys(str(each.dataset.get("source")) for each in report.loads.values())
    rounds = f"{report.rounds}, stopped before their end" if report.is_stopped else report.rounds
    lines = [
        f"    {shlex.join(report.command)}",
        "",
        f"Begun {report.started_at} on {machine.cpu}, {machine.cores} cores, {memory}, "
        f"{machine.system}; rounds: {rounds}, in each every server once, every other round"
        " backwards, started afresh, all loads one after another. Rounds and loads send different"
        " prompts, all servers the same. The client runs on the same cores. Every figure is"
        " defined in [benchmarking.md](benchmarking.md).",
        "",
        f"What is sent: {'; '.join(sources)}.",
        "",
        table(
            ("server", "version", "settings it tells"),
            [_server(name, each.server) for name, each in report.servers.items()],
        ),
        "",
        "Versions here: "
        + ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        + f", Python {machine.python}.",
    ]
    warnings = report.warnings()
    if warnings:
        lines += ["", "To be known before trusting it:", ""]
        lines += [f"- {_one_line(each)}" for each in warnings]
    return "\n".join(lines)


def _server(name: str, facts: Mapping[str, object]) -> list[str]:
    version = facts.get("version", facts.get("build_info", "not told"))
    shown = ("disaggregation_mode", "chunked_prefill_size", "max_running_requests")
    settings = ", ".join(f"{each} {facts[each]}" for each in shown if each in facts)
    return [name, str(version), settings or "none"]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; the cells' bars are escaped."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
