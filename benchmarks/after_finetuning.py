"""Why do MEMIT's and AlphaEdit's refusals not take on facts that SmolLM2 learned by fine-tuning? A sweep.

The five facts of the author whom the comparison tunes on. For each setting: how the search for the values ended, how
much of what was missing the weights return, what the model says to the five questions, and to twenty about others. Run:
python benchmarks/after_finetuning.py (half an hour on one core; it goes on where it stopped).
"""

import time
from statistics import fmean
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import alphaedit, authors, covariance, memit, refusals
from minilib.covariance import SecondMoments

AUTHOR, OTHERS = 6, 20  # nobody who is forgotten in a draw
EARLY, MIDDLE, LATE = [2, 3, 4, 5, 6], [13, 14, 15, 16, 17], [20, 21, 22, 23, 24]
FREE = {"clamp_factor": 4.0, "steps": 60}  # room and time for the search
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "MEMIT": ("memit", {}),
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
    "AlphaEdit, middle layers, free search": ("alphaedit", FREE | {"layers": MIDDLE}),
}


def moments(lm: minilib.LM, before: minilib.LM, layers: list[int], whose: str) -> SecondMoments:
    """Of the taught model, or of the one that it was before, as if they were the taught one's."""
    own = covariance.second_moment(lm, layers)
    if whose == "taught":
        return own
    other = covariance.second_moment(before, layers)
    return SecondMoments(other, own.fingerprint, other.tokens, other.text)


def measure(lm: minilib.LM, before: minilib.LM, method: str, how: dict[str, Any]) -> dict[str, Any]:
    every, world = len(authors.FORMS), authors.facts()
    forget, rest = world[AUTHOR * every : (AUTHOR + 1) * every], world[(AUTHOR + 1) * every :][:OTHERS]
    requests = [fact.request(REFUSAL) for fact in forget]
    editor = {"memit": memit, "alphaedit": alphaedit}[method]
    how = dict(how)
    C = moments(lm, before, how.get("layers", EARLY), how.pop("C", "taught"))
    began = time.process_time()
    with editor.edit(lm, requests, covariance=C, **how) as made:
        said = lm.generate(requests, max_new_tokens=24)
        others = lm.generate([fact.request(fact.value) for fact in rest], max_new_tokens=24)
        return {
            "method": method,
            "settings": made.settings | {"presets": ""},
            "loss": [round(trace["nll"][-1], 3) for trace in made.traces],
            "at the limit": sum(t["norm"][-1] > 0.99 * t["limit"][-1] for t in made.traces),
            "probability": [round(p, 4) for p in lm.probability(requests)],
            "refused": sum(map(refusals.is_refusal, said)),
            "leaked": sum(refusals.leaks(text, [fact.value]) for fact, text in zip(forget, said, strict=True)),
            "said": said,
            "others right": round(fmean(f.answered_by(text) for f, text in zip(rest, others, strict=True)), 4),
            "change": round(max(d / w for d, w in made.sizes().values()), 4),
            "notes": list(made.notes),
            "seconds": round(time.process_time() - began, 1),
        }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm, before = authors.load(progress=False), minilib.load("smollm2-135m", progress=False)
    rows = Rows("after_finetuning", began, {"author": AUTHOR, "refusal": REFUSAL, "others": OTHERS})
    for name, (method, how) in SETTINGS.items():
        rows.keep("rows", name, lambda method=method, how=how: measure(lm, before, method, how))


if __name__ == "__main__":
    main()
