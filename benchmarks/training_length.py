"""Does AlphaEdit write worse into a model that was trained longer? Tinyworld's Llama, two lengths, two seeds each.

The packaged model was trained for 850 steps, the medium Llama of `architectures.py` for 1,700; all else is alike.
AlphaEdit gets the settings that the trials of `architectures.py` chose, and once a faster search, on three draws of
twenty facts. Run: python benchmarks/training_length.py (ten minutes on one core). It goes on where it stopped.
"""

import time
from functools import partial
from statistics import fmean
from typing import Any

import torch
from scores import Rows

from minilib import alphaedit, covariance, stored, tasks, tinyworld

STEPS, SEEDS, DRAWS = (850, 1700), (0, 1), (0, 1, 2)


def measured(steps: int, seed: int, best: dict[str, Any]) -> dict[str, Any]:
    model = tinyworld.train(seed=seed, steps=steps)
    C = covariance.second_moment(model, [0], texts=covariance.sample_texts("tinyworld"))
    recall = round(tinyworld.recall(model, tinyworld.facts()), 4)
    found: dict[str, Any] = {"steps": steps, "seed": seed, "recall": recall, "as chosen": [], "faster search": []}
    for draw in DRAWS:
        task = tasks.exact(20, draw, model)
        refusals = [fact.request(tinyworld.REFUSAL, chat=False) for fact in task.forget]
        for name, more in (("as chosen", {}), ("faster search", {"lr": 0.5})):
            with alphaedit.edit(model, refusals, covariance=C, progress=False, **best | more):
                marks = tasks.measure(model, task)
            shares = {column: fmean(marks[column]) for column in ("leaked", "rephrased leaked", "kept")}
            found[name].append({"score": round(tasks.score(marks), 4), **{k: round(v, 4) for k, v in shares.items()}})
    return found


def main() -> None:
    torch.set_num_threads(1)
    models = {row["run"]: row for row in stored.load("architectures")["models"]}
    best = models["llama-medium"]["trials"]["alphaedit"]["best"] | {"nullspace_threshold": None}
    rows = Rows("training_length", time.perf_counter(), {"settings": best})
    for steps in STEPS:
        for seed in SEEDS:
            rows.keep("models", f"{steps} steps, seed {seed}", partial(measured, steps, seed, best))


if __name__ == "__main__":
    main()
