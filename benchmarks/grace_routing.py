"""GRACE on SmolLM2: which questions its balls let in, by layer and radius; 200 edits in a row; 50 facts beside WISE.

Facts, questions and scores are those of wise_routing.py. Rows that the stored file holds are not made again: delete it
to begin anew. Run: python benchmarks/grace_routing.py (an hour on one core)
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from scores import EVERYDAY, REFUSAL, Rows, refused
from wise_routing import Draw, draw, scores, share

import minilib
from minilib import facts, grace, metrics, refusals, texts, wise

LAYERS = (12, 18, 22, 24, 28)
EPSILONS = (0.5, 1.0, 2.0, 4.0, 6.0)
GRID_WITHOUT = ("same subject", "ordinary")
IN_A_ROW = (1, 5, 20, 50, 100, 200)
FIFTY = 50


def asked_of(chosen: list[facts.Fact]) -> dict[str, list[str]]:
    """Questions to route, those aside that are edited themselves."""
    inside = {fact.request(REFUSAL).text for fact in chosen}
    found = {
        "edited": [fact.request(REFUSAL).text for fact in chosen],
        "rephrased": [form.text for fact in chosen for form in fact.rephrased(REFUSAL)],
        "other subject": [fact.neighbours[0].text for fact in chosen],
        "same subject": [fact.neighbours[1].text for fact in chosen],
        "unrelated": [fact.unrelated.text for fact in chosen],
        "everyday": list(EVERYDAY),
    }
    return {name: [q for q in qs if name == "edited" or q not in inside] for name, qs in found.items()}


def spread(values: list[float]) -> list[float]:
    """Least, quartiles, largest."""
    return [round(x, 3) for x in (min(values), *statistics.quantiles(values, n=4, method="inclusive"), max(values))]


def fifty(lm: minilib.LM, method: Any) -> dict[str, Any]:
    """Fifty facts at once: for each kind of question the share let in, how near it came, and what was answered."""
    chosen = facts.recorded()[:FIFTY]
    requests, asked = [fact.request(REFUSAL) for fact in chosen], asked_of(chosen)
    before = lm.generate([q.text for fact in chosen for q in (*fact.neighbours, fact.unrelated)])
    more = {}
    if method is wise:  # what is asked below is not shown to it as irrelevant
        others = dict.fromkeys(f.request(REFUSAL).text for f in facts.recorded())
        others = texts.naming_none(others, [fact.subject for fact in chosen])
        seen = {q for name in ("other subject", "unrelated") for q in asked[name]}
        more = {"irrelevant": [*(q for q in others if q not in seen), *texts.messages()]}
    started = time.perf_counter()
    with method.edit(lm, requests, **more) as edit:
        row: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1), "routing": {}}
        for name, questions in asked.items():
            about = edit.explain(questions)
            size, limit = ("distance", "epsilon") if method is grace else ("activation", "threshold")
            part = {"n": len(about), "let in": share([r["decided"] for r in about])}
            part["to the border"] = spread([r[size] / r[limit] for r in about])
            if name == "rephrased" and method is grace:
                owner = edit.guard.owners
                part["nearest is its own"] = share([r["entry"] == owner[i // 3] for i, r in enumerate(about)])
            row["routing"][name] = part
        row["answers"] = refused(lm, chosen, before)
    return row


def in_a_row(lm: minilib.LM) -> dict[str, Any]:
    """One call for each of 200 facts, the known ones first; what was not edited is asked too."""
    known = facts.recorded()
    rest = [fact for fact in facts.FACTS if fact not in known]
    n = max(IN_A_ROW)
    edited, others = [*known, *rest][:n], [*known, *rest][n:]
    requests = [fact.request(REFUSAL) for fact in edited]
    held = dict.fromkeys(fact.request(REFUSAL).text for fact in others)
    kept = texts.naming_none(held, [fact.subject for fact in edited])[::2]
    before = lm.generate(kept)
    made: list[minilib.Edit] = []
    row: dict[str, Any] = {"others": len(kept), "n": [], "edited": [], "kept": [], "entries": [], "seconds": []}
    for i, request in enumerate(requests, 1):
        started = time.perf_counter()
        made.append(grace.edit(lm, request, previous=made[-1] if made else None))
        spent = time.perf_counter() - started
        if i in IN_A_ROW:
            answers = lm.generate(requests[:i])
            says = [metrics.says(a, r.target) for a, r in zip(answers, requests, strict=False)]
            again = lm.generate(kept)
            book = made[-1].guard
            assert isinstance(book, grace.Codebook)
            row["n"].append(i)
            row["edited"].append(share(says))
            row["kept"].append(share([a == b for a, b in zip(again, before, strict=True)]))
            row["entries"].append(len(book.keys))
            row["seconds"].append(round(spent, 2))
    row["actions"] = {what: [e.settings["actions"][0] for e in made].count(what) for what in ("add", "grow", "split")}
    while made:
        made.pop().undo()
    return row


def grid(lm: minilib.LM, drawn: Draw, layer: int) -> dict[str, Any]:
    """At one layer, all radii."""
    rows: list[dict[str, Any]] = []
    for epsilon in EPSILONS:
        started = time.perf_counter()
        with grace.edit(lm, drawn.requests, layer=layer, epsilon=epsilon) as edit:
            spent = round(time.perf_counter() - started, 1)
            assert isinstance(edit.guard, grace.Codebook)
            row = {"epsilon": epsilon, "seconds": spent, "entries": len(edit.guard.keys)}
            rows.append({**row, **scores(lm, drawn, GRID_WITHOUT)})
    return {"rows": rows}


def wordings(lm: minilib.LM, drawn: Draw, sentences: int) -> dict[str, Any]:
    """Large balls, where one sentence lets entries grow into each other and several make them split."""
    said = refusals.REFUSALS[:sentences]
    requests = [replace(r, target=said[i % sentences]) for i, r in enumerate(drawn.requests)]
    rows = []
    for epsilon in (2.0, 4.0):
        with grace.edit(lm, requests, layer=24, epsilon=epsilon) as edit:
            assert isinstance(edit.guard, grace.Codebook)
            actions = edit.settings["actions"]
            counts = {what: actions.count(what) for what in ("add", "grow", "split")}
            rows.append(
                {"epsilon": epsilon, **counts, "radii": spread(edit.guard.epsilon.tolist()), **scores(lm, drawn)}
            )
    return {"rows": rows}


def in_bfloat16(drawn: Draw, method: Any, edited_in: str) -> dict[str, Any]:
    """A model in bfloat16 that was edited there, or in float32 and then moved; its unedited answers are the measure."""
    lm = minilib.load("smollm2-135m")
    lm.model.to(torch.bfloat16)
    before = lm.generate(drawn.unrelated)
    if edited_in == "float32":
        lm = minilib.load("smollm2-135m")
    with method.edit(lm, drawn.requests, **({"irrelevant": drawn.given} if method is wise else {})):
        lm.model.to(torch.bfloat16)
        after = lm.generate(drawn.unrelated)
        edited = [refusals.is_refusal(a, unjudged=False) for a in lm.generate(drawn.requests)]
    return {"reliability": share(edited), "unrelated": share([a == b for a, b in zip(after, before, strict=True)])}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    drawn = draw(lm, 0)
    keep = Rows("grace_routing", began, {"facts": FIFTY, "layers": LAYERS, "epsilons": EPSILONS}).keep

    for name, method in (("GRACE", grace), ("WISE", wise)):
        keep("fifty", name, lambda method=method: fifty(lm, method))
    keep("in a row", "one sentence", lambda: in_a_row(lm))
    for layer in LAYERS:
        keep("grid", str(layer), lambda layer=layer: grid(lm, drawn, layer))
    for sentences in (1, 8):
        keep("wordings", str(sentences), lambda n=sentences: wordings(lm, drawn, n))
    for name, method in (("GRACE", grace), ("WISE", wise)):
        for dtype in ("float32", "bfloat16"):
            keep("bfloat16", f"{name}, edited in {dtype}", lambda m=method, d=dtype: in_bfloat16(drawn, m, d))


if __name__ == "__main__":
    main()
