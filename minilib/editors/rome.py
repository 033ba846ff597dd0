"""ROME: rewrite one fact by the smallest rank-one change of one matrix (Meng et al. 2022, arXiv 2202.05262).

W is the down-projection of one MLP, k* the key at the subject's last token, v* the value that makes the
model say the target. Among all matrices that map k* to v*, ROME takes the one that moves the memories of
ordinary text least (equation 2 of the paper):

    minimise ‖Ŵ K − V‖  subject to  Ŵ k* = v*      ⇒      Ŵ = W + Λ (C⁻¹ k*)ᵀ,
    Λ = (v* − W k*) / ((C⁻¹ k*)ᵀ k*),   C = mean of k kᵀ over text,

where the columns of K are the keys of ordinary text and V = W K their values. Below, u = C⁻¹k* is the row of the change
and Λ the direction that is written.

With several contexts, k* is the average of its keys. The authors' code averages in C⁻¹k* and uses the plain
prompt's key elsewhere (``keys="mixed"``), which can break a model in one edit; one key in both places is
r-ROME (Gupta et al. 2024, arXiv 2403.07175).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..covariance import cholesky, given_or_cached
from ..editor import Count, Positive, editor, said_before
from ..edits import Edit, add, changing, factors
from ..forward import double
from ..model import LM
from ..requests import Request, as_requests
from . import values


@dataclass(frozen=True)
class Settings(values.Search):
    """ROME's settings, and those of the search for v* (``values.Search``). The defaults are the authors' for GPT-2 XL.

    Parameters
    ----------
    layer : int, default the middle one
        Which block's MLP to write to.
    keys : {"averaged", "prompt", "mixed"}
        Which key is k*: the average over contexts, the first context's (the plain prompt's, unless other contexts are
        given), or the authors' mixture: the average in u, the first context's elsewhere.
    """

    PRESETS = {
        "llama-30x576": {"layer": 4, "weight_decay": 1e-3, "steps": 25},  # SmolLM2-135M
        "llama-6x96": {"layer": 0, "weight_decay": 1e-3, "steps": 25},  # tinyworld
    }
    prefixes: ClassVar[values.Lengths] = ((5, 10), (10, 10))  # for contexts="sampled": (tokens, how many), ...

    layer: int = 0  # never used: Settings.of puts the preset or the middle layer in its place
    keys: Literal["averaged", "prompt", "mixed"] = "averaged"
    steps: Count = 20
    clamp_factor: Positive = 4.0


@editor(Settings)
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    covariance: Mapping[int, Tensor] | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Rewrite facts one after another, each by a rank-one change of one layer's W.

    Parameters
    ----------
    lm : LM
        Changed in place.
    requests : Request or list of Request
        Several are written in their order, each into the model that the earlier ones left.
    covariance : dict of int to Tensor, optional
        {layer: C}. By default computed from the sample text and kept in the cache.
    progress : bool, default False
        Show a progress bar.
    **settings
        Those of ``rome.Settings``. An omitted one comes from the model's preset, or else from the authors;
        ``edit.settings`` says what was used.

    Returns
    -------
    Edit
        ``edit.notes`` says which requests the edited model does not answer with their target (see ``editor``).

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong. Whatever goes wrong, the model is left as it was.
    """
    requests = as_requests(requests)
    s = Settings.of(lm, **settings)  # what was given, else the model's preset, else the defaults above
    for context in s.contexts:  # what needs the tokenizer is checked before anything is changed
        lm.encode(requests, context=context)
    C = given_or_cached(lm, covariance, [s.layer])[s.layer]
    L = cholesky(C)  # C = L Lᵀ
    traces: list[dict[str, list[float]]] = []
    notes: list[str] = []
    columns, rows = [], []  # Λ and C⁻¹k of each request: the whole change is their product
    with changing(lm, [lm.weight_name(s.layer)]) as originals:
        for request in requests:
            # v*, as values.find_plainly finds it: read that one, it is the same search without the batching.
            value = values.find(lm, [request], s.layer, "mlp", s, progress)
            # (contexts, d_k) and (contexts, d_out), read anew since an earlier request may have changed W.
            k, Wk = (x[0] for x in values.keys_and_values(lm, [request], s.layer, s.contexts))
            averaged = k.mean(0)
            k_star, Wk_star = (averaged, Wk.mean(0)) if s.keys == "averaged" else (k[0], Wk[0])
            k_row = k_star if s.keys == "prompt" else averaged
            u = torch.cholesky_solve(double(k_row).unsqueeze(1), L).squeeze(1).to(k_star)  # C⁻¹ k
            Lambda = (value.v_star[0] - Wk_star) / (u @ k_star)
            add(lm, s.layer, torch.outer(Lambda, u))
            columns.append(Lambda)
            rows.append(u)
            traces += value.traces
            notes += said_before([request], value.said)
        thin = factors(lm, s.layer, torch.stack(columns, 1), torch.stack(rows))
        # From here on it is in force: it joins lm.edits.
        return Edit(lm, "rome", requests, s.used(), originals, traces=traces, factors=thin, notes=notes)
