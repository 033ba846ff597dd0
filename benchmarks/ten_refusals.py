"""Ten refusals at once by MEMIT and by AlphaEdit with and without its projection: what chapter 08 shows of them.

C is taken from the sample text without its first twenty texts, on which damage is measured; its eigenvalues are stored
too. Last, AlphaEdit with the library's own C on one of the ten, in one layer, which the chapter computes again.
Run: python benchmarks/ten_refusals.py (five minutes on one core).
"""

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import alphaedit, covariance, facts, guards, memit, metrics, refusals, stored
from minilib.edits import Edit

THRESHOLD = 2e-2


def damage(lm: minilib.LM, edit: Edit, K0: dict[int, torch.Tensor]) -> list[float]:
    """‖ΔK₀‖ / ‖W K₀‖ at each layer; called while the edit is in force, so W is what is there without Δ."""
    found = []
    for layer, keys in K0.items():
        delta = edit.deltas[lm.weight_name(layer)]
        found.append(round(((delta @ keys).norm() / ((lm.memory(layer) - delta) @ keys).norm()).item(), 5))
    return found


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    lm.model.requires_grad_(False)
    runs = stored.load("sequential")  # the same facts and texts
    sample, n = covariance.sample_texts(), runs["aside"]
    aside = [text[: runs["characters"]] for text in sample[:n]]
    layers = memit.Settings.of(lm).layers
    known = {f"{f.relation}: {f.subject}": f for f in facts.FACTS}
    chosen, others = ([known[name] for name in runs["facts"][0][kind]] for kind in ("edited", "others"))
    chosen = chosen[:10]
    requests = [fact.request(REFUSAL) for fact in chosen]
    C = covariance.second_moment(lm, layers, sample[n:])
    ids = [lm.encode(text, chat=False).ids for text in aside]
    K0 = {layer: torch.cat(guards.keys(lm, layer, ids)).T for layer in layers}
    names = [f"{f.relation}: {f.subject}" for f in chosen]
    about = {"facts": names, "tokens": C.tokens, "keys": K0[layers[0]].shape[1]}
    rows = Rows("ten_refusals", began, about)

    def spectrum(layer: int) -> dict[str, Any]:
        w = covariance.spectrum(C, layer)[0]
        return {
            "layer": layer,
            "eigenvalues": [float(f"{x:.3g}") for x in w.flip(0)[::4].tolist()],
            "smallest": float(f"{w.min():.3g}"),
            "below": int((w < THRESHOLD).sum()),
            "share below": round((w[w < THRESHOLD].sum() / w.sum()).item(), 4),
        }

    def measure(make: Callable[[], Edit]) -> dict[str, Any]:
        with make() as edit:
            again = lm.generate([fact.rephrased(REFUSAL)[0] for fact in chosen])
            left = lm.generate([fact.request(REFUSAL) for fact in others])
            return {
                "refused": fmean(map(refusals.is_refusal, lm.generate(requests))),
                "rephrased": fmean(map(refusals.is_refusal, again)),
                "right": round(fmean(f.answered_by(a) for f, a in zip(others, left, strict=True)), 4),
                "divergence": round(metrics.divergence(lm, aside), 5),
                "perplexity": round(metrics.perplexity(lm, aside), 4),
                "hurt": damage(lm, edit, K0),
            }

    def one() -> dict[str, Any]:
        with alphaedit.edit(lm, requests[0], layers=layers[-1:]) as edit:
            hurt = damage(lm, edit, {layers[-1]: K0[layers[-1]]})
            return {"layer": layers[-1], "refused": refusals.is_refusal(lm.generate(requests[0])), "hurt": hurt[0]}

    for layer in layers:
        rows.keep("spectra", f"layer {layer}", lambda layer=layer: spectrum(layer))
    rows.keep("rows", "MEMIT", lambda: measure(lambda: memit.edit(lm, requests, covariance=C)))
    rows.keep(
        "rows",
        "AlphaEdit without P",
        lambda: measure(lambda: alphaedit.edit(lm, requests, covariance=C, project=False)),
    )
    rows.keep("rows", "AlphaEdit", lambda: measure(lambda: alphaedit.edit(lm, requests, covariance=C)))
    rows.keep("one", "AlphaEdit, the last layer alone, the library's C", one)


if __name__ == "__main__":
    main()
