"""Why do MEMIT's and AlphaEdit's refusals not take on facts that SmolLM2 learned by fine-tuning? A sweep.

The five facts of the author whom the comparison tunes on. For each setting: how the search for the values ended, what
the model says to the five questions, and to twenty about others. Beside it MEMIT's preset on other sets of facts, and
how alike their keys are: the eigenvalues γ of G = K₁ᵀC⁻¹K₁, along which MEMIT writes the share γ / (λ + γ) (chapter
05), and which part of what the values ask for lies along each. Run: python benchmarks/after_finetuning.py (forty
minutes on one core; it goes on where it stopped).
"""

import time
from functools import partial
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from scores import REFUSAL, Rows
from torch import Tensor

import minilib
from minilib import alphaedit, authors, covariance, facts, guards, memit, refusals
from minilib.covariance import SecondMoments
from minilib.editors import values
from minilib.worlds.facts import Fact

AUTHOR, COUNTRY, OTHERS = 6, "Japan", 20  # the author is forgotten in no draw
EARLY, MIDDLE, LATE = [2, 3, 4, 5, 6], [13, 14, 15, 16, 17], [20, 21, 22, 23, 24]
FREE = {"clamp_factor": 4.0, "steps": 60}  # room and time for the search
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "MEMIT": ("memit", {}),
    "MEMIT, λ = 10": ("memit", {"covariance_weight": 10.0}),
    "MEMIT, more steps": ("memit", {"steps": 60}),
    "MEMIT, free search": ("memit", FREE),
    "MEMIT, free search, λ = 10": ("memit", FREE | {"covariance_weight": 10.0}),
    "MEMIT, free search, C of the model before": ("memit", FREE | {"C": "before"}),
    "MEMIT, middle layers": ("memit", {"layers": MIDDLE}),
    "MEMIT, middle layers, free search": ("memit", FREE | {"layers": MIDDLE}),
    "MEMIT, middle layers, free search, λ = 10": ("memit", FREE | {"layers": MIDDLE, "covariance_weight": 10.0}),
    "MEMIT, late layers, free search": ("memit", FREE | {"layers": LATE}),
    "AlphaEdit": ("alphaedit", {}),
    "AlphaEdit, free search": ("alphaedit", FREE),
    "AlphaEdit, free search, L2 = 0.1": ("alphaedit", FREE | {"l2": 0.1}),
    "AlphaEdit, middle layers, free search": ("alphaedit", FREE | {"layers": MIDDLE}),
}


def moments(lm: minilib.LM, before: minilib.LM, layers: list[int], whose: str) -> SecondMoments:
    """Of the taught model, or of the one that it was before, as if they were the taught one's."""
    own = covariance.second_moment(lm, layers)
    if whose == "taught":
        return own
    other = covariance.second_moment(before, layers)
    return SecondMoments(other, own.fingerprint, other.tokens, other.text)


def sets(lm: minilib.LM, before: minilib.LM) -> dict[str, tuple[minilib.LM, list[Fact], list[Fact]]]:
    """By name: a model, facts to refuse, and others that it has to keep."""
    every, world = len(authors.FORMS), authors.facts()
    rest = world[(AUTHOR + 6) * every :][:OTHERS]
    known = facts.recorded()
    capitals = [fact for fact in known if fact.relation == "capital"]
    return {
        "one author": (lm, world[AUTHOR * every : (AUTHOR + 1) * every], rest),
        "five authors": (lm, [world[(AUTHOR + 1 + i) * every + i] for i in range(every)], rest),
        "five capitals": (before, capitals[:5], capitals[10 : 10 + OTHERS]),
        "one country": (before, [fact for fact in known if fact.subject == COUNTRY], capitals[10 : 10 + OTHERS]),
    }


