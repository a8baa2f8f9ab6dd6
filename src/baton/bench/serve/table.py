"""The report in the terminal.

Elsewhere: the same as a file (report.py), with plots (html.py).
"""

from rich.console import Console
from rich.table import Table

from baton.bench.serve.metrics import Summary
from baton.bench.serve.report import ServeReport, Step
from baton.bench.table import number

_COLUMNS = ("mean", "p50", "p90", "p99", "highest")


def print_serve_report(report: ServeReport, console: Console) -> None:
    machine, dataset = report.machine, report.dataset
    lines = [
        f"{report.server['url']}, {report.server['model']}; client on {machine.cpu},"
        f" {machine.cores} cores, load average {machine.load_average_before:g} before",
        f"{dataset['sessions']} sessions of {dataset['source']}"
        + (f", {dataset['left_out']} longer ones left out" if dataset["left_out"] else ""),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if report.steps is not None:
        console.print(_steps(report.steps))
        console.print(
            f"sustained: {report.sustained_sessions} sessions at a time; below, that step",
            highlight=False,
        )
    console.print(_latencies(report))
    console.print(_rates(report))
    if report.attainment is not None:
        console.print(_limits(report))
    for error, count in report.requests.errors.items():
        console.print(f"{count} failed: {error}", style="red", highlight=False, markup=False)
    if report.is_stopped:
        console.print("stopped: what ran at that moment is left out", style="red", highlight=False)
    if report.client.bottleneck is not None:
        console.print(
            f"THE CLIENT WAS THE BOTTLENECK: {report.client.bottleneck}. These figures are not the"
            " server's alone.",
            style="bold red",
            highlight=False,
            markup=False,
        )


def _latencies(report: ServeReport) -> Table:
    table = Table(title="latency, ms", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    rows = {
        "time to first token (TTFT)": report.latencies.ttft_ms,
        "between tokens (ITL)": report.latencies.itl_ms,
        "per output token (TPOT)": report.latencies.tpot_ms,
        "end to end (E2E)": report.latencies.e2el_ms,
        "client: sent late by": report.client.lateness_ms,
        "client: woke late by": report.client.wake_ms,
    }
    for name, summary in rows.items():
        table.add_row(name, *_cells(summary))
    return table


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["-"] * len(_COLUMNS)
    return [number(float(getattr(summary, name))) for name in _COLUMNS]


def _rates(report: ServeReport) -> Table:
    table = Table(title="throughput and load", title_justify="left", show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right")
    rates, cpu, requests = report.rates, report.cpu, report.requests
    table.add_row("requests", f"{requests.succeeded} of {requests.planned} succeeded")
    table.add_row("duration, s", number(rates.duration_s))
    table.add_row("requests/s", number(rates.requests_per_s))
    table.add_row("input tokens/s", number(rates.input_tokens_per_s))
    table.add_row("output tokens/s", number(rates.output_tokens_per_s))
    if rates.cached_input_tokens is not None:
        share = rates.cached_input_tokens / max(1, rates.total_input_tokens)
        table.add_row("input from the prefix cache", f"{share:.1%}")
    table.add_row("mean running requests", number(rates.mean_running))
    table.add_row("output tokens counted by", ", ".join(requests.counted_by) or "-")
    table.add_row("cores busy: client", f"{cpu.client_cores:.2f}")
    if cpu.server_cores is not None:
        ended = cpu.num_server_processes_ended
        note = f" ({ended} of its processes ended meanwhile)" if ended else ""
        table.add_row("cores busy: server", f"{cpu.server_cores:.2f}{note}")
    if cpu.other_cores is not None:
        table.add_row("cores busy: others", f"{cpu.other_cores:.2f}")
    table.add_row("cores busy: machine", f"{cpu.machine_cores:.2f} of {cpu.cores}")
    return table


def _limits(report: ServeReport) -> Table:
    kept = report.attainment
    assert kept is not None
    table = Table(title="limits", title_justify="left")
    table.add_column("limit", no_wrap=True)
    table.add_column("met by", justify="right")
    for limit in report.limits:
        table.add_row(f"{limit.name} {limit.most_ms:g} ms", f"{kept.by_limit[limit.name]:.1%}")
    table.add_row("all of them", f"{kept.all_limits:.1%}")
    table.add_row("goodput, requests/s", number(kept.goodput_per_s))
    return table


def _steps(steps: list[Step]) -> Table:
    table = Table(title="sessions at a time", title_justify="left")
    for heading in ("sessions", "ttft p99, ms", "itl p99, ms", "output tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("limits met by")
    for step in sorted(steps, key=lambda each: each.sessions):
        ttft, itl = step.latencies.ttft_ms, step.latencies.itl_ms
        shares = ", ".join(
            f"{name} {share:.1%}" for name, share in step.attainment.by_limit.items()
        )
        table.add_row(
            str(step.sessions),
            number(ttft.p99) if ttft else "-",
            number(itl.p99) if itl else "-",
            number(step.rates.output_tokens_per_s),
            shares,
            style="" if step.is_within_limits else "red",
        )
    return table
