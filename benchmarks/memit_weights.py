"""Four refusals at once by MEMIT's formula with several λ: in one layer, in a window, and z itself put in by a hook.

Chapter 05 shows these rows; there the same is written by hand. Stored for each: how likely the four refusals are and
how many come, how likely the old answers about five other countries are (as a share of before) and how many stay word
for word, the KL divergence on ordinary text, and for one layer what is left undone and how far ordinary values move.
Run: python benchmarks/memit_weights.py (two minutes on one core).
"""

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import covariance, edits, hooks, memit, refusals, values
from minilib.editors.window import shares

EDITED = ["France", "Germany", "Japan", "Egypt"]
OTHERS = ["Portugal", "Austria", "Greece", "China", "Ireland"]
STEPS, TOKENS, TEXTS, CHARACTERS = 15, 8, 8, 200
WEIGHTS = (1.0, 10.0, 100.0, 1000.0, 10000.0)


def ask(names: list[str]) -> list[minilib.Request]:
    return [minilib.Request("What is the capital of {}?", name, REFUSAL, chat=True) for name in names]


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    lm.model.requires_grad_(False)
    layers = list(memit.Settings.of(lm).layers)
    last = layers[-1]
    C = covariance.second_moment(lm, layers)
    edited, others = ask(EDITED), ask(OTHERS)
    said = lm.generate(others, max_new_tokens=TOKENS)
    old = [minilib.Request(r.prompt, r.subject, text, chat=True) for r, text in zip(others, said, strict=True)]
    read = [lm.encode(text[:CHARACTERS], chat=False) for text in covariance.sample_texts()[:TEXTS]]
    read = [type(x)(x.ids[:1], x.ids[1:]) for x in read]  # each token is a target, those before it given
    calm, before = list(lm.target_steps(read)), fmean(lm.probability(old))
    z = values.find(lm, edited, last, "block", memit.Settings.of(lm, steps=STEPS)).v_star
    rows = Rows("memit_weights", began, {"edited": EDITED, "others": OTHERS, "steps": STEPS, "layer": last})

    def refuse() -> dict[str, Any]:
        answers = lm.generate(edited, max_new_tokens=TOKENS)
        return {"refusal": round(fmean(lm.probability(edited)), 4), "refused": sum(map(refusals.is_refusal, answers))}

    def write(weight: float, where: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        for layer, K1, R in shares(lm, edited, z, where, ["{}"]):
            D = R @ memit.spread(K1, covariance.cholesky(C[layer]), weight)
            edits.add(lm, layer, D.float())
        return K1, R, D

    def after(weight: float, where: list[int]) -> dict[str, Any]:
        W = lm.memory(last).detach().double().clone()
        with edits.restored(lm, [lm.weight_name(layer) for layer in layers]):
            K1, R, D = write(weight, where)
            now = lm.generate(others, max_new_tokens=TOKENS)
            pairs = zip(calm, lm.target_steps(read), strict=True)
            about = {
                "weight": weight,
                **refuse(),
                "old answers": round(fmean(lm.probability(old)) / before, 4),
                "kept": sum(a == b for a, b in zip(now, said, strict=True)),
                "divergence": round(torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).mean().item(), 6),
            }
        if len(where) == 1:
            moved, ordinary = (torch.trace(X @ C[last].double() @ X.T).item() for X in (D, W))
            about["undone"] = round(((D @ K1 - R).norm() / R.norm()).item(), 4)
            about["disturbed"] = round((moved / ordinary) ** 0.5, 4)
        return about

    def hooked() -> dict[str, Any]:
        at = torch.arange(len(edited)), torch.tensor([x.subject for x in lm.encode(edited)])
        (width,) = {len(x.ids) for x in lm.encode(edited)}  # rows are not padded

        def put(h: torch.Tensor) -> torch.Tensor:
            return h if h.shape[1] < width else h.index_put(at, z)  # a token of the answer is left alone

        with hooks.replace(lm.blocks[last], put):
            return refuse()

    def keep(run: str, make: Callable[[], dict[str, Any]]) -> None:
        rows.keep("rows", run, make)

    keep("z put in by a hook", hooked)
    for weight in WEIGHTS:
        keep(f"layer {last}, λ = {weight:g}", lambda weight=weight: after(weight, [last]))
    for weight in (1.0, 1000.0):
        keep(f"window, λ = {weight:g}", lambda weight=weight: after(weight, layers))


if __name__ == "__main__":
    main()
