"""Four capitals refused by ROME in other ways: what chapter 10 shows of them.

With the canned sentence and with the refusals that the model wrote itself, and merged, two and four questions in a
request. Run: python benchmarks/merged_capitals.py (two minutes on one core)
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import facts, recipes, rome, stored

FACTS, TOKENS = 4, 20


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    capitals = [fact for fact in facts.recorded() if fact.relation == "capital"]
    four = capitals[:FACTS]
    book = {row["run"]: row for row in stored.load("self_written")["refusals"]}
    canned = [fact.request(REFUSAL) for fact in four]
    own = [replace(r, target=book[r.text]["refusal"]) for r in canned]
    near = [fact.asked.text for fact in capitals[8:10]]
    again = [fact.rephrased(REFUSAL)[0] for fact in four]
    rows = Rows("merged_capitals", began, {"facts": [fact.subject for fact in four], "tokens": TOKENS})

    def alone(requests: Sequence[minilib.Request]) -> dict[str, Any]:
        with rome.edit(lm, requests):
            return {
                "edited": [text.strip() for text in lm.generate(requests, max_new_tokens=TOKENS)],
                "said": [text.strip() for text in lm.generate([*canned, *again, *near], max_new_tokens=TOKENS)],
            }

    about = {"asked": [r.text for r in (*canned, *again)] + near}
    rows.keep("targets", "canned", lambda: alone(canned) | about)
    rows.keep("targets", "its own", lambda: alone(own) | about)
    for size in (2, 4):
        merged = [m.request for m in recipes.merge_queries(canned, size)]
        rows.keep("merged", f"{size} in a request", lambda merged=merged: alone(merged))


if __name__ == "__main__":
    main()
