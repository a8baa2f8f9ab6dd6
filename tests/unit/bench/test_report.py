"""The arithmetic of figures and ratios, and what a report looks like as JSON and in a terminal."""

import io

import msgspec
import pytest
from rich.console import Console

from baton.bench.machine import Machine
from baton.bench.report import Findings, Ratio, Report, figure, paired_ratio
from baton.bench.table import number, print_report

MACHINE = Machine(
    cpu="a processor",
    cores=2,
    memory_bytes=1 << 30,
    last_level_cache_bytes=32 << 20,
    isa="avx2",
    available_isas=["avx2", "portable"],
    system="Linux",
    python="3.11",
    versions={"baton": "0"},
    load_average_before=0.5,
    other_cores=0.1,
)


def report_of(findings: Findings) -> Report:
    return Report(
        benchmark="kernels",
        machine=MACHINE,
        settings={"rounds": 3},
        figures=findings.figures,
        ratios=findings.ratios,
        skipped=findings.skipped,
    )


def test_a_figure_has_median_and_spread_and_keeps_the_order_of_samples() -> None:
    made = figure([3.0, 1.0, 20.0], "GB/s")
    assert (made.median, made.lowest, made.highest) == (3.0, 1.0, 20.0)
    assert made.samples == [3.0, 1.0, 20.0]
    assert figure([1.0, 2.0], "GB/s").median == 1.5


def test_a_ratio_pairs_the_samples_of_a_round() -> None:
    """The machine is ten times as slow in two of the rounds; the medians alone would say 20."""
    ours, theirs = [200.0, 20.0, 200.0], [100.0, 10.0, 10.0]
    assert paired_ratio(ours, theirs) == 2.0


def test_the_strictest_rival_is_chosen_by_pairs_too() -> None:
    """`steady` has the higher median, yet `paired` is nearer in the median round."""
    findings = Findings()
    findings.add("ours", [10.0, 1.0, 10.0], "GB/s")
    findings.add("steady", [6.0, 6.0, 6.0], "GB/s")
    findings.add("paired", [9.0, 0.9, 0.9], "GB/s")
    assert findings.strictest("ours", ["steady", "paired"]) == "paired"


def test_rounds_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("measured", "holds"), [(0.84, False), (0.85, True), (1.2, True)])
def test_a_ratio_holds_from_its_floor_on(measured: float, holds: bool) -> None:
    assert Ratio(measured=measured, floor=0.85, reference="").holds is holds


def test_a_comparison_with_what_is_not_installed_is_left_out_with_the_reason() -> None:
    findings = Findings(skipped={"theirs": "no FBGEMM"})
    findings.add("ours", [1.0], "GOP/s")
    findings.compare("ratio", "ours", "theirs", 0.85, "FBGEMM")
    assert findings.ratios == {}
    assert findings.skipped == {"theirs": "no FBGEMM", "ratio": "no FBGEMM"}


def test_json_has_ratios_with_floor_and_reference_and_reads_back() -> None:
    findings = Findings(skipped={"other": "why"})
    findings.add("ours", [4.0, 2.0, 3.0], "GOP/s")
    findings.add("theirs", [2.0, 1.0, 2.0], "GOP/s")
    findings.compare("ours_vs_theirs", "ours", "theirs", 0.85, "theirs")
    report = report_of(findings)
    content = msgspec.json.decode(report.to_json())
    assert content["ratios"] == {
        "ours_vs_theirs": {"measured": 2.0, "floor": 0.85, "reference": "theirs"}
    }
    assert content["figures"]["ours"]["samples"] == [4.0, 2.0, 3.0]
    assert content["skipped"] == {"other": "why"}
    assert content["machine"]["isa"] == "avx2"
    assert msgspec.json.decode(report.to_json(), type=Report) == report


def test_a_table_shows_every_figure_ratio_and_omission() -> None:
    findings = Findings(skipped={"first": "a [bold] reason", "second": "a [bold] reason"})
    findings.add("speed", [1234.5], "tokens/s")
    findings.claim("short", 0.5, 1.0, "what it is held against")
    out = io.StringIO()
    print_report(report_of(findings), Console(file=out, width=120, color_system=None))
    text = out.getvalue()
    for expected in ("a processor", "speed", "1,234", "short", "-50%", "what it is held against"):
        assert expected in text
    assert "left out, a [bold] reason: first, second" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.97123, "0.9712"), (12.345, "12.35"), (999.9, "999.9"), (45678.9, "45,679")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
