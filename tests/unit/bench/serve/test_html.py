"""The page of a report: every plot, nothing that can run, text that stays text."""

import re

from baton.bench.machine import Machine
from baton.bench.serve.cpu_use import CpuUse
from baton.bench.serve.html import to_html
from baton.bench.serve.metrics import attainment, latencies, parse_limits, rates, summarize
from baton.bench.serve.plots import draw_plots
from baton.bench.serve.records import Record
from baton.bench.serve.report import Client, Requests, ServeReport

GOOD = [
    Record(each, 0, each, each, each + 1.0, [each + 0.2, each + 0.5, each + 0.9], 10, num_output=3)
    for each in range(4)
]
BAD = Record(4, 0, 4.0, 4.0, 4.1, error="<script>alert(1)</script>")
LIMITS = parse_limits(["ttft:500", "itl:350"])


def report(records: list[Record]) -> ServeReport:
    return ServeReport(
        command=["baton", "bench", "serve", "--model", "<b>bold</b>"],
        started_at="2026-01-01T00:00:00+00:00",
        machine=Machine(
            cpu="a processor",
            cores=2,
            memory_bytes=1,
            last_level_cache_bytes=1,
            isa="",
            available_isas=[],
            system="",
            python="",
            versions={},
            load_average_before=0.0,
            other_cores=0.0,
        ),
        server={"url": "http://x", "model": "<b>bold</b>"},
        settings={"seed": 1},
        dataset={"sessions": 5, "source": "random", "left_out": 0},
        requests=Requests(
            planned=5, succeeded=4, failed=1, errors={BAD.error or "": 1}, counted_by={"server": 4}
        ),
        latencies=latencies(records),
        rates=rates(records),
        limits=LIMITS,
        attainment=attainment(records, LIMITS),
        cpu=CpuUse(
            cores=2,
            client_cores=0.1,
            server_cores=1.5,
            machine_cores=1.9,
            other_cores=0.3,
            num_server_processes=3,
            num_server_processes_ended=0,
        ),
        client=Client(lateness_ms=summarize([1.0]), wake_ms=None, bottleneck="too slow"),
    )


def test_every_plot_is_drawn() -> None:
    plots = draw_plots([*GOOD, BAD], LIMITS)
    assert set(plots) == {
        "Time to first token (TTFT)",
        "End to end (E2E)",
        "TTFT by time of sending",
        "Running requests",
        "Output tokens per second",
        "Between tokens (ITL)",
        "p99 ITL of each request",
    }
    assert all(each.startswith("<svg") and each.endswith("</svg>\n") for each in plots.values())
    assert "limit 500 ms" in plots["Time to first token (TTFT)"]


def test_whole_answers_have_no_gaps_to_plot() -> None:
    whole = [Record(0, 0, 0.0, 0.0, 1.0, [], 10, num_output=3)]
    assert "Between tokens (ITL)" not in draw_plots(whole, [])
    assert draw_plots([BAD], []) == {}


def test_the_page_escapes_what_servers_and_users_say() -> None:
    page = to_html(report([*GOOD, BAD]), [*GOOD, BAD])
    assert "<script" not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "The client was the bottleneck: too slow" in page
    assert page.count("<svg") == 7
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "default-src 'none'" in page


def test_a_page_without_a_success() -> None:
    page = to_html(report([BAD]), [BAD])
    assert "<svg" not in page
    assert "&lt;script&gt;" in page
