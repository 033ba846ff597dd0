"""Find the presets of ROME, MEMIT and AlphaEdit for SmolLM2: refusals in chat format, scored by free generation.

One setting at a time is varied around the values in use. The score of a setting is the harmonic mean of reliability,
generality and locality (the mean of *other subject* and *unrelated*): a setting that is bad at one of them is bad. The
facts are not those that the chapters measure on. Run: python benchmarks/presets.py (a quarter of an hour on 2 cores),
or with the names of the methods to try again: python benchmarks/presets.py alphaedit
"""

import json
import statistics
import sys
import time
from typing import Any

from scores import REFUSAL, outside, refused

import minilib
from minilib import alphaedit, covariance, facts, memit, rome, stored

FACTS = facts.recorded()[100:106]  # the chapters take from the front

ROME: list[dict[str, Any]] = [
    *({"layer": layer} for layer in (3, 5)),  # edit_every_layer.py tries all
    {"stop_loss": 0.3},
    {"weight_decay": 0.5},
]
MEMIT: list[dict[str, Any]] = [
    *({"layers": list(range(first, last + 1))} for first, last in ((0, 4), (3, 5), (4, 8))),
    *({"covariance_weight": weight} for weight in (10.0, 100.0, 15000.0)),
    {"stop_loss": 0.3},
    {"kl_factor": 1.0},
]
ALPHAEDIT: list[dict[str, Any]] = [
    *({"layers": list(range(first, last + 1))} for first, last in ((0, 4), (4, 8))),
    *({"nullspace_threshold": threshold} for threshold in (5e-3, 1e-2, 5e-2)),
    *({"l2": l2} for l2 in (0.1, 1.0, 100.0)),
    {"nullspace_threshold": 5e-3, "l2": 0.1},
    {"lr": 0.1, "weight_decay": 0.5},
    {"anchor_norm": True},
    {"project": False},
]
TOGETHER = {"memit": (memit, MEMIT), "alphaedit": (alphaedit, ALPHAEDIT)}  # all facts in one edit
PRESETS = {method.__name__.rpartition(".")[2]: method.Settings.PRESETS for method in (rome, memit, alphaedit)}


def harmonic(row: dict[str, float]) -> float:
    """One number for a row of scores, between 0 and 1."""
    locality = (row["other subject"] + row["unrelated"]) / 2
    values = [row["reliability"], row["generality"], locality]
    return round(statistics.harmonic_mean(values), 4) if all(values) else 0.0


def keep(name: str, changed: dict[str, Any], scores: dict[str, float], rows: dict[str, Any]) -> None:
    rows[name].append({"changed": changed, **scores, "score": harmonic(scores)})
    print(name, json.dumps(rows[name][-1]), file=sys.stderr, flush=True)


def main() -> None:
    wanted = sys.argv[1:] or list(PRESETS)
    if not set(wanted) <= set(PRESETS):
        sys.exit(f"methods to try are {', '.join(PRESETS)}, not {' '.join(wanted)}")
    began = time.perf_counter()
    lm = minilib.load("smollm2-135m")
    C = covariance.second_moment(lm, list(range(9)))
    before = lm.generate(outside(FACTS))
    rows = {} if set(wanted) == set(PRESETS) else stored.load("presets")
    made = rows.pop("provenance", None)
    rows |= {name: [] for name in wanted}
    for changed in [{}, *ROME] if "rome" in wanted else []:
        scores = []
        for i, fact in enumerate(FACTS):
            with rome.edit(lm, fact.request(REFUSAL), covariance=C, **changed):
                scores.append(refused(lm, [fact], before[3 * i : 3 * i + 3]))
        keep("rome", changed, {name: round(statistics.fmean(s[name] for s in scores), 4) for name in scores[0]}, rows)
    for name in [name for name in TOGETHER if name in wanted]:
        method, variants = TOGETHER[name]
        for changed in [{}, *variants]:
            with method.edit(lm, [fact.request(REFUSAL) for fact in FACTS], covariance=C, **changed):
                keep(name, changed, refused(lm, FACTS, before), rows)
    rows["facts"] = [f"{fact.relation}: {fact.subject}" for fact in FACTS]
    rows["presets"] = {name: presets[lm.kind] for name, presets in PRESETS.items()}
    stored.save("presets", rows, "benchmarks/presets.py", began, earlier=made)


if __name__ == "__main__":
    main()
