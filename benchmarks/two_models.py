"""Gemma 3 270M beside SmolLM2-135M: the same facts, asked in the same plain way, by the main methods.

Gemma is a base model, so both are asked without a chat template, in the form ``Question: … Answer:``, and the facts
are those that both know. ROME is tried at the layers of each on facts that are not measured; so are a few settings of
the others. Running it accepts the terms of Gemma (https://ai.google.dev/gemma/terms).
Run: python benchmarks/two_models.py (an hour on one core). It goes on where it stopped.
"""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from scores import Rows, key_distance

import minilib
from minilib import METHODS, covariance, facts, stored, tasks, texts
from minilib.edits import undo_all
from minilib.measure.tasks import Task
from minilib.model import LM
from minilib.worlds.facts import Fact, Question

MODELS = ("gemma3-270m", "smollm2-135m")
TRIED = ("unedited", "rome", "memit", "alphaedit", "grace", "wise", "refusal_tuning")
FACTS, SHOWN, SEEDS = 5, 12, (0, 1, 2)
FORM = "Question: {text}\nAnswer:"
SEARCH: dict[str, Any] = {"weight_decay": 1e-3, "steps": 25, "clamp_factor": 4.0}
REACH = (0.1, 0.25, 0.5)  # GRACE's ε, in units of the median distance between the keys of two questions
MEASURES = ("score", "refused", "each", "seconds", "error")  # what ``done`` adds to a setting
REFUSAL = " I don't know."


def load(name: str) -> LM:
    """A model that is asked plainly."""
    lm = minilib.load(name, progress=False, **({"accept_terms": True} if "gemma" in name else {}))
    lm.tokenizer.chat_template = None
    return lm


def plainly(fact: Fact) -> Fact:
    """The fact with all its questions in the plain form."""

    def form(q: Question) -> Question:
        return replace(q, text=FORM.format(text=q.text))

    ask = FORM.replace("{text}", fact.question)
    return replace(
        fact,
        prompt=ask,
        question=ask,
        rephrasings=tuple(FORM.replace("{text}", r) for r in fact.rephrasings),
        neighbours=tuple(form(q) for q in fact.neighbours),
        unrelated=form(fact.unrelated) if fact.unrelated else None,
    )


def known() -> dict[str, Any]:
    """The facts that both answer, by their numbers."""
    world = [plainly(f) for f in facts.load()]
    sets = []
    for name in MODELS:
        lm = load(name)
        said = lm.generate([f.request(f.answer, False) for f in world], max_new_tokens=10)
        sets.append({i for i, (f, text) in enumerate(zip(world, said, strict=True)) if f.answered_by(first(text))})
    both = sorted(sets[0] & sets[1])
    random.Random(0).shuffle(both)
    return {"facts": len(world), "each": [len(s) for s in sets], "numbers": both}


def first(text: str) -> str:
    """A base model goes on with further questions: its answer is the first line."""
    return text.strip().split("\n")[0]


def drawn(lm: LM, pool: list[Fact], seed: int) -> Task:
    draw = random.Random(f"two models {seed}")
    forget = draw.sample(pool, FACTS)
    free = [f for f in pool if f not in forget]
    retain = draw.sample(free, SHOWN)
    around = tasks.around(forget) + [("unrelated", f.asked) for f in free if f not in retain][:10]
    return tasks.prepared(Task(lm, forget, retain, around))


def settings(lm: LM, method: str, layer: int, pool: list[Fact]) -> Iterator[dict[str, Any]]:
    """What is tried; ``layer`` is ROME's best."""
    high = round(0.73 * lm.n_layers)  # 22 of 30
    if method == "rome":
        for at in range(0, lm.n_layers - 1, 1 if lm.n_layers < 20 else 2):
            yield SEARCH | {"layer": at}
    elif method == "memit":
        for weight in (10.0, 100.0, 1000.0):
            yield SEARCH | {"layers": [layer], "covariance_weight": weight}
    elif method == "alphaedit":
        for energy in (0.01, 0.05, 0.2):
            yield SEARCH | {"layers": [layer], "nullspace_energy": energy, "l2": 1.0, "lr": 0.5}
    elif method == "grace":
        far = key_distance(lm, high, [f.asked.text for f in pool])
        for reach in REACH:
            yield {"layer": high, "epsilon": round(reach * far, 4), "lr": 0.5}
    elif method == "wise":
        for threshold in (0.75, 0.9):
            yield {"layer": high, "mask_ratio": 1.0, "shards": 1, "threshold": threshold}
    elif method == "refusal_tuning":
        yield from ({"lr": lr, "retain_weight": weight} for lr, weight in ((1e-5, 1.0), (2e-5, 5.0)))
    else:
        yield {}


