"""Every method × every attack, with the oracle's row beside: was the fact removed, masked, or guarded?

On tinyworld four people are forgotten, in three draws, and the oracle is the model trained without them; on the
invented authors SmolLM2 forgets three, and the oracle was taught all but those. Settings are those that the trials of
`trials.py` chose. Run: python benchmarks/is_it_gone.py exact (some minutes on one core, most of them for
training two of the oracles), or finetuned; names of methods behind it restrict it to these. It goes on where it
stopped.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import trials
from scores import Rows

from minilib import attacks, authors, inside, tasks, verdicts
from minilib.edits import undo_all
from minilib.model import LM

FACTS = {"exact": 20, "finetuned": 15}
SEEDS = {"exact": (0, 1, 2), "finetuned": (0,)}
METHODS = ("unedited", "oracle", *trials.EDITORS, *trials.GRADIENT)
RATE = {"exact": 3e-4, "finetuned": 1e-5}  # of relearning
STEPS = (1, 2, 5, 10, 20)
LAYER = {"exact": 3, "finetuned": 20}  # of the probe
SHOWN = 5  # of the forgotten facts, in relearning


def written_to(lm: LM) -> list[int]:
    """The layers whose W the edits in force have changed, for who knows where to look; none where all have."""
    names = {name for edit in lm.edits for name in edit.deltas}
    layers = [layer for layer in range(lm.n_layers) if lm.weight_name(layer) in names]
    return layers if len(layers) < lm.n_layers else []


def attacked(lm: LM, found: tasks.Task, knowledge: str, seed: int, layers: list[int]) -> list[attacks.Row]:
    """All attacks that apply to a model, as rows."""
    asked = found.forget
    rows = attacks.none(lm, asked)
    rows += attacks.rephrasings(lm, asked)
    rows += attacks.sampling(lm, asked, seed=seed)
    shown = found.forget_said[:: len(asked) // SHOWN][:SHOWN]
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
    leads = [f.prompt.replace("{}", f.subject) for f in asked] if lm.has_chat else None
    rows += inside.lens(lm, asked, leads)
    known = found.retain + [f for f in authors.facts() if f not in asked] if lm.has_chat else found.retain
    rows += inside.probe(lm, asked, known, LAYER[knowledge])
    return rows


def measure(knowledge: str, method: str, seed: int, found: tasks.Task) -> dict[str, Any]:
    began = time.perf_counter()
    settings = trials.chosen("tinyworld" if knowledge == "exact" else "smollm2-135m").get(method, {})
    lm = trials.apply(method, found, settings, seed)
    layers = written_to(lm)
    try:
        rows = attacked(lm, found, knowledge, seed, layers)
    finally:
        undo_all(found.lm)
    tested = [row for row in rows if row["attack"] == "membership"]
    rows = [row for row in rows if row.get("member", True)]
    # An oracle has no layers that were written to: the same ones are treated as in the model it stands beside.
    alarms = each(attacks.reversal(found.oracle, found.forget, layers)) if layers else {}
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
        "seconds": round(time.perf_counter() - began, 1),
    }


def each(rows: Sequence[attacks.Row]) -> dict[str, str]:
    """For each attack its facts, 1 where it was recovered."""
    kinds = dict.fromkeys(row["attack"] for row in rows)
    return {kind: "".join(str(int(r["recovered"])) for r in rows if r["attack"] == kind) for kind in kinds}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    knowledge, *methods = sys.argv[1:] or ["exact"]
    rows = Rows("is_it_gone", began, {"facts": FACTS, "steps": list(STEPS), "lr": RATE})
    for seed in SEEDS[knowledge]:
        found = (tasks.exact if knowledge == "exact" else tasks.finetuned)(FACTS[knowledge], seed)
        for method in methods or METHODS:
            make = partial(measure, knowledge, method, seed, found)
            rows.keep(knowledge, f"{method}, draw {seed}", make)


if __name__ == "__main__":
    main()
