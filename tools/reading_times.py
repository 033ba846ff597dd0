"""How long a chapter takes: 200 words a minute, two minutes a displayed formula and a figure; exercises name theirs.

Usage: reading_times.py  (writes the table of book/before_you_start.md anew, and the times in the plans of
book/instructors.md: a class has 120 minutes, of which the talk is what its exercises leave)
"""

import json
import re
from pathlib import Path

from common import NOTEBOOKS, ROOT

PAGE, PLANS = ROOT / "book" / "before_you_start.md", ROOT / "book" / "instructors.md"
CLASS = 120  # minutes
WORDS, EACH = 200, 2  # a minute; minutes for a formula or a figure
FIGURE = ("figure-svg", 'class=\\"knob')  # in the outputs


EXERCISE = re.compile(r"\*\*(\d+)\. [^*]*\*\* \(●+(?: ?○*)?[^)]*?(\d+) minutes")
WEEK = re.compile(r"^\| \d+ \|.*\|$", re.M)  # of a plan


def minutes(path: Path) -> tuple[int, dict[str, int]]:
    """Of a chapter, the minutes to read it, rounded up to five, and those of each exercise by its number."""
    cells = json.loads(path.read_text("utf8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    words = len(re.sub(r"\$[^$]*\$|\{[^}]*\}|<[^>]*>", "x", text).split())
    formulas = len(re.findall(r"^\$\$\s*$(?:.|\n)*?^\$\$", text, re.M))
    figures = sum(any(mark in json.dumps(cell.get("outputs", [])) for mark in FIGURE) for cell in cells)
    reading = words / WORDS + EACH * (formulas + figures)
    exercises = {number: int(least) for number, least in EXERCISE.findall(text)}
    return -(-round(reading) // 5) * 5, exercises


def rows() -> list[str]:
    """The table's rows."""
    chapters = sorted(NOTEBOOKS.glob("[01]*.ipynb"))
    return [
        f"| {{doc}}`{path.stem[:2]} </notebooks/{path.stem}>` | {reading} | {sum(exercises.values())} |"
        for path in chapters
        for reading, exercises in [minutes(path)]
    ]


def week(row: str, times: dict[str, int]) -> str:
    """A plan's week with the present times of chapters (``04``), exercises (``04.1``), pages and the talk; the sum."""
    row = re.sub(r"\b(\d\d(?:\.\d)?) \(\d+\)", lambda m: f"{m[1]} ({times[m[1]]})", row)
    fields = re.sub(r"(</notebooks/(\w+)>`) \(\d+\)", lambda m: f"{m[1]} ({times[m[2]]})", row).split("|")
    _, _, reads, meets, does, *_ = fields
    rest = total(re.sub(r"talk \(\d+\)", "", meets))
    fields[3] = re.sub(r"talk \(\d+\)", f"talk ({CLASS - rest})", meets)
    fields[-2] = f" {total(reads) + total(does)} "
    return "|".join(fields)


def total(field: str) -> int:
    """All minutes in parentheses."""
    return sum(map(int, re.findall(r"\((\d+)\)", field)))


def plans(text: str) -> str:
    """The page for instructors with the present times."""
    times = {}
    for path in NOTEBOOKS.glob("*.ipynb"):
        reading, exercises = minutes(path)
        times |= {path.stem: reading, path.stem[:2]: reading}
        times |= {f"{path.stem[:2]}.{n}": m for n, m in exercises.items()}
    head, *parts = re.split(r"(?=^### \d+ weeks)", text, flags=re.M)
    for i, part in enumerate(parts):
        part = WEEK.sub(lambda m: week(m[0], times), part)
        weeks = [int(row.split("|")[-2]) for row in WEEK.findall(part)]
        home, met = round(sum(weeks) / 30) / 2, len(weeks) * CLASS / 60
        told = f"About {home + met:g} hours a student: {met:g} in class, {home:g} at home, and at most "
        told += f"{round(max(weeks) / 60, 1):g} hours at home"
        parts[i] = re.sub(r"About \S+ hours a student: .*? hours\sat\shome", told, part, count=1)
    return head + "".join(parts)


def main() -> None:
    text = PAGE.read_text("utf8")
    old = re.findall(r"^\| \{doc\}`\d\d </notebooks/.*$", text, re.M)
    PAGE.write_text(text.replace("\n".join(old), "\n".join(rows())), "utf8")
    PLANS.write_text(plans(PLANS.read_text("utf8")), "utf8")


if __name__ == "__main__":
    main()
