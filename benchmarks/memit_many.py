"""MEMIT on 1, 4, 16 and 64 facts at once: facts changed to another answer, and refusals in chat format.

For each number of facts several batches are drawn without overlap from what SmolLM2 knows. Stored for each batch: the
probability of the target before and after (mean over its facts), reliability, generality and locality by free
generation, the seconds of the edit, and the size of the change. Run: python benchmarks/memit_many.py (half an hour
on 2 cores)
"""

import json
import statistics
import sys
import time
from typing import Any

from scores import REFUSAL, outside, refused

import minilib
from minilib import covariance, facts, memit, metrics, stored

BATCHES = {1: 6, 4: 3, 16: 2, 64: 1}  # number of facts: number of batches
ASKED = 8  # of a large batch, so many facts are asked about


def batches() -> dict[int, list[list[facts.Fact]]]:
    """For each number of facts, batches from the front of the list, several relations in each."""
    known = facts.recorded()[:96]
    return {n: [known[i * n : (i + 1) * n] for i in range(count)] for n, count in BATCHES.items()}


def counterfactual(fact: facts.Fact) -> minilib.Request:
    """The completion prompt with an answer that belongs to another fact of the relation."""
    other = next(f for f in facts.load(fact.relation) if not {f.answer, *f.aliases} & {fact.answer, *fact.aliases})
    return fact.request(f" {other.answer}", chat=False)


def changed(lm: minilib.LM, chosen: list[facts.Fact], before: list[str]) -> dict[str, float]:
    """Reliability on completion prompts; locality on the completions of each fact's neighbour and the far question."""
    requests = [counterfactual(fact) for fact in chosen]
    found = metrics.reliability(lm, requests)
    local = metrics.locality(lm, outside(chosen), before)
    same = [row["success"] for row in local.rows]
    return {
        "reliability": round(found.generated, 4),
        "teacher-forced": round(found.teacher_forced, 4),
        "other subject": round(statistics.fmean(same[0::3]), 4),
        "same subject": round(statistics.fmean(same[1::3]), 4),
        "unrelated": round(statistics.fmean(same[2::3]), 4),
    }


def measure(lm: minilib.LM, kind: str, batch: list[facts.Fact], C: Any, **settings: Any) -> dict[str, Any]:
    """One batch: edit, ask, undo."""
    requests = [fact.request(REFUSAL) if kind == "refusal" else counterfactual(fact) for fact in batch]
    chosen = batch[:ASKED]
    before = lm.generate(outside(chosen))
    p_before = statistics.fmean(lm.probability(requests))
    started = time.perf_counter()
    with memit.edit(lm, requests, covariance=C, **settings) as edit:
        seconds = time.perf_counter() - started
        p_after = statistics.fmean(lm.probability(requests))
        scores = refused(lm, chosen, before, batch) if kind == "refusal" else changed(lm, chosen, before)
        size = statistics.fmean(a / b for a, b in edit.sizes().values())
    about = {"facts": len(batch), "first": f"{batch[0].relation}: {batch[0].subject}", "seconds": round(seconds, 1)}
    return {**about, "before": round(p_before, 4), "after": round(p_after, 4), **scores, "size": round(size, 4)}


def main() -> None:
    began = time.perf_counter()
    lm = minilib.load("smollm2-135m")
    C = covariance.second_moment(lm, memit.Settings.of(lm).layers)
    found: dict[str, list[dict[str, Any]]] = {"refusal": [], "another answer": []}
    for kind, rows in found.items():
        for drawn in batches().values():
            for batch in drawn:
                rows.append(measure(lm, kind, batch, C))
                print(kind, json.dumps(rows[-1]), file=sys.stderr, flush=True)
    stored.save("memit_many", {"asked": ASKED, **found}, "benchmarks/memit_many.py", began)


if __name__ == "__main__":
    main()
