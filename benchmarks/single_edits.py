"""One refusal by ROME for each of twelve facts, each undone before the next: how it scores. Chapter 01 shows the means.

Run: python benchmarks/single_edits.py (five minutes on one core).
"""

import time
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import facts, metrics, rome

RELATIONS, EACH = ("capital", "landmark", "author"), 4


def measure(lm: minilib.LM, fact: facts.Fact) -> dict[str, Any]:
    outside = {
        "other subject": fact.neighbours[0].text,
        "same subject": fact.neighbours[1].text,
        "unrelated": fact.unrelated.text,
    }
    before = {kind: lm.generate([question]) for kind, question in outside.items()}
    with rome.edit(lm, fact.request(REFUSAL)):
        found = {
            "reliability": metrics.reliability(lm, fact.request(REFUSAL)),
            "generality": metrics.generality(lm, fact.rephrased(REFUSAL)),
        }
        for kind, question in outside.items():
            found[f"locality: {kind}"] = metrics.locality(lm, [question], before[kind])
    scores = {name: [round(s.generated, 4), round(s.teacher_forced, 4)] for name, s in found.items()}
    return {"subject": fact.subject, "scores": scores}


def answered(lm: minilib.LM, chosen: list[facts.Fact]) -> dict[str, Any]:
    """Whether the unedited model answers the questions about the same subject rightly; locality does not ask that."""
    questions = [fact.neighbours[1] for fact in chosen]
    said = lm.generate([q.text for q in questions], max_new_tokens=16)
    return {"right": [q.answered_by(text) for q, text in zip(questions, said, strict=True)]}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    rows = Rows("single_edits", began, {"refusal": REFUSAL})
    recorded = facts.recorded()
    chosen = [f for relation in RELATIONS for f in [f for f in recorded if f.relation == relation][:EACH]]
    for fact in chosen:
        rows.keep("rows", f"{fact.relation}: {fact.subject}", lambda fact=fact: measure(lm, fact))
    rows.keep("before", "same subject", lambda: answered(lm, chosen))


if __name__ == "__main__":
    main()
