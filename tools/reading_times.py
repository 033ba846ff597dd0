"""How long a chapter takes: 200 words a minute, two minutes a displayed formula and a figure; exercises name theirs.

Usage: reading_times.py  (writes the table of book/before_you_start.md anew)
"""

import json
import re
from pathlib import Path

from common import NOTEBOOKS, ROOT

PAGE = ROOT / "book" / "before_you_start.md"
WORDS, EACH = 200, 2  # a minute; minutes for a formula or a figure
FIGURE = ("figure-svg", 'class=\\"knob')  # in the outputs


def minutes(path: Path) -> tuple[int, int]:
    """Of a chapter, the minutes to read it, rounded up to five, and those of its exercises."""
    cells = json.loads(path.read_text("utf8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    words = len(re.sub(r"\$[^$]*\$|\{[^}]*\}|<[^>]*>", "x", text).split())
    formulas = len(re.findall(r"^\$\$\s*$(?:.|\n)*?^\$\$", text, re.M))
    figures = sum(any(mark in json.dumps(cell.get("outputs", [])) for mark in FIGURE) for cell in cells)
    reading = words / WORDS + EACH * (formulas + figures)
    exercises = sum(int(m) for m in re.findall(r"\(●+(?: ?○*)?[^)]*?(\d+) minutes", text))
    return -(-round(reading) // 5) * 5, exercises


def rows() -> list[str]:
    """The table's rows."""
    chapters = sorted(NOTEBOOKS.glob("[01]*.ipynb"))
    return [
        f"| {{doc}}`{path.stem[:2]} </notebooks/{path.stem}>` | {reading} | {exercises} |"
        for path in chapters
        for reading, exercises in [minutes(path)]
    ]


def main() -> None:
    text = PAGE.read_text("utf8")
    old = re.findall(r"^\| \{doc\}`\d\d </notebooks/.*$", text, re.M)
    PAGE.write_text(text.replace("\n".join(old), "\n".join(rows())), "utf8")


if __name__ == "__main__":
    main()
