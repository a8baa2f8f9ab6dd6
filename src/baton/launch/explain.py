"""`baton explain`: where one request spent its time, and which gate held it.

Elsewhere: what is known of it (obs/waterfall.py), whole runs (profile.py).
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baton.core.errors import BatonError
from baton.launch.ask import AskError, ask, reason_of
from baton.launch.flags import API_KEY_VARIABLE, add_flags, from_args
from baton.launch.trace_file import read_trace
from baton.obs.waterfall import Row, Waterfall, from_answer, from_trace

_EXAMPLES: Final = """\
examples:
  baton explain req-5f0c2a                      at the server on this machine
  baton explain req-5f0c2a --url http://example.org:8000
  baton explain req-5f0c2a --trace trace.json   from a trace of `--profile-output`

the id is the X-Request-ID header of the answer; a server keeps the last 1,000 requests
"""

_LEAST_BAR_CELLS: Final = 12
_MOST_BAR_CELLS: Final = 40
_TEXT_CELLS: Final = 62
"""Of the columns beside the bars: "prefill engine", "awaiting_reservation", two numbers, and what
is between them."""
_COLOURS: Final = {"router": "magenta", "api": "cyan", "engine": "green"}


class UnknownRequest(BatonError, LookupError):
    """Nobody knows a request of this id."""


@dataclass(frozen=True)
class ExplainConfig:
    url: str = field(
        default="http://127.0.0.1:8000",
        metadata={"help": "router or worker to ask", "metavar": "URL"},
    )
    trace: Path | None = field(
        default=None, metadata={"help": "look into this trace instead of asking a server"}
    )
    api_key: str | None = field(
        default=None, metadata={"help": "key of the server", "env": API_KEY_VARIABLE}
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="baton explain",
        description="Show where one request spent its time.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("request_id", metavar="REQUEST_ID", help="its X-Request-ID")
    add_flags(parser, ExplainConfig)
    args = parser.parse_args(argv)
    config = from_args(ExplainConfig, args, environ=os.environ)
    waterfall, problems = _find(args.request_id, config)
    print_waterfall(waterfall, problems, Console())
    return 0


def _find(request_id: str, config: ExplainConfig) -> tuple[Waterfall, list[str]]:
    if config.trace is None:
        return _ask(request_id, config)
    found = from_trace(read_trace(config.trace), request_id)
    if found is None:
        raise UnknownRequest(
            f"{config.trace} has no request {request_id!r}; requests in it are named by their "
            "X-Request-ID, on the tracks called requests"
        )
    return found, []


def _ask(request_id: str, config: ExplainConfig) -> tuple[Waterfall, list[str]]:
    path = "/explain/" + quote(request_id, safe="")
    status, body = ask(config.url, path, api_key=config.api_key)
    if status == 404:
        raise UnknownRequest(reason_of(body))
    if status != 200:
        raise AskError(f"{config.url} answered {status}: {reason_of(body)}")
    try:
        return from_answer(msgspec.json.decode(body))
    except ValueError as error:
        raise AskError(f"{config.url} is no router or worker of Baton: {error}") from error


def print_waterfall(waterfall: Waterfall, problems: list[str], console: Console) -> None:
    start_s, total_s = waterfall.start_s, waterfall.end_s - waterfall.start_s
    console.print(f"request {waterfall.request_id}: {waterfall.outcome}", highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("where", "phase", "from", "ms", ""):
        is_number = title in ("from", "ms")
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    num_cells = min(_MOST_BAR_CELLS, max(_LEAST_BAR_CELLS, console.width - _TEXT_CELLS))
    place = ""
    for row in waterfall.rows:
        shown, place = "" if row.place == place else row.place, row.place
        name = f"  {row.name}" if row.is_chunk else row.name
        table.add_row(
            shown,
            name,
            f"{(row.start_s - start_s) * 1e3:.1f}",
            f"{row.seconds * 1e3:.1f}",
            _bar(row, start_s, total_s, num_cells),
        )
    # No narrower than it is: a figure that is cut off says something else.
    console.print(table, crop=False, width=max(console.width, _TEXT_CELLS + num_cells))
    for row in waterfall.rows:
        if row.why:
            console.print(f"{row.place}, {row.name}: {row.why}", highlight=False)
    for line in [*summary_lines(waterfall), *waterfall.facts]:
        console.print(line, highlight=False)
    for problem in problems:
        console.print(f"not asked: {problem}", highlight=False, style="yellow")


def summary_lines(waterfall: Waterfall) -> list[str]:
    """The first token, what held it, and what followed."""
    lines = []
    start_s, first_s = waterfall.start_s, waterfall.first_token_s
    if first_s is not None:
        lines.append(f"first token after {(first_s - start_s) * 1e3:.1f} ms")
    gate = waterfall.gate()
    if gate is not None:
        words, row = gate
        before_s = (waterfall.end_s if first_s is None else first_s) - start_s
        share = min(1.0, row.seconds / before_s) if before_s > 0 else 0.0
        lines.append(
            f"held longest by {row.place}, {row.name}: {words}, {row.seconds * 1e3:.1f} ms, "
            f"{share:.0%} of the time before the first token"
        )
    return lines


def _bar(row: Row, start_s: float, total_s: float, num_cells: int) -> Text:
    if total_s <= 0:
        return Text("")
    first = min(num_cells - 1, int((row.start_s - start_s) / total_s * num_cells))
    last = max(first + 1, round((row.end_s - start_s) / total_s * num_cells))
    cells = ("░" if row.is_chunk else "█") * (last - first)
    return Text(" " * first + cells, style=_COLOURS.get(row.kind, ""))
