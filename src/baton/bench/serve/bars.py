"""One quantity of several servers as bars, as a small SVG file that reads on light and dark pages.

Written by hand, without matplotlib: the files stand in the repository and in its history.
Elsewhere: the page that shows them (suite_page.py).
"""

from collections.abc import Mapping
from html import escape
from typing import Final

from baton.bench.report import Figure
from baton.bench.table import number

_WIDTH: Final = 640
_LEFT: Final = 130  # where bars begin, right of the names
_RIGHT: Final = 150  # for the values
_ROW: Final = 24
_TOP: Final = 34
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600}"
    ".other{fill:#9aa4af}.ours{fill:#2f6fd0}path{stroke:#1f2328;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.other{fill:#6e7781}"
    ".ours{fill:#4c8ff0}path{stroke:#e6edf3}}"
)


def bars(title: str, figures: Mapping[str, Figure], own: frozenset[str]) -> str:
    """SVG text: a bar to each median, a whisker from the lowest to the highest; names in `own` in
    another colour. `figures` must not be empty."""
    most = max(each.highest for each in figures.values()) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    height = _TOP + _ROW * len(figures) + 6
    rows = [
        _row(name, each, _TOP + _ROW * at, scale, "ours" if name in own else "other")
        for at, (name, each) in enumerate(figures.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" role="img"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n"
        f'<text class="title" x="0" y="16">{escape(title)}</text>\n' + "".join(rows) + "</svg>\n"
    )


def _row(name: str, figure: Figure, top: int, scale: float, kind: str) -> str:
    middle = top + 8
    low, high = (round(_LEFT + each * scale, 1) for each in (figure.lowest, figure.highest))
    whisker = f"M{low} {middle}H{high}M{low} {middle - 4}v8M{high} {middle - 4}v8"
    return (
        f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{round(figure.median * scale, 1)}"'
        ' height="16"/>'
        f'<path d="{whisker}"/>'
        f'<text x="{high + 8}" y="{middle + 4}">{with_spread(figure)}</text>\n'
    )


def with_spread(figure: Figure) -> str:
    """The median, and the lowest and highest where there are several."""
    if len(figure.samples) == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.lowest)} to {number(figure.highest)})"