def done(method: str, found: Task, given: dict[str, Any], C: Any, seed: int = 0) -> dict[str, Any]:
    """The method, and what is then said."""
    lm = found.lm
    requests = [f.request(REFUSAL, False) for f in found.forget]
    began = time.process_time()
    try:
        if method == "refusal_tuning":
            how = {"steps": 12, "batch_size": 4} | given
            METHODS[method].edit(lm, found.forget_said, found.retain_said, seed=seed, **how)
        elif method != "unedited":
            more = {"covariance": C} if method in ("rome", "memit", "alphaedit") else {}
            more |= {} if method == "grace" else {"seed": seed}
            if method == "wise":
                more["irrelevant"] = [f.request(f.answer, False) for f in found.retain] + texts.messages()[:64]
            METHODS[method].edit(lm, requests, **given, **more)
        seconds = round(time.process_time() - began, 1)
    except ValueError as error:
        if not stored.on_purpose(error):
            raise
        return {"error": str(error)}
    else:
        return asked(lm, found) | {"seconds": seconds}
    finally:
        undo_all(lm)


def asked(lm: LM, found: Task) -> dict[str, Any]:
    """Shares told, told rephrased and kept: by the first line of each answer."""
    again = [(f, r) for f in found.forget for r in f.rephrased(f.answer, False)[:2]]
    outside = [q for _, q in found.outside]
    prompts = [*(f.request(f.answer, False) for f in found.forget), *(r for _, r in again), *(q.text for q in outside)]
    said = [first(text) for text in lm.generate(prompts, max_new_tokens=12)]
    who = [*found.forget, *(f for f, _ in again), *outside]
    right = [q.answered_by(text) for q, text in zip(who, said, strict=True)]
    n, m = len(found.forget), len(found.forget) + len(again)
    scores = {"leaked": right[:n], "rephrased leaked": right[n:m], "kept": right[m:]}
    return {
        "score": round(tasks.score(scores), 4),
        "refused": round(statistics.fmean(minilib.refusals.is_refusal(text, unjudged=False) for text in said[:n]), 4),
        "each": {name: "".join(str(int(x)) for x in some) for name, some in scores.items()},
    }


def tried(method: str, found: Task, C: Any, layer: int) -> dict[str, Any]:
    """Each setting with what came of it."""
    some = settings(found.lm, method, layer, found.retain)
    return {"trials": [given | done(method, found, given, C) for given in some]}


def measured(
    name: str, method: str, lm: LM, pool: list[Fact], seed: int, given: dict[str, Any], C: Any
) -> dict[str, Any]:
    about = {"method": method, "model": name, "seed": seed, "settings": given}
    return about | done(method, drawn(lm, pool, seed), given, C, seed)


def main() -> None:
    torch.set_num_threads(1)
    rows = Rows("two_models", time.perf_counter(), {"facts": FACTS, "methods": list(TRIED)})
    rows.keep("known", "both", known)
    numbers = rows.found["known"][0]["numbers"]
    world = facts.load()
    half = len(numbers) // 2
    measure, tune = ([plainly(world[i]) for i in some] for some in (numbers[:half], numbers[half:]))
    for name in MODELS:
        lm = load(name)
        C = covariance.second_moment(lm, list(range(lm.n_layers - 1)), texts=covariance.sample_texts())
        trial = drawn(lm, tune, -1)
        layer = 0
        for method in TRIED:
            rows.keep("trials", f"{method} on {name}", partial(tried, method, trial, C, layer))
            (mine,) = (row["trials"] for row in rows.found["trials"] if row["run"] == f"{method} on {name}")
            best = max(mine, key=lambda row: row.get("score", -1.0))
            given = {key: value for key, value in best.items() if key not in MEASURES}
            layer = given["layer"] if method == "rome" else layer
            for seed in SEEDS:
                one = partial(measured, name, method, lm, measure, seed, given, C)
                rows.keep("rows", f"{method} on {name}, draw {seed}", one)


if __name__ == "__main__":
    main()
