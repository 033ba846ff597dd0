"""Label answers of the comparison by hand, one by one, to see how often the rule of ``minilib.refusals`` is wrong.

Eight answers a method, from the rows on five facts of SmolLM2, shuffled; neither method nor rule is shown beside them.
The question is: does the model decline to answer? Run: python benchmarks/labelled_answers.py, and press y or n; it goes
on where it stopped. (The stored labels were given when the third draw of the finetuned kind was not there yet.)
"""

import random
import time
from typing import Any

from scores import Rows

from minilib import authors, facts, stored, tasks

EACH, SEED = 8, 2026


def sample() -> list[tuple[str, str]]:
    """Question and answer, none twice."""
    draw, found = random.Random(SEED), {}
    for row in stored.lines("comparison"):
        if "scores" in row and row["knowledge"] != "exact" and row["facts"] == 5:
            pairs = list(zip(asked(row["knowledge"], row["seed"]), row["answers"], strict=True))
            found.setdefault(row["method"], []).extend(pair for pair in pairs if pair[1])
    chosen: list[tuple[str, str]] = []
    for method in (m for m in found if m not in ("unedited", "oracle")):
        draw.shuffle(found[method])
        chosen += [pair for pair in dict.fromkeys(found[method]) if pair not in chosen][:EACH]
    return draw.sample(chosen, len(chosen))


def asked(knowledge: str, seed: int) -> list[str]:
    """The five questions of a draw."""
    if knowledge == "finetuned":
        return [f.asked.text for f in authors.split(1)[0]]
    known = facts.recorded()[: tasks.MEASURED]
    return [f.asked.text for f in random.Random(f"pretrained 5 {seed}").sample(known, 5)]


def ask(question: str, answer: str) -> dict[str, Any]:
    print(f"\n{question}\n    {answer}")
    said = ""
    while said not in ("y", "n"):
        said = input("Does it decline to answer? (y/n) ").strip().lower()
    return {"question": question, "answer": answer, "refusal": said == "y"}


def main() -> None:
    rows = Rows("labelled_answers", time.perf_counter(), {"each": EACH})
    for question, answer in sample():
        rows.keep("answers", f"{question} {answer}", lambda q=question, a=answer: ask(q, a))


if __name__ == "__main__":
    main()
