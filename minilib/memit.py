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
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import covariance as second_moments
from . import values
from .contexts import resolve
from .edits import Edit, add, changing, earlier, editor, factors, said_before, settle
from .keys import shares, where
from .lm import LM
from .requests import SLOT, Request, as_requests, check_distinct

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # the paper's settings for GPT-J; layers: None is the middle five
        "layers": None,
        "covariance_weight": 15000.0,
        "steps": 25,
        "lr": 0.5,
        "weight_decay": 0.5,
        "clamp_factor": 0.75,
        "kl_factor": 0.0625,
        "contexts": [SLOT],
        "stop_loss": 0.05,
        "seed": 0,
    },
    "llama-30x576": {"layers": [2, 3, 4, 5, 6], "covariance_weight": 1000.0, "weight_decay": 1e-3},  # SmolLM2-135M
    "llama-6x96": {"layers": [0], "covariance_weight": 10.0, "weight_decay": 1e-3},  # tinyworld
}


@editor
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    layers: Sequence[int] | None = None,
    covariance: Mapping[int, Tensor] | None = None,
    *,
    covariance_weight: float | None = None,
    previous: Edit | Sequence[Edit] = (),
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
    """Rewrite all facts of a batch together, a share in each layer of a window.

    Parameters
    ----------
    lm : LM
        Changed in place. Where blocks normalise what the MLP returns before they add it (Gemma 2 and 3, OLMo 2), an
        output of the MLP cannot be made longer or shorter, so a residual at the block's output is in general no
        change of W. There ``layers`` has to be one layer, whose values are found at W's own output, as ROME's.
    requests : Request or list of Request
        One prompt may not stand in it twice.
    layers : list of int, optional
        The window, in ascending order. This and every other omitted keyword comes from the model's preset, or
        else from the paper, with the middle five layers; ``edit.settings`` says which.
    covariance : dict of int to Tensor, optional
        {layer: C} for each layer of the window. By default computed from the sample text and kept in the cache.
    covariance_weight : float
        λ: how much ordinary keys count against the facts. C is a mean, so λ is about the number of tokens that
        each fact is weighed against.
    previous : Edit or list of Edit, optional
        Earlier MEMIT edits in force, at the same layers: their keys K_p keep their values as far as new facts do,
        Δ = R K₁ᵀ (λC + K_pK_pᵀ + K₁K₁ᵀ)⁻¹. The paper's method has none: each batch forgets the ones before it.
    contexts : list of str or "sampled", default ["{}"]
        Templates put around the prompt; keys are averaged over them. "sampled": the plain prompt and five prefixes
        of 10 tokens.
    steps, lr, weight_decay, clamp_factor, kl_factor, stop_loss
        Of the search for z: see ``minilib.values.find``.
    seed : int, default 0
        For sampled contexts.
    progress : bool, default False
        Show a progress bar.

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
    given: dict[str, Any] = {"layers": layers, "covariance_weight": covariance_weight, "steps": steps, "lr": lr}
    given |= {"weight_decay": weight_decay, "clamp_factor": clamp_factor, "kl_factor": kl_factor}
    given |= {"contexts": contexts, "stop_loss": stop_loss, "seed": seed}
    s = settle(lm, PRESETS, given)
    s["layers"] = layers = second_moments.check_layers(lm, s["layers"])
    s["contexts"] = resolve(lm, s["contexts"], s["seed"], lengths=((10, 5),))
    place = where(lm, layers)
    before = earlier(lm, previous, layers, "memit")
    C = second_moments.take(lm, covariance, layers)
    L = {layer: second_moments.factor(C[layer]) for layer in layers}
    thin: dict[str, tuple[Tensor, Tensor]] = {}
    keys: dict[int, Tensor] = {}
    with changing(lm, [lm.weight_name(layer) for layer in layers]) as originals:
        found = values.find(
            lm, requests, layers[-1], place, progress=progress, **{name: s[name] for name in values.SEARCH}
        )
        for layer, K1, R in shares(lm, requests, found.v_star, layers, s["contexts"]):
            Kp = torch.cat([K1[:, :0], *(e.keys[layer].to(K1) for e in before)], 1)
            write = spread(K1, L[layer], s["covariance_weight"], Kp).float()
            thin |= factors(lm, layer, R.float(), write)
            add(lm, layer, R.float() @ write)
            keys[layer] = K1.float()
        notes = said_before(requests, found.said)
        return Edit(lm, "memit", requests, s, originals, traces=found.traces, factors=thin, notes=notes, keys=keys)


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