def measure(
    lm: minilib.LM, forget: list[Fact], rest: list[Fact], other: minilib.LM, method: str, how: dict[str, Any]
) -> dict[str, Any]:
    requests = [fact.request(REFUSAL) for fact in forget]
    editor = {"memit": memit, "alphaedit": alphaedit}[method]
    how = dict(how)
    C = moments(lm, other, how.get("layers", EARLY), how.pop("C", "taught"))
    began = time.process_time()
    with editor.edit(lm, requests, covariance=C, **how) as made:
        said = lm.generate(requests, max_new_tokens=24)
        others = lm.generate([fact.asked.text for fact in rest], max_new_tokens=24)
        return {
            "method": method,
            "settings": made.settings | {"presets": ""},
            "loss": [round(trace["nll"][-1], 3) for trace in made.traces],
            "at the limit": sum(t["norm"][-1] > 0.99 * t["limit"][-1] for t in made.traces),
            "probability": [round(p, 4) for p in lm.probability(requests)],
            "facts": len(forget),
            "refused": sum(map(refusals.is_refusal, said)),
            "leaked": sum(refusals.leaks(text, [fact.value]) for fact, text in zip(forget, said, strict=True)),
            "said": said,
            "others right": round(fmean(f.answered_by(text) for f, text in zip(rest, others, strict=True)), 4),
            "change": round(max(d / w for d, w in made.sizes().values()), 4),
            "notes": list(made.notes),
            "seconds": round(time.process_time() - began, 1),
        }


def gram(lm: minilib.LM, requests: list[minilib.Request], layer: int) -> Float[Tensor, "n n"]:
    """G = K₁ᵀC⁻¹K₁ of some requests at a layer."""
    C = covariance.second_moment(lm, [layer])[layer].double()
    encoded = lm.encode(requests)
    keys = guards.keys(lm, layer, [x.ids for x in encoded])
    K1 = torch.stack([k[x.subject].double() for k, x in zip(keys, encoded, strict=True)], dim=1)
    return K1.T @ torch.linalg.solve(C, K1)


def alike(lm: minilib.LM, requests: list[minilib.Request], layer: int) -> dict[str, Any]:
    """The eigenvalues of G, from the smallest."""
    G = gram(lm, requests, layer)
    return {"layer": layer, "eigenvalues": [round(x, 3) for x in torch.linalg.eigvalsh(G).tolist()]}


def wanted(lm: minilib.LM, requests: list[minilib.Request], how: dict[str, Any]) -> dict[str, Any]:
    """How alike the residuals of MEMIT's search are, and which part of ‖R‖² lies along each eigenvector of G."""
    s = memit.Settings.of(lm, **how)
    found = values.find(lm, requests, s.layers[-1], "block", s)
    R = (found.v_star - found.v0).double().T
    _, Q = torch.linalg.eigh(gram(lm, requests, s.layers[0]))
    unit = R / R.norm(dim=0)
    cosines = (unit.T @ unit)[*torch.triu_indices(len(requests), len(requests), 1)]
    return {
        "layer": s.layers[0],
        "cosines": [round(x, 3) for x in cosines.tolist()],
        "parts": [round(x, 4) for x in ((R @ Q).square().sum(0) / R.square().sum()).tolist()],
    }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm, before = authors.load(progress=False), minilib.load("smollm2-135m", progress=False)
    rows = Rows("after_finetuning", began, {"author": AUTHOR, "refusal": REFUSAL, "others": OTHERS})
    of = sets(lm, before)
    for name, (method, how) in SETTINGS.items():
        rows.keep("rows", name, partial(measure, *of["one author"], before, method, how))
    for name, some in of.items():  # is it the fine-tuning, or that the facts share a subject?
        if name != "one author":  # the first row of all
            rows.keep("sets", name, partial(measure, *some, before, "memit", {}))
        asked = [fact.request(REFUSAL) for fact in some[1]]
        for layer in (EARLY[0], MIDDLE[0]):
            rows.keep("keys", f"{name}, layer {layer}", partial(alike, some[0], asked, layer))
        for search, how in (("the preset's search", {}), ("free search", FREE)):
            rows.keep("wanted", f"{name}, {search}", partial(wanted, some[0], asked, how))
    author = [fact.request(REFUSAL) for fact in of["one author"][1]]
    rows.keep("keys", f"one author, not taught, layer {EARLY[0]}", partial(alike, before, author, EARLY[0]))


if __name__ == "__main__":
    main()
