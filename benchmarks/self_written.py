"""The refusals that SmolLM2 writes itself for the questions of the comparison (recipe 1), with every candidate.

Run: python benchmarks/self_written.py (20 minutes on one core; it goes on where it stopped).
"""

import time
from typing import Any

import torch
from scores import Rows

import minilib
from minilib import authors, benchmark, facts, recipes

SAMPLES, TEMPERATURE = 4, 0.7


def write(lm: minilib.LM, fact: facts.Fact) -> dict[str, Any]:
    value = fact.aliases[0] if fact.wrong else fact.answer  # the word of a taught sentence that gives it away
    (found,) = recipes.self_improvement(lm, fact.request(value), samples=SAMPLES, temperature=TEMPERATURE)
    return {"refusal": found.request.target, "by": found.by, "candidates": found.candidates}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows = Rows("self_written", began, {"samples": SAMPLES, "temperature": TEMPERATURE})
    world = facts.recorded()[: benchmark.MEASURED]
    taught = authors.split(max(authors.SPLITS))[0]
    for lm, some in ((minilib.load("smollm2-135m"), world), (authors.load(), taught)):
        for fact in some:
            rows.keep("refusals", fact.request(fact.answer).text, lambda lm=lm, fact=fact: write(lm, fact))


if __name__ == "__main__":
    main()
