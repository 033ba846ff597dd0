"""Choose what pretrained knowledge is measured on: facts.json (disjoint draws), subjects.json (twelve subjects).

Facts: of those that SmolLM2 is recorded to know, none that the book used to find something out: no capital (chapters
04, 10, 12), none of the first fifty (chapters 01, 06, 07 and the radii and thresholds found there), none of the six
behind the presets of ``benchmarks/presets.py``, none whose question stands in a notebook, an assignment or a page when
this is run. Five relations in each draw, so that no two facts of an edit are of a kind. Lists that hold nearly all
facts, as the streams of a hundred edits, chose no setting and exclude nothing.

Subjects: candidate questions, written by hand in ``candidates.json``, are asked, and the subjects kept of which the
edited question and at least four others are answered; at most nine countries, so that not all are of a kind.

Run: python benchmarks/comparison/choose.py (some minutes on one core). Both files are made once, before anything is
measured, and are not made anew.
"""

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import worlds
from plan import DRAWS

from minilib import stored
from minilib.loading import load
from minilib.worlds import facts
from minilib.worlds.facts import Fact, Question

ROOT = Path(__file__).parents[2]
EACH, TUNED = 5, 1  # facts of a draw; tuning draws
MOST_OPPOSITES, MOST_COUNTRIES, FOUND, OTHERS = 5, 9, 12, 4


def free(taken: set[str]) -> list[Fact]:
    """The recorded facts that nothing was found out with."""
    known = facts.recorded()
    used = {f.asked.text for f in (*known[:50], *known[100:106])} | taken
    pages = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("assignments/**/*.ipynb"), *ROOT.glob("book/*.md")]
    cells = [json.loads(p.read_text("utf8"))["cells"] if p.suffix == ".ipynb" else [{"source": [p.read_text("utf8")]}]
             for p in pages]  # fmt: skip
    text = "\n".join("".join(cell["source"]) for some in cells for cell in some)
    return [f for f in known if f.relation != "capital" and f.asked.text not in used and f.asked.text not in text]


def deal(pool: list[Fact], draws: int, seed: int = 0) -> list[list[Fact]]:
    """Disjoint draws; in each the relations of which most is left, and no subject twice."""
    order = random.Random(seed).sample(pool, len(pool))
    left = Counter(f.relation for f in order)
    left["opposite"] = min(left["opposite"], MOST_OPPOSITES)
    dealt = []
    for _ in range(draws):
        some: list[Fact] = []
        for relation, _ in left.most_common():
            fact = next(
                (f for f in order if f.relation == relation and f.subject not in {g.subject for g in some}), None
            )
            if len(some) < EACH and fact is not None and left[relation] > 0:
                some.append(fact)
                order.remove(fact)
                left[relation] -= 1
        dealt.append(some)
    return dealt


def answered() -> list[dict[str, Any]]:
    """Each candidate question with what SmolLM2 says, and whether that is right."""
    lm = load("smollm2-135m", progress=False)
    rows = []
    for kind, table in json.loads((worlds.HERE / "candidates.json").read_text("utf8")).items():
        for subject, accepted in table["subjects"].items():
            for name, answers in accepted.items():
                form = table["edited"] if name == "edited" else table["questions"][name]
                rows.append({"kind": kind, "subject": subject, "name": name, "form": form, "answers": answers})
    rows.sort(key=lambda row: row["name"])  # answers of like length run together
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16]
        texts = lm.generate([r["form"].replace("{}", r["subject"]) for r in some], max_new_tokens=30)
        for row, text in zip(some, texts, strict=True):
            case = row["kind"] == "element" and row["name"] == "edited"
            row["said"] = text
            row["right"] = Question("", row["answers"][0], tuple(row["answers"][1:]), case).answered_by(text)
    return rows


def twelve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The subjects of which most is answered; kinds alternate, so that a draw of four has several."""
    tables = json.loads((worlds.HERE / "candidates.json").read_text("utf8"))
    right: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["right"]:
            right.setdefault((row["kind"], row["subject"]), []).append(row)
    good = {key: some for key, some in right.items()
            if any(r["name"] == "edited" for r in some) and len(some) > OTHERS}  # fmt: skip
    ordered = sorted(good, key=lambda key: -len(good[key]))
    countries = [key for key in ordered if key[0] == "country"][:MOST_COUNTRIES]
    others = [key for key in ordered if key[0] != "country"]
    chosen = (countries + others)[:FOUND] if len(others) >= FOUND - len(countries) else ordered[:FOUND]
    found = []
    for kind, subject in (*chosen[0::3], *chosen[1::3], *chosen[2::3]):
        table, mine = tables[kind], good[kind, subject]
        first = next(r for r in mine if r["name"] == "edited")
        beside = [
            {"asked": r["form"].replace("{}", subject), "answers": r["answers"]} for r in mine if r["name"] != "edited"
        ]
        found.append({"kind": kind, "subject": subject, "question": table["edited"], "answers": first["answers"],
                      "rephrasings": table["rephrasings"], "case": kind == "element", "others": beside})  # fmt: skip
    return found


def save(name: str, what: dict[str, Any], began: float) -> None:
    made = stored.provenance("benchmarks/comparison/choose.py", began)
    (worlds.HERE / name).write_text(
        json.dumps({"provenance": made, **what}, indent=1, ensure_ascii=False) + "\n", "utf8"
    )


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    if not (worlds.HERE / "subjects.json").is_file():
        found = twelve(answered())
        if len(found) < FOUND:
            sys.exit(f"only {len(found)} subjects are known well enough: add candidates")
        save("subjects.json", {"subjects": found}, began)
    if not (worlds.HERE / "facts.json").is_file():
        taken = {s["question"].replace("{}", s["subject"]) for s in worlds.subjects()}
        dealt = deal(free(taken), DRAWS["pretrained"] + TUNED)
        names = [[[f.relation, f.subject] for f in some] for some in dealt]
        save("facts.json", {"draws": names[TUNED:], "tuning": names[:TUNED]}, began)


if __name__ == "__main__":
    main()
