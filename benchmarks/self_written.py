"""The refusals that SmolLM2 writes itself for the questions of the comparison (recipe 1), with every candidate.

Run: python benchmarks/self_written.py (half an hour on one core; it goes on where it stopped).
"""

import functools
import time
from typing import Any

import torch
from scores import Rows

import minilib
from minilib import authors, facts, recipes, tasks

SAMPLES, TEMPERATURE, TOGETHER = 4, 0.7, 12


def as_row(written: recipes.Written) -> dict[str, Any]:
    return {"refusal": written.request.target, "by": written.by, "candidates": written.candidates}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows = Rows("self_written", began, {"samples": SAMPLES, "temperature": TEMPERATURE})
    world = facts.recorded()[: tasks.MEASURED]
    taught = authors.split(max(authors.SPLITS))[0]
    for lm, some in ((minilib.load("smollm2-135m"), world), (authors.load(), taught)):
        for start in range(0, len(some), TOGETHER):
            chunk = some[start : start + TOGETHER]
            asked = [fact.request(fact.value) for fact in chunk]  # which a refusal must not hold
            how = {"samples": SAMPLES, "temperature": TEMPERATURE}
            write = functools.cache(functools.partial(recipes.self_improvement, lm, asked, **how))
            for i, request in enumerate(asked):
                rows.keep("refusals", request.text, lambda i=i, write=write: as_row(write()[i]))


if __name__ == "__main__":
    main()
