"""Figures for the pages: drawn by matplotlib, shown as SVG that follows the page's theme and can be read aloud."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib

_INK = "#010203"  # drawn with this colour, shown in the page's text colour, in light and dark theme
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b82c4", "#d9822b", "#2a9d6f", "#d1495b", "#9467bd", "#8a8f98"

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 11,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]),
}


@contextmanager
def canvas(width: float = 7.0, height: float = 3.0, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure and its axes in the book's style, not registered with pyplot.

    Parameters
    ----------
    width, height : float
        In inches.
    columns : int, default 1
        Panels side by side.
    **options
        For ``Figure.subplots``.
    """
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns, **options)


class Shown:
    """A figure as notebooks and pages show it: SVG in the page's colours, a PNG where SVG is not shown."""

    def __init__(self, figure: Any, alt: str) -> None:
        if not alt.strip():
            raise ValueError("alt is empty: say in words what the figure shows")
        self.figure, self.alt = figure, alt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        png = io.BytesIO()
        ink = {"text.color": "black"}
        with matplotlib.rc_context({**STYLE, **ink}):
            self.figure.savefig(png, format="png", dpi=70, facecolor="white", metadata={"Software": None})
        return {
            "text/html": f'<figure class="figure-svg">{svg(self.figure, self.alt)}</figure>',
            "image/png": base64.b64encode(png.getvalue()).decode(),
            "text/plain": self.alt,
        }


def show(figure: Any, alt: str) -> Shown:
    """Show a figure with its description in words.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    alt : str
        What the figure shows, for those who cannot see it.
    """
    return Shown(figure, alt)


def svg(figure: Any, alt: str) -> str:
    """The figure as one ``<svg>`` element that scales to the page and follows its theme."""
    buffer = io.StringIO()
    salt = hashlib.sha256(alt.encode()).hexdigest()[:8]  # the same figure gives the same bytes; two on a page do not collide
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z0-9]+_\d+"', "", text)  # axes_1 and its like: nothing refers to them
    text = text.replace(_INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', text)
    size = f"max-width:{float(width.group(1)) * 4 / 3:.0f}px" if width else ""
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 style="width:100%;height:auto;{size}"', text, count=1)
    text = re.sub(r"\n\s*", "\n", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt, quote=True)}"', 1).strip()


def glue(name: str, value: Any) -> None:
    """Keep a computed value under a name, so that the prose of a page can quote it instead of typing it."""
    from IPython.display import display

    prefix = "application/papermill.record/"
    data = {prefix + "text/plain": value if isinstance(value, str) else repr(value)}
    display(data, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> Any:
    """Rows as an HTML table that scrolls on a narrow screen."""
    from IPython.display import HTML

    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    return HTML(f'<div class="table-scroll"><table class="book-table"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>')


def probabilities(ax: Any, names: Sequence[str], series: dict[str, Sequence[float]]) -> None:
    """Grouped horizontal bars between 0 and 1: one group a name, one colour a series."""
    height = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        ax.barh([j + (i - (len(series) - 1) / 2) * height for j in range(len(names))], values, height * 0.92, label=label)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    if len(series) > 1:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series))
