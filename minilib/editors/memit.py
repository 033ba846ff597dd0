"""MEMIT: write many facts at once, spread over a window of layers (Meng et al. 2022, arXiv 2210.07229).

Where ROME asks one key to give one value exactly, MEMIT asks n keys at once to give theirs as well as they can,
and ordinary keys to keep theirs, weighed by λ (equation 14 of the paper, with C for the mean K₀K₀ᵀ):

    minimise  λ tr(Δ C Δᵀ) + ‖Δ K₁ − R‖²      ⇒      Δ = R K₁ᵀ (λ C + K₁ K₁ᵀ)⁻¹.

The columns of K₁ are the facts' keys, those of R what is missing in their values. The wanted hidden states z
are found once, at the output of the window's last block. Each layer, from the lowest, then writes its share of
what is still missing there, (z − h) / (layers left); keys and h are read anew after each write.

The code inverts an n × n matrix instead of a d_k × d_k one: K₁ᵀ (λC + K₁K₁ᵀ)⁻¹ = (λI + K₁ᵀC⁻¹K₁)⁻¹ K₁ᵀC⁻¹. For
one fact and λ → 0 that is ROME's row, (C⁻¹k*)ᵀ / (k*ᵀC⁻¹k*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..covariance import cholesky, given_or_cached
from ..editor import Positive, editor, said_before
from ..edits import Edit, add, changing, factors
from ..model import LM
from ..requests import Request, as_requests, check_distinct
from . import values
from .window import earlier, earlier_keys, shares, where


@dataclass(frozen=True)
class Settings(values.Search):
    """MEMIT's settings, and those of the search for z (``values.Search``). The defaults are the paper's for GPT-J.

    Parameters
    ----------
    layers : list of int, default the middle five
        The window, in ascending order.
    covariance_weight : float
        λ: how much ordinary keys count against the facts. C is a mean, so λ is about the number of tokens that
        each fact is weighed against.
    """

    PRESETS = {
        "llama-30x576": {"layers": [2, 3, 4, 5, 6], "covariance_weight": 1000.0, "weight_decay": 1e-3},  # SmolLM2-135M
        "llama-6x96": {"layers": [0], "covariance_weight": 10.0, "weight_decay": 1e-3},  # tinyworld
    }

    layers: Sequence[int] = ()
    covariance_weight: Positive = 15000.0


@editor(Settings)
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    covariance: Mapping[int, Tensor] | None = None,
    *,
    previous: Edit | Sequence[Edit] = (),
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Rewrite all facts of a batch together, a share in each layer of a window.

    Parameters
    ----------
    lm : LM
        Changed in place. Where blocks normalise what the MLP returns before they add it (Gemma 2 and 3, OLMo 2), an
        output of the MLP cannot be made longer or shorter, so a residual at the block's output is in general no
        change of W. There ``layers`` has to be one layer, whose values are found at W's own output, as ROME's.
    requests : Request or list of Request
        One prompt may not stand in it twice.
    covariance : dict of int to Tensor, optional
        {layer: C} for each layer of the window. By default computed from the sample text and kept in the cache.
    previous : Edit or list of Edit, optional
        Earlier MEMIT edits in force, at the same layers: their keys K_p keep their values as far as new facts do,
        Δ = R K₁ᵀ (λC + K_pK_pᵀ + K₁K₁ᵀ)⁻¹. The paper's method has none: each batch forgets the ones before it.
    progress : bool, default False
        Show a progress bar.
    **settings
        Those of ``memit.Settings``. An omitted one comes from the model's preset, or else from the authors;
        ``edit.settings`` says what was used.

    Returns
    -------
    Edit
        ``edit.keys`` holds K₁ of each layer.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or two requests of the batch are the same or contradict each other. Whatever
        goes wrong, the model is left as it was.
    """
    requests = as_requests(requests)
    check_distinct(requests)
    s = Settings.of(lm, **settings)
    place = where(lm, s.layers)
    before = earlier(lm, previous, s.layers, "memit")
    C = given_or_cached(lm, covariance, s.layers)
    L = {layer: cholesky(C[layer]) for layer in s.layers}
    thin: dict[str, tuple[Tensor, Tensor]] = {}
    keys: dict[int, Tensor] = {}
    with changing(lm, [lm.weight_name(layer) for layer in s.layers]) as originals:
        z = values.find(lm, requests, s.layers[-1], place, s, progress)
        for layer, K1, R in shares(lm, requests, z.v_star, s.layers, s.contexts):
            write = spread(K1, L[layer], s.covariance_weight, earlier_keys(before, layer, K1)).float()
            thin |= factors(lm, layer, R.float(), write)
            add(lm, layer, R.float() @ write)
            keys[layer] = K1.float()
        notes = said_before(requests, z.said)
        return Edit(lm, "memit", requests, s.used(), originals, traces=z.traces, factors=thin, notes=notes, keys=keys)


def spread(
    K1: Float[Tensor, "d_k n"],
    L: Float[Tensor, "d_k d_k"],
    covariance_weight: float,
    Kp: Float[Tensor, "d_k earlier"] | None = None,
) -> Float[Tensor, "n d_k"]:
    """K₁ᵀ (λC + K_pK_pᵀ + K₁K₁ᵀ)⁻¹ in float64, for C = L Lᵀ: how much of each fact's residual a key calls up.

    Raises
    ------
    ValueError
        When λ is so small that facts with the same key cannot be told apart.
    """
    K = K1 if Kp is None else torch.cat([K1, Kp], 1)
    S = torch.cholesky_solve(K, L)  # C⁻¹ K
    gram = K.T @ S
    gram.diagonal().add_(covariance_weight)  # λI + KᵀC⁻¹K
    root, info = torch.linalg.cholesky_ex(gram)
    pivots = root.diagonal() ** 2
    if info.item() or pivots.min() < 1e-10 * pivots.max():  # keys come in float32: nearer than that is the same
        raise ValueError(
            f"covariance_weight {covariance_weight} is too small for requests whose keys are the same (prompts that "
            "agree up to the subject's last token): raise it, or write them one after another"
        )
    return torch.cholesky_solve(S.T, root)[: K1.shape[1]]
