"""Label answers of the comparison a second time, from question, right answers and reply alone.

Two hundred answers of SmolLM2 to forgotten questions, drawn from trials that had not been run when the rules of
``minilib.refusals`` were written: of each method as many as of any other, no question with the same reply twice. Run:
python benchmarks/second_labelling.py --sheet sheet.csv, let somebody fill in the last two columns with y or n (does the
reply decline to answer? does it give a right answer?) who sees neither method nor rule, and then
python benchmarks/second_labelling.py --labels sheet.csv --by "who it was".
"""

import argparse
import csv
import json
import random
import time
from pathlib import Path
from typing import Any

from minilib import rows, stored

NUMBER, SEED, WORLD = 200, 2026, "pretrained"
COLUMNS = ["number", "question", "right answers", "reply", "declines", "gives it"]


def sample() -> list[dict[str, Any]]:
    """Replies in a random order, with the method and the setting that they come from."""
    every = [row for row in rows.load(WORLD) if row["draw"] < 0]
    draw = random.Random(SEED)
    asked = {row["draw"]: row["questions"] for row in every if row["method"] == "unedited"}
    of_method: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[str, str]] = set()
    for row in draw.sample(every, len(every)):
        for kind in rows.FORGOTTEN:
            for question, reply in zip(asked[row["draw"]][kind], row["answers"][kind], strict=True):
                if row["method"] != "unedited" and (question["asked"], reply) not in seen:
                    seen.add((question["asked"], reply))
                    about = {"question": question["asked"], "right": question["answers"], "reply": reply}
                    about |= {"method": row["method"], "setting": row["setting"], "draw": row["draw"]}
                    of_method.setdefault(row["method"], []).append(about)
    for some in of_method.values():
        draw.shuffle(some)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < NUMBER:
        left = [some for _, some in sorted(of_method.items()) if some]
        if not left:
            raise ValueError(f"there are only {len(chosen)} different replies in the rows of {WORLD!r}")
        chosen += [some.pop() for some in left][: NUMBER - len(chosen)]
    return draw.sample(chosen, len(chosen))


def write(sheet: Path) -> None:
    """The sheet to fill in: nothing that says where a reply comes from, or what a rule makes of it."""
    with sheet.open("w", encoding="utf8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(COLUMNS)
        for number, one in enumerate(sample()):
            table.writerow([number, one["question"], "; ".join(one["right"]), one["reply"], "", ""])


def read(sheet: Path, by: str) -> dict[str, Any]:
    """What somebody filled in, with where each reply comes from."""
    with sheet.open(encoding="utf8", newline="") as opened:
        filled = list(csv.DictReader(opened))
    answers = sample()
    for one, line in zip(answers, filled, strict=True):
        if (line["question"], line["reply"]) != (one["question"], one["reply"]):
            raise ValueError(f"line {line['number']} of {sheet} is not the reply that was drawn: {line['question']!r}")
        for column in COLUMNS[-2:]:
            if line[column].strip().lower() not in ("y", "n"):
                raise ValueError(f"line {line['number']} of {sheet}: {column!r} must be y or n, not {line[column]!r}")
            one[column] = line[column].strip().lower() == "y"
    return {"by": by, "seed": SEED, "answers": answers}


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sheet", type=Path, help="write the sheet that is to be filled in")
    parser.add_argument("--labels", type=Path, help="store what was filled in")
    parser.add_argument("--by", help="who filled it in, as the page says it")
    given = parser.parse_args()
    if given.sheet:
        write(given.sheet)
    if given.labels and given.by:
        found = read(given.labels, given.by)
        stored.save("second_labelling", found, "benchmarks/second_labelling.py", began, seed=SEED)
        print(json.dumps({c: sum(one[c] for one in found["answers"]) for c in COLUMNS[-2:]}))
    if not given.sheet and not (given.labels and given.by):
        parser.error("give --sheet FILE, or --labels FILE with --by WHO")


if __name__ == "__main__":
    main()
