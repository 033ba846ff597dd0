"""Slides for lectures, as one static page each: Markdown from slides/, pictures from the chapters' own outputs.

`![words](05_memit#194ec363)` is the picture of that cell of that notebook. Slides are parted by `---`; arrow keys,
space, swiping and the mouse wheel go through them.
"""

import base64
import json
import re
import shutil
from pathlib import Path

from common import NOTEBOOKS, ROOT
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt

SOURCE = ROOT / "slides"
FIGURE = re.compile(r"!\[([^\]]*)\]\((\w+)#([\w-]+)\)")
MATH = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.S)


def picture(notebook: str, cell: str) -> bytes:
    """The last picture among a cell's stored outputs."""
    nb = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text("utf8"))
    outputs = [o for c in nb["cells"] if c.get("id") == cell for o in c.get("outputs", [])]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    if not images:
        raise ValueError(f"slides: {notebook}.ipynb has no picture in a cell {cell!r}")
    return base64.b64decode(images[-1])


def rendered(slide: str, folder: Path) -> str:
    """One slide as HTML; its pictures are put beside the page."""

    def place(match: re.Match[str]) -> str:
        words, notebook, cell = match.groups()
        name = f"{notebook}_{cell}.png"
        (folder / name).write_bytes(picture(notebook, cell))
        return f"![{words}]({name})"

    slide, formulas = FIGURE.sub(place, slide), []

    def keep(match: re.Match[str]) -> str:  # Markdown must not read the underscores of a formula
        formulas.append(match[0])
        return f"\N{OBJECT REPLACEMENT CHARACTER}{len(formulas) - 1}\N{OBJECT REPLACEMENT CHARACTER}"

    html = MarkdownIt().render(MATH.sub(keep, slide))
    for i, formula in enumerate(formulas):
        tex = formula.replace("&", "&amp;").replace("<", "&lt;")
        tex = f"\\[{tex[2:-2]}\\]" if tex.startswith("$$") else f"\\({tex[1:-1]}\\)"
        html = html.replace(f"\N{OBJECT REPLACEMENT CHARACTER}{i}\N{OBJECT REPLACEMENT CHARACTER}", tex)
    return html


def build(site: Path) -> list[Path]:
    """All lectures, into ``slides/`` of a built site."""
    folder = site / "slides"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates")).get_template("slides.html")
    made = []
    for source in sorted(SOURCE.glob("*.md")):
        text = source.read_text("utf8")
        slides = [rendered(slide, folder) for slide in re.split(r"^---$", text, flags=re.M)]
        title = text.splitlines()[0].lstrip("# ")
        made.append(folder / f"{source.stem}.html")
        made[-1].write_text(page.render(title=title, slides=slides), "utf8")
    return made
