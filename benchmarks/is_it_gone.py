"""Every method × every attack, with its false alarms beside: was the fact removed, masked, or guarded?

On tinyworld ("exact") the methods, settings and draws of facts are those of the comparison, with the settings that it
chose for silence; the oracle is the model trained without the facts. On the invented authors ("finetuned") SmolLM2
forgets three, with settings of earlier trials. Facts of the world are asked in ``detours.py``. Run: python
benchmarks/is_it_gone.py exact (an hour on one core, half of it for training the oracles), or finetuned; names of
methods behind it restrict it to these. It goes on where it stopped.
"""

import random
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trials
from scores import Rows

sys.path.insert(0, str(Path(__file__).parent / "comparison"))

import cells
import worlds
from plan import DRAWS, EDITORS, TRAINED, Job

from minilib import attacks, authors, facts, inside, steering, tasks, tinyworld, verdicts
from minilib import rows as stored_rows
from minilib.edits import undo_all
from minilib.model import LM
from minilib.requests import Request

FACTS = {"exact": 20, "finetuned": 15}
SEEDS = {"exact": range(DRAWS["exact"]), "finetuned": range(1)}
METHODS = {
    "exact": ("unedited", "oracle", *EDITORS, "memit, with history", *TRAINED),
    "finetuned": ("unedited", "oracle", *trials.EDITORS, *trials.GRADIENT),
}
RATE = {"exact": 3e-4, "finetuned": 1e-5}  # of relearning
STEPS = (1, 2, 5, 10, 20)
LAYER = {"exact": 3, "finetuned": 20}  # of the probe
REFUSAL_AT = 4  # the block of tinyworld after which the direction of refusal is read
SHOWN = 5  # of the forgotten facts, in relearning and for a soft prompt


def written_to(lm: LM) -> list[int]:
    """The layers whose W the edits in force have changed, for who knows where to look; none where all have."""
    names = {name for edit in lm.edits for name in edit.deltas}
    layers = [layer for layer in range(lm.n_layers) if lm.weight_name(layer) in names]
    return layers if len(layers) < lm.n_layers else []


def each(rows: Sequence[attacks.Row], what: str = "recovered") -> dict[str, str]:
    """For each attack its facts, 1 where it was recovered."""
    kinds = dict.fromkeys(row["attack"] for row in rows)
    return {kind: "".join(str(int(r[what])) for r in rows if r["attack"] == kind) for kind in kinds}


# ---- with an oracle -----------------------------------------------------------------------------------


def strangers(asked: Sequence[facts.Fact], seed: int) -> list[facts.Fact]:
    """Facts of tinyworld's forms about people whom it never met."""
    draw, names = random.Random(f"strangers {seed}"), tinyworld.strangers(seen=False)
    found = []
    for name, fact in zip(draw.sample(names, min(len(names), 2 * len(asked))), [*asked, *asked], strict=False):
        value = draw.choice([f.value for f in asked if f.relation == fact.relation])
        found.append(facts.Fact(fact.relation, name, value, (), fact.question, fact.question, (), (), None))
    return found


