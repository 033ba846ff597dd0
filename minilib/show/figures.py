"""Figures for the pages: drawn by matplotlib, shown as SVG that follows the page's theme and can be read aloud."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import inspect
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler

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
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]),
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
        if not isinstance(alt, str) or not alt.strip():
            raise ValueError(f"alt must say in words what the figure shows, not {alt!r}")
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
    # The same figure gives the same bytes, and two on a page do not share the names that clip paths refer to.
    salt = hashlib.sha256(alt.encode()).hexdigest()[:8]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # axes_1 and its like: nothing refers to them
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
    data = {prefix + "text/plain": _as_it_stands(value) if isinstance(value, str) else repr(value)}
    display(data, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})


def _as_it_stands(text: str) -> str:
    """The page reads a glued text as Python where it can: unquoted, "1,000" would be a pair and "1.00" lose a digit."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return repr(text)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str], sort: bool = False) -> Any:
    """Rows as an HTML table that scrolls on a narrow screen.

    Parameters
    ----------
    rows : list of lists
    header : list of str
    sort : bool, default False
        Make each heading a button that sorts by its column, by value where its cells begin with numbers.
    """
    from IPython.display import HTML

    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    name = "table-" + hashlib.sha256(cells.encode()).hexdigest()[:10]
    titles = [html.escape(h) for h in header]
    if sort:
        titles = [f'<button type="button" class="table-sort">{title}</button>' for title in titles]
    head = "".join(f"<th>{title}</th>" for title in titles)
    script = f"<script>{_SORT.replace('NAME', name)}</script>" if sort else ""
    mark = f' id="{name}"' if sort else ""
    whole = f'<table class="book-table"{mark}><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>'
    return HTML(f'<div class="table-scroll">{whole}</div>{script}')


# The first click on a heading sorts upwards, the next one downwards.
_SORT = """(function () {
  const table = document.getElementById("NAME"), body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  function value(row, i) {
    const text = row.cells[i].textContent.trim().replace("−", "-"), number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  }
  function order(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const rows = Array.from(body.rows).sort((a, b) => (up ? 1 : -1) * order(value(a, i), value(b, i)));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.forEach((row) => body.appendChild(row));
  }));
})();"""


def source(function: Any, first: str = "", last: str = "") -> Any:
    """Lines of the library as they stand in its file, for a page to explain them.

    Parameters
    ----------
    function : function or class
        Whose source is shown.
    first, last : str
        Words that stand in the first and in the last line shown; left out, from the start, to the end.

    Returns
    -------
    IPython.display.Markdown
        A highlighted block of code.
    """
    from IPython.display import Markdown

    lines = inspect.getsource(inspect.unwrap(function)).rstrip().splitlines()
    start = next((i for i, line in enumerate(lines) if first in line), None)
    if start is None:
        raise ValueError(f"first {first!r} stands in no line of {function.__name__}")
    stop = next((i for i in range(start, len(lines)) if last and last in lines[i]), None)
    if last and stop is None:
        raise ValueError(f"last {last!r} stands in no line of {function.__name__} from {first!r} on")
    block = textwrap.dedent("\n".join(lines[start : len(lines) if stop is None else stop + 1]))
    return Markdown(f"```python\n{block}\n```")


def probabilities(ax: Any, names: Sequence[str], series: dict[str, Sequence[float]]) -> None:
    """Grouped horizontal bars between 0 and 1: one group a name, one colour a series."""
    height = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * height
        ax.barh([j + shift for j in range(len(names))], values, height * 0.92, label=label)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    if len(series) > 1:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series))


def arrows(ax: Any, vectors: dict[str, Any], title: str) -> None:
    """Named vectors of the plane as arrows from the origin."""
    colors = (BLUE, ORANGE, GREEN, PURPLE)
    for (name, vector), color in zip(vectors.items(), colors, strict=False):
        x, y = float(vector[0]), float(vector[1])
        ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
        ax.text(x * 1.12, y * 1.12, name, color=color, ha="center", va="center")
    ax.set(xlim=(-0.6, 2.4), ylim=(-0.5, 1.9), title=title, aspect="equal", xticks=[], yticks=[])


def keys_and_direction(ax: Any, cloud: Any, k_star: Any, u: Any, marks: dict[str, Any]) -> None:
    """Old keys as dots, darker the more a write along ``u`` changes their answer; ``k_star`` and marked directions."""
    change = ((cloud @ u) / (k_star @ u)).abs()
    ax.scatter(cloud[:, 0], cloud[:, 1], c=change.clamp(max=2), cmap="Oranges", vmin=-0.4, vmax=2, s=14, lw=0)
    line = u / u.norm() * 6
    ax.plot([-line[0], line[0]], [-line[1], line[1]], color=BLUE, lw=2, label="u")
    for (name, vector), style in zip(marks.items(), (":", "--"), strict=False):
        end = vector / vector.norm() * 6
        ax.plot([-end[0], end[0]], [-end[1], end[1]], color=GREY, ls=style, lw=1.2, label=name)
    ax.plot(*k_star, marker="*", ms=14, color=RED, ls="none", label="new key")
    ax.set(xlim=(-5, 5), ylim=(-2.4, 2.4), aspect="equal", xticks=[], yticks=[])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def cloud_and_write(ax: Any, cloud: Any, k_star: Any, row: Any, title: str) -> None:
    """Old keys as dots, ``k_star`` as a star, ``row`` as an arrow, and lines of keys that are written to alike."""
    side = row.flip(0) * row.new_tensor([-1.0, 1.0])  # at right angles to the row: along it the write is the same
    side = side / side.norm() * 20
    for level in range(-3, 4):
        at = row * (level / (row @ row) * (row @ k_star))
        ax.plot(*zip(at - side, at + side, strict=True), color=GREY, lw=0.6 if level else 1.4, zorder=0)
    ax.scatter(cloud[:, 0], cloud[:, 1], s=9, lw=0, color=BLUE, alpha=0.5)
    ax.plot(*k_star, marker="*", ms=14, color=RED, ls="none", label="k*", zorder=3)
    end = row / row.norm() * k_star.norm()
    arrow = {"arrowstyle": "-|>", "color": ORANGE, "lw": 2.2}
    ax.annotate("", tuple(end.tolist()), (0, 0), arrowprops=arrow, zorder=2)
    ax.plot([], [], color=ORANGE, lw=2.2, label="row of the write")
    ax.set(title=title, xlim=(-4.5, 4.5), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
