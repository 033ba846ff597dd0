"""How `is_it_gone.py` and `architectures.py` apply a method: its settings, and what it is given of a task.

The settings are the best of the trials in `tuning.jsonl` (three a method on SmolLM2, four on tinyworld). The comparison
of chapter 11 has a plan of its own, with more trials of every method (`benchmarks/comparison`).
"""

from typing import Any

from minilib import METHODS, stored, tasks, tinyworld
from minilib import texts as samples
from minilib.model import LM

EDITORS = [name for name, method in METHODS.items() if method.kind != "trains"]
GRADIENT = [name for name, method in METHODS.items() if method.kind == "trains"]
FIXED = {  # of every method that trains; what its trials say comes on top
    "smollm2-135m": {"steps": 12, "batch_size": 4},
    "tinyworld": {"steps": 60, "batch_size": 8},
}
RATES = {  # what is tried of a method that trains on tinyworld
    "gradient_ascent": [{"lr": 3e-5}, {"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-3}],
    "rmu": [{"lr": 1e-3, "alpha": 1.0, "layer": 2}, {"lr": 1e-3, "alpha": 10.0, "layer": 2},
            {"lr": 3e-3, "alpha": 10.0, "layer": 2}, {"lr": 3e-3, "alpha": 100.0, "layer": 3}],
}  # fmt: skip
ANY_RATES = [{"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-4, "retain_weight": 5.0}, {"lr": 3e-4, "retain_weight": 5.0}]


def chosen(model: str) -> dict[str, dict[str, Any]]:
    """For each method the settings of its best trial on "smollm2-135m" or "tinyworld"."""
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for row in stored.lines("tuning"):
        if "scores" in row and (row["knowledge"] == "exact") == (model == "tinyworld"):
            score = tasks.score({name: [share] for name, share in row["scores"].items()})
            if score > best.get(row["method"], (-1.0, {}))[0]:
                best[row["method"]] = score, row["settings"]
    return {method: settings for method, (_, settings) in best.items()}


def apply(method: str, task: tasks.Task, settings: dict[str, Any], seed: int = 0) -> LM:
    """The model after a method: edited in place, or another one for the oracle."""
    lm, tiny = task.lm, not task.lm.has_chat
    if method == "unedited":
        return lm
    if method == "oracle":
        assert task.oracle is not None
        return task.oracle
    refusal = tinyworld.REFUSAL if tiny else "I don't know."
    if method in GRADIENT:
        more: dict[str, Any] = {"refusals": [refusal]} if tiny and method in ("dpo", "refusal_tuning") else {}
        retain = None if method == "gradient_ascent" else task.retain_said
        how = FIXED["tinyworld" if tiny else "smollm2-135m"] | settings | more
        METHODS[method].edit(lm, task.forget_said, retain, **how, seed=seed)
        return lm
    how = dict(settings)
    if method == "wise":
        kept = [f.request(f.answer, lm.has_chat) for f in task.retain]
        how.setdefault("irrelevant", [*kept, *([] if tiny else samples.messages()[:256])])
    if method != "grace":
        how["seed"] = seed
    METHODS[method].edit(lm, [f.request(refusal, lm.has_chat) for f in task.forget], **how)
    return lm