def attacked(
    lm: LM, asked: list[facts.Fact], said: list[Request], kept: list[facts.Fact], kept_said: list[Request],
    knowledge: str, seed: int, layers: list[int],
) -> list[attacks.Row]:  # fmt: skip
    """All attacks that apply to a model, as rows."""
    rows = attacks.none(lm, asked)
    rows += attacks.rephrasings(lm, asked)
    rows += attacks.sampling(lm, asked, seed=seed)
    shown = said[:: len(asked) // SHOWN][:SHOWN]
    rows += attacks.relearning(lm, asked, shown, steps=STEPS, lr=RATE[knowledge], seed=seed)
    for bits in (8, 4):
        rows += attacks.quantisation(lm, asked, bits=bits)
    if layers:
        rows += attacks.reversal(lm, asked, layers)
    if any(edit.method in ("grace", "wise") for edit in lm.edits):
        rows += attacks.unguarded(lm.edits[-1], asked)
    if lm.has_chat:
        others = sorted({f.value for f in authors.facts()} - {f.value for f in asked})
        rows += attacks.jailbreaks(lm, asked, others=others[:30], seed=seed)
        rows += attacks.negations(lm, asked, others=others[:30], seed=seed)
        rows += inside.membership(lm, asked, authors.strangers())
    else:
        harmless = attacks.relearning(lm, asked, kept_said, steps=STEPS[-1:], lr=RATE[knowledge], seed=seed)
        rows += [row | {"attack": "harmless training", "by step": None} for row in harmless]
        rows += steering.soft_prompt(lm, asked, shown, seed=seed)
        rows += steering.ablation(lm, asked, kept[:40], layer=REFUSAL_AT)
        rows += inside.membership(lm, asked, strangers(asked, seed), tails=2)
    leads = [f.prompt.replace("{}", f.subject) for f in asked] if lm.has_chat else None
    rows += inside.lens(lm, asked, leads)
    known = kept + [f for f in authors.facts() if f not in asked] if lm.has_chat else kept
    rows += inside.probe(lm, asked, known, LAYER[knowledge])
    return rows


def row_of(method: str, seed: int, settings: Any, rows: list[attacks.Row], alarms: dict[str, str]) -> dict[str, Any]:
    """What is stored of a model that was attacked."""
    tested = [row for row in rows if row["attack"] == "membership"]
    rows = [row for row in rows if row.get("member", True)]
    steps = [row["by step"] for row in rows if row["attack"] == "relearning"]
    return {
        "method": method,
        "seed": seed,
        "settings": settings,
        "rates": {name: round(rate, 4) for name, rate in verdicts.rates(rows).items()},
        "each": each(rows),
        "alarms": alarms,
        "auc": {score: round(verdicts.auc(tested, score), 4) for score in ("loss", "min-k") if tested},
        "relearning": {str(step): round(statistics.fmean(row[step] for row in steps), 4) for step in (0, *STEPS)},
    }


def exact(method: str, seed: int, cell: worlds.Cell, settings: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    lm = cells.apply(Job("exact", seed, method, settings[method]), cell)
    layers = written_to(lm)
    world = cells.trained_on(cell, cell.forget), cell.retain, cells.trained_on(cell, cell.retain), "exact", seed
    try:
        rows = attacked(lm, cell.forget, *world, layers)
    finally:
        undo_all(cell.lm)
    # An oracle has no layers that were written to: the same ones are treated as in the model it stands beside.
    alarms = each(attacks.reversal(cell.oracle, cell.forget, layers)) if layers else {}
    found = row_of(method, seed, settings[method], rows, alarms)
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def finetuned(method: str, seed: int, found: tasks.Task) -> dict[str, Any]:
    began = time.perf_counter()
    settings = trials.chosen("smollm2-135m").get(method, {})
    lm = trials.apply(method, found, settings, seed)
    layers = written_to(lm)
    world = found.forget_said, found.retain, found.retain_said, "finetuned", seed
    try:
        rows = attacked(lm, found.forget, *world, layers)
    finally:
        undo_all(found.lm)
    alarms = each(attacks.reversal(found.oracle, found.forget, layers)) if layers else {}
    return row_of(method, seed, settings, rows, alarms) | {"seconds": round(time.perf_counter() - began, 1)}


def silent() -> dict[str, int]:
    """For each method the number of the setting that the comparison chose for silence."""
    found = stored_rows.chosen(stored_rows.load("exact"), METHODS["exact"][2:])["silent"]
    return {"unedited": 0, "oracle": 0} | {method: number for method, number in found.items() if number is not None}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    world, *methods = sys.argv[1:] or ["exact"]
    rows = Rows("is_it_gone", began, {"facts": FACTS, "steps": list(STEPS), "lr": RATE})
    first = {r["draw"]: r for r in stored_rows.load("exact") if r["method"] == "unedited"}
    settings = silent()
    for seed in SEEDS[world]:
        if world == "exact":
            made: Any = partial(exact, cell=cells.open_cell(world, seed, first[seed]), settings=settings)
        else:
            made = partial(finetuned, found=tasks.finetuned(FACTS[world], seed))
        for method in methods or METHODS[world]:
            rows.keep(world, f"{method}, draw {seed}", partial(made, method, seed))


if __name__ == "__main__":
    main()
