"""Plots of a load as SVG text, by matplotlib, which is an optional package.

Elsewhere: the page around them (html.py).
"""

import importlib.util
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from baton.bench.serve.metrics import Limit, own_itl_s
from baton.bench.serve.records import Record
from baton.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS: Final = 400  # of a curve: more could not be seen, and would make the page heavy
_NUM_BINS: Final = 60
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "baton",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def require_plots() -> None:
    """Raises ConfigError when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--html needs matplotlib for its plots: pip install 'baton[bench]'")


def draw_plots(records: Sequence[Record], limits: Sequence[Limit]) -> dict[str, str]:
    """SVG text by title. Nothing for a load of which no request succeeded."""
    good = [record for record in records if record.is_ok]
    if not good:
        return {}
    most_ms = {limit.name: limit.most_ms for limit in limits}
    gaps_s = [gap for record in good for gap in record.itl_s]
    plots: dict[str, Callable[[Axes], None]] = {
        "Time to first token (TTFT)": _shares([each.ttft_s for each in good], most_ms.get("ttft")),
        "End to end (E2E)": _shares([each.e2e_s for each in good], most_ms.get("e2el")),
        "TTFT by time of sending": _over_time(records, most_ms.get("ttft")),
        "Running requests": _running(records),
        "Output tokens per second": _token_rate(records),
    }
    if gaps_s:
        plots["Between tokens (ITL)"] = _shares(gaps_s, most_ms.get("itl"))
        own = [each for record in good if (each := own_itl_s(record)) is not None]
        plots["p99 ITL of each request"] = _shares(own, most_ms.get("itl"))
    return {title: _svg(draw) for title, draw in plots.items()}


def _svg(draw: "Callable[[Axes], None]") -> str:
    # Without pyplot: it would look for a screen and keep every figure.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _shares(values_s: Sequence[float], limit_ms: float | None) -> "Callable[[Axes], None]":
    """Which share of the values is at most this long."""

    def draw(axes: "Axes") -> None:
        shares = np.linspace(0, 1, min(len(values_s), _MOST_POINTS) + 1)
        axes.plot(np.quantile(values_s, shares) * 1e3, shares * 100)
        if limit_ms is not None:
            axes.axvline(limit_ms, color="tab:red", linestyle="--", label=f"limit {limit_ms:g} ms")
            axes.legend(loc="lower right")
        axes.set_xlim(left=0)
        axes.set_xlabel("ms")
        axes.set_ylabel("% at most this")

    return draw


def _over_time(records: Sequence[Record], limit_ms: float | None) -> "Callable[[Axes], None]":
    def draw(axes: "Axes") -> None:
        good = [record for record in records if record.is_ok]
        bad = [record for record in records if not record.is_ok]
        axes.scatter([each.sent_s for each in good], [each.ttft_s * 1e3 for each in good], s=8)
        if bad:
            axes.scatter([each.sent_s for each in bad], [0] * len(bad), s=16, marker="x", c="red")
        if limit_ms is not None:
            axes.axhline(limit_ms, color="tab:red", linestyle="--")
        axes.set_xlabel("s since the start" + (" (x: failed)" if bad else ""))
        axes.set_ylabel("ms")

    return draw


def _running(records: Sequence[Record]) -> "Callable[[Axes], None]":
    def draw(axes: "Axes") -> None:
        times = sorted(
            [(each.sent_s, 1) for each in records] + [(each.ended_s, -1) for each in records]
        )
        axes.step([at for at, _ in times], np.cumsum([by for _, by in times]), where="post")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("s since the start")
        axes.set_ylabel("requests")

    return draw


def _token_rate(records: Sequence[Record]) -> "Callable[[Axes], None]":
    """An answer's tokens are spread evenly over the reads that brought them."""

    def draw(axes: "Axes") -> None:
        times, weights = [], []
        for record in records:
            arrivals = record.arrivals_s or [record.ended_s]
            times += arrivals
            weights += [record.num_output / len(arrivals)] * len(arrivals)
        counts, edges = np.histogram(times, bins=_NUM_BINS, weights=weights)
        axes.stairs(counts / (edges[1] - edges[0]), edges, fill=True)
        axes.set_xlabel("s since the start")
        axes.set_ylabel("tokens/s")

    return draw
