"""ROME: rewrite one fact by the smallest rank-one change of one matrix (Meng et al. 2022, arXiv 2202.05262).

W is the down-projection of one MLP, k* the key at the subject's last token, v* the value that makes the
model say the target. Among all matrices that map k* to v*, ROME takes the one that moves the memories of
ordinary text least (equation 2 of the paper):

    minimise ‖Ŵ K − V‖  subject to  Ŵ k* = v*      ⇒      Ŵ = W + Λ (C⁻¹ k*)ᵀ,
    Λ = (v* − W k*) / ((C⁻¹ k*)ᵀ k*),   C = mean of k kᵀ over text.

With several contexts, k* is the average of its keys. The authors' code averages in C⁻¹k* and uses the plain
prompt's key elsewhere (``keys="mixed"``), which can break a model in one edit; one key in both places is
r-ROME (Gupta et al. 2024, arXiv 2403.07175).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import covariance as second_moments
from . import values
from .contexts import resolve
from .edits import Edit, add, changing, editor, factors, said_before, settle
from .keys import keys_and_values
from .lm import LM
from .requests import SLOT, Request, as_requests
from .suffixes import double

Keys = Literal["averaged", "prompt", "mixed"]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # the paper's settings, which were found for GPT-2 XL; layer: None is the middle one
        "layer": None,
        "steps": 20,
        "lr": 0.5,
        "weight_decay": 0.5,
        "clamp_factor": 4.0,
        "kl_factor": 0.0625,
        "contexts": [SLOT],
        "stop_loss": 0.05,
        "keys": "averaged",
        "seed": 0,
    },
    "llama-30x576": {"layer": 4, "weight_decay": 1e-3, "steps": 25},  # SmolLM2-135M
    "llama-6x96": {"layer": 0, "weight_decay": 1e-3, "steps": 25},  # tinyworld
}


@editor
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    layer: int | None = None,
    covariance: Mapping[int, Tensor] | None = None,
    *,
    keys: Keys | None = None,
    steps: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    clamp_factor: float | None = None,
    kl_factor: float | None = None,
    contexts: Sequence[str] | Literal["sampled"] | None = None,
    stop_loss: float | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Edit:
    """Rewrite facts one after another, each by a rank-one change of one layer's W.

    Parameters
    ----------
    lm : LM
        Changed in place.
    requests : Request or list of Request
        Several are written in their order, each into the model that the earlier ones left.
    layer : int, optional
        Which block's MLP to write to. This and every other omitted keyword comes from the model's preset,
        or else from the paper, with the middle layer; ``edit.settings`` says which.
    covariance : dict of int to Tensor, optional
        {layer: C}. By default computed from the sample text and kept in the cache.
    keys : {"averaged", "prompt", "mixed"}, default "averaged"
        Which key is k*: the average over contexts, the plain prompt's, or the authors' mixture of both.
    contexts : list of str or "sampled", default ["{}"]
        Templates put around the prompt; "sampled": the plain prompt, ten prefixes of 5 and ten of 10 tokens.
    steps, lr, weight_decay, clamp_factor, kl_factor, stop_loss
        Of the search for v*: see ``minilib.values.find``.
    seed : int, default 0
        For sampled contexts.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Edit

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong. Whatever goes wrong, the model is left as it was.
    """
    requests = as_requests(requests)
    given: dict[str, Any] = {"layer": layer, "keys": keys, "contexts": contexts, "steps": steps, "lr": lr}
    given |= {"weight_decay": weight_decay, "clamp_factor": clamp_factor, "kl_factor": kl_factor}
    given |= {"stop_loss": stop_loss, "seed": seed}
    s = settle(lm, PRESETS, given)
    s["layer"] = layer = lm.check_layer(s["layer"])
    s["contexts"] = resolve(lm, s["contexts"], s["seed"], lengths=((5, 10), (10, 10)))
    if s["keys"] not in ("averaged", "prompt", "mixed"):
        raise ValueError(f"keys must be 'averaged', 'prompt' or 'mixed', not {s['keys']!r}")
    search = {name: s[name] for name in values.SEARCH}
    for context in s["contexts"]:  # what needs the tokenizer is checked before anything is changed
        lm.pairs(requests, context)
    C = second_moments.take(lm, covariance, [layer])[layer]
    L = second_moments.factor(C)
    traces: list[dict[str, list[float]]] = []
    notes: list[str] = []
    columns, rows = [], []  # Λ and C⁻¹k of each request: the whole change is their product
    with changing(lm, [lm.weight_name(layer)]) as originals:
        for request in requests:
            found = values.find(lm, [request], layer, "mlp", progress=progress, **search)
            k, Wk = (x[0] for x in keys_and_values(lm, [request], layer, s["contexts"]))
            averaged = k.mean(0)
            k_star, Wk_star = (averaged, Wk.mean(0)) if s["keys"] == "averaged" else (k[0], Wk[0])
            u = k_star if s["keys"] == "prompt" else averaged
            u = torch.cholesky_solve(double(u).unsqueeze(1), L).squeeze(1).to(k_star)  # C⁻¹ k
            Lambda = (found.v_star[0] - Wk_star) / (u @ k_star)
            add(lm, layer, torch.outer(Lambda, u))
            columns.append(Lambda)
            rows.append(u)
            traces += found.traces
            notes += said_before([request], found.said)
        thin = factors(lm, layer, torch.stack(columns, 1), torch.stack(rows))
        return Edit(lm, "rome", requests, s, originals, traces=traces, factors=thin, notes=notes)
