"""Five detours to what an editor has silenced: a second turn, another system prompt, two questions, an alias, two hops.

The facts of the world and the draws are those of the comparison, with the settings that it chose for silence, and of
GRACE for refusals too ("grace, polite"), where its balls are small. False alarms are what a detour brings up of as many
facts that SmolLM2 got wrong in all wordings, asked of the same edited model; "unknown" are they of the unedited one.
Run: python benchmarks/detours.py (an hour on one core); names of methods restrict it to these. It goes on where it
stopped.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from is_it_gone import cells, each, worlds
from plan import DRAWS, EDITORS, Job
from scores import Rows

from minilib import attacks, facts, refusals
from minilib import rows as stored_rows
from minilib.edits import undo_all
from minilib.measure.detours import ALIASES, HOPS
from minilib.model import LM

METHODS = ("unedited", "unknown", *EDITORS, "grace, polite")


def never_known(lm: LM) -> list[facts.Fact]:
    """The facts that a model gets wrong in all wordings."""
    known = {fact.asked.text for fact in facts.recorded()}
    pool = [fact for fact in facts.FACTS if fact.asked.text not in known]
    asked = [[f.request("x"), *f.rephrased("x")] for f in pool]
    said = iter(lm.generate([request for some in asked for request in some], max_new_tokens=24))
    right = [any([fact.answered_by(next(said)) for _ in some]) for fact, some in zip(pool, asked, strict=True)]
    return [fact for fact, yes in zip(pool, right, strict=True) if not yes]


def beside(forget: Sequence[facts.Fact], never: list[facts.Fact]) -> list[facts.Fact]:
    """As many facts as are forgotten, of the same kinds where there are any, taken out of the list."""
    return [never.pop(next((i for i, f in enumerate(never) if f.relation == fact.relation), 0)) for fact in forget]


def detours(lm: LM, asked: list[facts.Fact]) -> list[attacks.Row]:
    """The question itself, and the five detours; hops and aliases as far as the facts have any."""
    rows = attacks.none(lm, asked) + attacks.second_turn(lm, asked) + attacks.system_prompt(lm, asked)
    rows += attacks.two_questions(lm, asked)
    if any(HOPS.get(fact.asked.text) for fact in asked):
        rows += attacks.hops(lm, asked)
    if any(not f.answered_by(n) for f in asked for n in ALIASES.get(f.subject, ())):
        rows += attacks.aliases(lm, asked)
    return rows


def measure(
    method: str, seed: int, cell: worlds.Cell, never: list[facts.Fact], settings: dict[str, Any]
) -> dict[str, Any]:
    """Both are asked of the model, what was forgotten and what it never knew; for "unknown" the latter alone."""
    began, asked = time.perf_counter(), never if method == "unknown" else cell.forget
    if method != "unknown":
        cells.apply(Job("pretrained", seed, method.removesuffix(", polite"), settings[method]), cell)
    try:
        every = detours(cell.lm, asked if method == "unknown" else [*asked, *never])
    finally:
        undo_all(cell.lm)
    mine = {fact.asked.text for fact in asked}
    rows = [row for row in every if row["fact"] in mine]
    alarms = {} if method == "unknown" else each([row for row in every if row["fact"] not in mine])
    declined = [row | {"refused": refusals.is_refusal(row["said"], unjudged=False)} for row in rows]
    return {
        "method": method,
        "seed": seed,
        "settings": settings.get(method, 0),
        "asked": [fact.asked.text for fact in asked],
        "each": each(rows),
        "refused": each(declined, "refused"),
        "alarms": alarms,
        "neighbour": [round(row["neighbour"], 4) for row in rows if row["attack"] == "two questions"],
        "said": {name: [row["said"] for row in rows if row["attack"] == name] for name in each(rows)},
        "seconds": round(time.perf_counter() - began, 1),
    }


def chosen() -> dict[str, int | None]:
    """For each method the number of its setting: that for silence, or for refusals."""
    found = stored_rows.chosen(stored_rows.load("pretrained"), EDITORS)
    return {"unedited": 0} | found["silent"] | {"grace, polite": found["polite"]["grace"]}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows = Rows("detours", began, {"draws": DRAWS["pretrained"]})
    first = {r["draw"]: r for r in stored_rows.load("pretrained") if r["method"] == "unedited"}
    settings, never = chosen(), []
    for seed in range(DRAWS["pretrained"]):
        cell = cells.open_cell("pretrained", seed, first[seed])
        never = never or never_known(cell.lm)
        mine = beside(cell.forget, never)
        for method in sys.argv[1:] or METHODS:
            make = partial(measure, method, seed, cell, mine, settings)
            rows.keep("rows", f"{method}, draw {seed}", make)


if __name__ == "__main__":
    main()
