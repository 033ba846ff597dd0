"""AlphaEdit: write only where ordinary keys have next to nothing (Fang et al. 2024, arXiv 2410.02355).

MEMIT weighs what ordinary keys lose against what the facts gain. AlphaEdit forbids the first: with C = U diag(w) Uᵀ,
the eigenvectors whose eigenvalue is below a threshold span the directions that ordinary keys hardly use, and P = U₀U₀ᵀ
projects on them. Only changes Δ = ΔP are allowed, so that ΔK₀ = ΔPK₀ ≈ 0, and of those the one is taken that minimises

    ‖Δ K₁ − R‖² + ‖Δ K_p‖² + L2 ‖Δ‖²      ⇒      Δ = R K₁ᵀP (P (K_pK_pᵀ + K₁K₁ᵀ) P + L2·I)⁻¹,

where K_p are the keys of earlier edits, which are to keep the values they were given. All else is as in MEMIT: z is
found once, and each layer of a window writes its share of what is missing.

With K = P [K₁ K_p] (m columns) the code solves an m × m system instead of a d_k × d_k one, where it is the smaller:
(KKᵀ + L2·I)⁻¹ K = K (KᵀK + L2·I)⁻¹.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import covariance as second_moments
from . import values
from .contexts import resolve
from .edits import Edit, add, changing, earlier, editor, factors, said_before, settle
from .keys import keys_and_states, shares, where
from .lm import LM
from .requests import SLOT, Request, as_requests, check_distinct
from .suffixes import double

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # the authors' settings for Llama 3 8B; layers: None is the middle five
        "layers": None,
        "nullspace_threshold": 2e-2,
        "l2": 10.0,
        "steps": 25,
        "lr": 0.1,
        "weight_decay": 0.5,
        "clamp_factor": 0.75,
        "kl_factor": 0.0625,
        "contexts": [SLOT],
        "stop_loss": 0.05,
        "seed": 0,
    },
    "llama-30x576": {"layers": [2, 3, 4, 5, 6], "lr": 0.5, "weight_decay": 1e-3},  # SmolLM2-135M
    "llama-6x96": {"layers": [0], "nullspace_threshold": 0.19, "l2": 1.0, "clamp_factor": 2.0},  # tinyworld
}


@editor
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    layers: Sequence[int] | None = None,
    covariance: Mapping[int, Tensor] | None = None,
    *,
    nullspace_threshold: float | None = None,
    nullspace_energy: float | None = None,
    l2: float | None = None,
    previous: Edit | Sequence[Edit] = (),
    project: bool = True,
    anchor_norm: bool = False,
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
    """Rewrite all facts of a batch, in the directions that ordinary text and earlier edits leave free.

    Parameters
    ----------
    lm : LM
        Changed in place. Blocks that normalise what the MLP returns take one layer, as in ``memit.edit``.
    requests : Request or list of Request
        One prompt may not stand in it twice.
    layers : list of int, optional
        The window, in ascending order. This and every other omitted keyword comes from the model's preset, or
        else from the paper, with the middle five layers; ``edit.settings`` says which.
    covariance : dict of int to Tensor, optional
        {layer: C}. By default computed from the sample text and kept in the cache. ``SecondMoments`` keep their
        eigenvectors too: pass the same object to a series of edits.
    nullspace_threshold : float
        Eigenvalues of C below it count as free. They scale with the model: see ``covariance.spectrum``.
    nullspace_energy : float, optional
        Instead of the threshold: the share of C's trace that may be given away, smallest eigenvalues first.
    l2 : float
        What is paid for the size of Δ, in the units of squared keys.
    previous : Edit or list of Edit, optional
        Earlier AlphaEdit edits in force, at the same layers: their keys keep their values.
    project : bool, default True
        False leaves P out and keeps everything else.
    anchor_norm : bool, default False
        Rescale each z to the length that the unedited model's state has there (after arXiv 2602.02543).
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
        ``edit.keys`` holds K₁ of each layer; ``edit.settings["directions"]`` how many each P lets through.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the threshold leaves no direction. Whatever goes wrong, the model is left as
        it was.

    Warns
    -----
    UserWarning
        When C was computed from fewer tokens than it has dimensions: what it has not seen counts as free.
    """
    requests = as_requests(requests)
    check_distinct(requests)
    given: dict[str, Any] = {"layers": layers, "nullspace_threshold": nullspace_threshold, "l2": l2, "steps": steps}
    given |= {"nullspace_energy": nullspace_energy, "lr": lr, "weight_decay": weight_decay}
    given |= {"clamp_factor": clamp_factor, "kl_factor": kl_factor}
    given |= {"contexts": contexts, "stop_loss": stop_loss, "seed": seed}
    if nullspace_threshold is not None and nullspace_energy is not None:
        raise ValueError("nullspace_threshold and nullspace_energy say the same thing in two ways: give one of them")
    s = settle(lm, PRESETS, given)
    s["layers"] = layers = second_moments.check_layers(lm, s["layers"])
    if nullspace_energy is not None:
        s["nullspace_threshold"] = None
    s |= {"project": bool(project), "anchor_norm": bool(anchor_norm)}
    place = where(lm, layers)
    before = earlier(lm, previous, layers, "alphaedit")
    s["contexts"] = resolve(lm, s["contexts"], s["seed"], lengths=((10, 5),))
    P: dict[int, Tensor] = {}
    if project:
        C = second_moments.take(lm, covariance, layers)
        warn_of_few_tokens(C, layers)
        P = {layer: projector(C, layer, s["nullspace_threshold"], nullspace_energy) for layer in layers}
        # The trace of a projector is the number of its directions.
        s["directions"] = {str(layer): f"{P[layer].trace().round():.0f} of {len(P[layer])}" for layer in layers}
    thin: dict[str, tuple[Tensor, Tensor]] = {}
    keys: dict[int, Tensor] = {}
    with changing(lm, [lm.weight_name(layer) for layer in layers]) as originals:
        found = values.find(
            lm, requests, layers[-1], place, progress=progress, **{name: s[name] for name in values.SEARCH}
        )
        z = found.v_star
        if anchor_norm:
            with lm.unedited():
                _, h = keys_and_states(lm, requests, layers[-1], s["contexts"][:1], last=layers[-1])
            z = z * (h[:, 0].norm(dim=1) / z.norm(dim=1)).unsqueeze(1)
        for layer, K1, R in shares(lm, requests, z, layers, s["contexts"]):
            Kp = torch.cat([K1[:, :0], *(e.keys[layer].to(K1) for e in before)], 1)
            write = spread(K1, Kp, P.get(layer), s["l2"]).float()
            thin |= factors(lm, layer, R.float(), write)
            add(lm, layer, R.float() @ write)
            keys[layer] = K1.float()
        notes = said_before(requests, found.said)
        return Edit(lm, "alphaedit", requests, s, originals, traces=found.traces, factors=thin, notes=notes, keys=keys)


def projector(
    covariance: Mapping[int, Tensor], layer: int, threshold: float = 2e-2, energy: float | None = None
) -> Float[Tensor, "d_k d_k"]:
    """P = U₀U₀ᵀ on the eigenvectors of C whose eigenvalue is below a threshold (float64), symmetric and idempotent.

    Parameters
    ----------
    covariance : dict of int to Tensor
    layer : int
    threshold : float, default 2e-2
        Absolute, in the units of squared keys.
    energy : float, optional
        Instead: the smallest eigenvalues whose sum is at most this share of C's trace.

    Raises
    ------
    ValueError
        When no direction is left; the message says what the spectrum is.
    """
    w, U = second_moments.spectrum(covariance, layer)
    w = double(w)
    if energy is None:
        close = (w - threshold).abs() < 1e-5 * w[-1]  # so close that float32 could be wrong about the side
        u = double(U)[:, close]
        u /= u.norm(dim=0)
        w[close] = (u * (double(covariance[layer]) @ u)).sum(0)
        name, limit, free = "nullspace_threshold", threshold, w < threshold
    else:
        given_away = w.clamp(min=0).cumsum(0)
        name, limit, free = "nullspace_energy", energy, given_away <= energy * given_away[-1]
    if not free.any():
        least, middle, most = w[0].item(), w[len(w) // 2].item(), w[-1].item()
        raise ValueError(
            f"{name} {limit} leaves no direction of layer {layer}: C's eigenvalues go from {least:.2g} over "
            f"{middle:.2g} (the middle one) to {most:.2g}; raise it"
        )
    if free.sum() <= len(w) / 2:
        U0 = double(U)[:, free]
        return U0 @ U0.T
    U1 = torch.linalg.qr(double(U)[:, ~free]).Q  # fewer columns; float32's are not orthogonal enough for I − U₁U₁ᵀ
    return torch.eye(len(w), dtype=U1.dtype, device=U1.device) - U1 @ U1.T


def spread(
    K1: Float[Tensor, "d_k n"], Kp: Float[Tensor, "d_k earlier"], P: Float[Tensor, "d_k d_k"] | None, l2: float
) -> Float[Tensor, "n d_k"]:
    """K₁ᵀP (P (K_pK_pᵀ + K₁K₁ᵀ) P + L2·I)⁻¹ in float64: how much of each fact's residual a key calls up."""
    n, K = K1.shape[1], torch.cat([K1, Kp], 1)
    K = K if P is None else P @ K
    small = K.shape[1] <= K.shape[0]
    A = K.T @ K if small else K @ K.T
    A.diagonal().add_(l2)
    right = torch.eye(len(A), n, dtype=A.dtype, device=A.device) if small else K[:, :n]
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(A))
    return solved.T @ K.T if small else solved.T


def warn_of_few_tokens(covariance: Mapping[int, Tensor], layers: Sequence[int]) -> None:
    """A plain dict does not say what it was computed from."""
    tokens, d_k = getattr(covariance, "tokens", None), max(len(covariance[layer]) for layer in layers)
    if tokens is not None and tokens < d_k:
        warnings.warn(
            f"covariance was computed from {tokens} tokens, fewer than keys have dimensions ({d_k}): directions that "
            "it has not seen count as free, whatever other text uses them for",
            stacklevel=4,
        )
