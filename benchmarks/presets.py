"""Find the presets of ROME and MEMIT for SmolLM2: refusals in chat format, scored by free generation.

One setting at a time is varied around the values in use. The score of a setting is the harmonic mean of reliability,
generality and locality (the mean of *other subject* and *unrelated*): a setting that is bad at one of them is bad. The
facts are not those that the chapters measure on. Run: python benchmarks/presets.py (a quarter of an hour on 2 cores)
"""

import json
import statistics
import sys
import time
from typing import Any

from scores import REFUSAL, known_facts, outside, refused

import minilib
from minilib import covariance, memit, rome, stored

FACTS = known_facts()[100:106]  # the chapters take from the front

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


def harmonic(row: dict[str, float]) -> float:
    """One number for a row of scores, between 0 and 1."""
    locality = (row["other subject"] + row["unrelated"]) / 2
    values = [row["reliability"], row["generality"], locality]
    return round(statistics.harmonic_mean(values), 4) if all(values) else 0.0


def main() -> None:
    began = time.perf_counter()
    lm = minilib.load("smollm2-135m")
    C = covariance.second_moment(lm, list(range(9)))
    before = lm.generate(outside(FACTS))
    rows: dict[str, list[dict[str, Any]]] = {"rome": [], "memit": []}
    for changed in [{}, *ROME]:
        scores = []
        for i, fact in enumerate(FACTS):
            with rome.edit(lm, fact.request(REFUSAL), covariance=C, **changed):
                scores.append(refused(lm, [fact], before[3 * i : 3 * i + 3]))
        mean = {name: round(statistics.fmean(s[name] for s in scores), 4) for name in scores[0]}
        rows["rome"].append({"changed": changed, **mean, "score": harmonic(mean)})
        print("rome", json.dumps(rows["rome"][-1]), file=sys.stderr, flush=True)
    for changed in [{}, *MEMIT]:
        with memit.edit(lm, [fact.request(REFUSAL) for fact in FACTS], covariance=C, **changed):
            found = refused(lm, FACTS, before)
        rows["memit"].append({"changed": changed, **found, "score": harmonic(found)})
        print("memit", json.dumps(rows["memit"][-1]), file=sys.stderr, flush=True)
    presets = {name: method.PRESETS[lm.kind] for name, method in (("rome", rome), ("memit", memit))}
    facts = [f"{fact.relation}: {fact.subject}" for fact in FACTS]
    stored.save("presets", {"facts": facts, "presets": presets, **rows}, "benchmarks/presets.py", began)


if __name__ == "__main__":
    main()
