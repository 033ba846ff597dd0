"""Attacks on four capitals in SmolLM2, unedited, after ROME and after GRACE: what chapter 12 shows of them.

Asked in nine other ways, read by the lens, and (ROME) with singular directions dropped from the layer that was edited
and, as a control, from another. Run: python benchmarks/attacked_capitals.py (four minutes on one core).
"""

import time
from contextlib import nullcontext
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import attacks, facts, grace, inside, refusals, rome
from minilib.edits import Edit

FACTS, OTHERS, TOKENS, DROPS = 4, 16, 24, (1, 2, 4)


def measure(lm: minilib.LM, chosen: list[facts.Fact], others: list[str], edit: Edit | None) -> dict[str, Any]:
    leads = [f"The capital of {fact.subject} is" for fact in chosen]
    return {
        "refused": sum(map(refusals.is_refusal, lm.generate([fact.request(REFUSAL) for fact in chosen]))),
        "asked": attacks.jailbreaks(lm, chosen, others=others, max_new_tokens=TOKENS),
        "ranks": [row["ranks"] for row in inside.lens(lm, chosen, leads=leads)],
        "gaps": [round(gap, 4) for gap in attacks.singular_gaps(lm)],
        **(reversed_(edit, chosen) if edit and edit.method == "rome" else {}),
    }


def reversed_(edit: Edit, chosen: list[facts.Fact]) -> dict[str, Any]:
    """The edit's own singular values, and what is said without the first directions of two layers."""
    ((name, delta),) = edit.deltas.items()
    (layer,) = (n for n in range(edit.lm.n_layers) if edit.lm.weight_name(n) == name)
    rows = [
        {"layer": at, "drop": drop, "facts": attacks.reversal(edit, chosen, [at], drop=drop)}
        for at in (layer, layer + 6)
        for drop in DROPS
    ]
    singular = torch.linalg.svdvals(delta)[: len(chosen) + 1]
    return {"layer": layer, "singular values": [round(s.item(), 4) for s in singular], "reversal": rows}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    capitals = [fact for fact in facts.recorded() if fact.relation == "capital"]
    chosen, others = capitals[:FACTS], [fact.value for fact in capitals[FACTS * 2 : FACTS * 2 + OTHERS]]
    requests = [fact.request(REFUSAL) for fact in chosen]
    rows = Rows("attacked_capitals", began, {"facts": [fact.subject for fact in chosen], "tokens": TOKENS})
    edits = {
        "unedited": nullcontext,
        "ROME": lambda: rome.edit(lm, requests),
        "GRACE": lambda: grace.edit(lm, requests),
    }
    for name, make in edits.items():

        def attack(make: Any = make) -> dict[str, Any]:
            with make() as edit:
                return measure(lm, chosen, others, edit)

        rows.keep("rows", name, attack)

    def first_alone() -> dict[str, Any]:
        with rome.edit(lm, requests[0]) as edit:
            return measure(lm, chosen[:1], others, edit)

    rows.keep("alone", f"ROME, {chosen[0].subject} alone", first_alone)


if __name__ == "__main__":
    main()
