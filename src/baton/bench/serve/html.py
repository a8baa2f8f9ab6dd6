"""The report as one page that needs nothing else: no script, no style or picture from elsewhere.

Elsewhere: the plots (plots.py), the same as JSON (report.py).
"""

import shlex
from collections.abc import Sequence
from typing import Final

import jinja2
import markupsafe

from baton.bench.serve.metrics import Summary
from baton.bench.serve.plots import draw_plots
from baton.bench.serve.records import Record
from baton.bench.serve.report import ServeReport
from baton.bench.table import number

_COLUMNS: Final = ("count", "mean", "p50", "p90", "p99", "highest")

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>baton bench serve, {{ report.started_at }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0 0 1.5em; }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.bad { color: #b00020; font-weight: bold; }
.plots { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; } svg { max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ report.server.model }} at {{ report.server.url }}</h1>
<p><code>{{ command }}</code><br>{{ report.started_at }}, {{ report.machine.cpu }},
{{ report.machine.cores }} cores, load average {{ report.machine.load_average_before }} before;
{{ report.dataset.sessions }} sessions of {{ report.dataset.source }}</p>
{% if report.client.bottleneck %}
<p class="bad">The client was the bottleneck: {{ report.client.bottleneck }}.</p>
{% endif %}
{% if report.sustained_sessions is not none %}
<p>Sustained within the limits: <b>{{ report.sustained_sessions }}</b> sessions at a time.</p>
{% endif %}
<table><tr><th>latency, ms</th>{% for each in columns %}<th>{{ each }}</th>{% endfor %}</tr>
{% for name, cells in latencies.items() %}
<tr><td>{{ name }}</td>{% for each in cells %}<td>{{ each }}</td>{% endfor %}</tr>
{% endfor %}</table>
<table>{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
{% if report.steps %}
<table><tr><th>sessions</th><th>within limits</th><th>output tokens/s</th></tr>
{% for each in report.steps %}<tr><td>{{ each.sessions }}</td>
<td>{{ "yes" if each.is_within_limits else "no" }}</td><td>{{ each.rates.output_tokens_per_s }}</td>
</tr>{% endfor %}</table>
{% endif %}
{% for error, count in report.requests.errors.items() %}
<p class="bad">{{ count }} failed: {{ error }}</p>
{% endfor %}
<div class="plots">{% for title, svg in plots.items() %}
<figure><figcaption>{{ title }}</figcaption>{{ svg }}</figure>{% endfor %}
</div>
<h2>Settings</h2>
<table>{% for name, value in settings.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
</body>
</html>
"""


def to_html(report: ServeReport, records: Sequence[Record]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    plots = draw_plots(records, report.limits)
    return environment.from_string(_PAGE).render(
        report=report,
        command=shlex.join(report.command),
        columns=_COLUMNS,
        latencies=_latencies(report),
        facts=_facts(report),
        plots={title: markupsafe.Markup(svg) for title, svg in plots.items()},
        settings=report.settings | {f"server: {k}": v for k, v in report.server.items()},
    )


def _latencies(report: ServeReport) -> dict[str, list[str]]:
    rows = {
        "time to first token (TTFT)": report.latencies.ttft_ms,
        "between tokens (ITL)": report.latencies.itl_ms,
        "per output token (TPOT)": report.latencies.tpot_ms,
        "end to end (E2E)": report.latencies.e2el_ms,
        "client: sent late by": report.client.lateness_ms,
        "client: woke late by": report.client.wake_ms,
    }
    return {name: _cells(summary) for name, summary in rows.items()}


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["-"] * len(_COLUMNS)
    return [number(float(getattr(summary, name))) for name in _COLUMNS]


def _facts(report: ServeReport) -> dict[str, str]:
    rates, cpu, kept = report.rates, report.cpu, report.attainment
    facts = {
        "requests": f"{report.requests.succeeded} of {report.requests.planned} succeeded",
        "duration, s": number(rates.duration_s),
        "requests/s": number(rates.requests_per_s),
        "input tokens/s": number(rates.input_tokens_per_s),
        "output tokens/s": number(rates.output_tokens_per_s),
        "mean running requests": number(rates.mean_running),
        "cores busy: client": f"{cpu.client_cores:.2f}",
        "cores busy: machine": f"{cpu.machine_cores:.2f} of {cpu.cores}",
    }
    if cpu.server_cores is not None:
        facts["cores busy: server"] = f"{cpu.server_cores:.2f}"
    if cpu.other_cores is not None:
        facts["cores busy: others"] = f"{cpu.other_cores:.2f}"
    if kept is not None:
        for limit in report.limits:
            facts[f"{limit.name} at most {limit.most_ms:g} ms"] = f"{kept.by_limit[limit.name]:.1%}"
        facts["all limits"] = f"{kept.all_limits:.1%}"
        facts["goodput, requests/s"] = number(kept.goodput_per_s)
    return facts
