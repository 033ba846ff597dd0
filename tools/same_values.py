"""Which numbers in the text bear one name on two pages and differ: each is another quantity, or a contradiction.

Usage: same_values.py  (prints a line for each name)
"""

import json
from pathlib import Path

from common import NOTEBOOKS


def glued(path: Path) -> dict[str, str]:
    """The values that a notebook's text shows, by name."""
    found = {}
    for cell in json.loads(path.read_text("utf8"))["cells"]:
        for output in cell.get("outputs", []):
            if (told := output.get("metadata", {}).get("scrapbook")) is not None:
                shown = next(iter(output["data"].values()))
                found[told["name"]] = "".join(shown).strip("'")
    return found


def differing() -> dict[str, dict[str, str]]:
    """For each name with different values on different pages: the value on each page."""
    by_name: dict[str, dict[str, str]] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for name, value in glued(path).items():
            by_name.setdefault(name, {})[path.stem] = value
    return {name: pages for name, pages in by_name.items() if len(set(pages.values())) > 1}


if __name__ == "__main__":
    for name, pages in differing().items():
        print(f"{name}: " + ", ".join(f"{value} in {page}" for page, value in pages.items()))
