"""Which submissions look alike: the share of one's token sequences that another has too.

Names, comments, texts and layout are left out, and so is what the student's notebook contained already. A high share is
a reason to read both, not a verdict: a step that has one short answer looks alike in every notebook.
"""

import io
import json
import keyword
import tokenize
from collections.abc import Hashable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

LENGTH = 12  # tokens in a row
LEAST = 0.6


def tokens(source: str) -> list[str]:
    """Of Python source, with every name as the same token; what cannot be read to its end is read as far as it goes."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                found.append(token.string if keyword.iskeyword(token.string) else "name")
            elif token.type in (tokenize.OP, tokenize.NUMBER):
                found.append(token.string)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass
    return found


def sequences(file: Path) -> set[tuple[str, ...]]:
    nb = json.loads(file.read_text("utf8"))
    found = set()
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            all_of = tokens("".join(cell["source"]))
            found |= {tuple(all_of[i : i + LENGTH]) for i in range(len(all_of) - LENGTH + 1)}
    return found


def pairs(files: Mapping[Any, Path], given: Path) -> list[tuple[Hashable, ...]]:
    """Assignment, one student, the other, and the share, the highest first; ``given`` holds what was handed out."""
    handed_out: dict[str, set] = {}
    for file in given.rglob("*.ipynb"):
        handed_out[file.stem] = handed_out.get(file.stem, set()) | sequences(file)
    own = {s: sequences(file) - handed_out.get(s.assignment, set()) for s, file in files.items()}
    rows = []
    for a, b in combinations(own, 2):
        shorter = min(len(own[a]), len(own[b]))
        if a.assignment == b.assignment and a.name != b.name and shorter:
            share = len(own[a] & own[b]) / shorter
            if share >= LEAST:
                rows.append((a.assignment, a.name, b.name, round(share, 2)))
    return sorted(rows, key=lambda row: -row[3])
