"""AlphaEdit: write only where ordinary keys have next to nothing (Fang et al. 2024, arXiv 2410.02355).

MEMIT weighs what ordinary keys lose against what the facts gain. AlphaEdit restricts the first: with C = U diag(w) Uᵀ,
the eigenvectors whose eigenvalue is below a threshold span the directions that ordinary keys hardly use, and P = U₀U₀ᵀ
projects on them. Only changes Δ = ΔP are allowed, so that ΔK₀ = ΔPK₀ is small; of those the one is taken that minimises

    ‖Δ K₁ − R‖² + ‖Δ K_p‖² + L2 ‖Δ‖²      ⇒      Δ = R K₁ᵀP (P (K_pK_pᵀ + K₁K₁ᵀ) P + L2·I)⁻¹,

where K_p are the keys of earlier edits, which are to keep the values they were given. All else is as in MEMIT: z is
found once, and each layer of a window writes its share of what is missing.

With K = P [K₁ K_p] (m columns) the code solves an m × m system instead of a d_k × d_k one, where it is the smaller:
(KKᵀ + L2·I)⁻¹ K = K (KᵀK + L2·I)⁻¹.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..covariance import given_or_cached, spectrum
from ..editor import Positive, Share, editor, said_before
from ..edits import Edit, add, changing, factors
from ..forward import double
from ..model import LM
from ..requests import Request, as_requests, check_distinct
from . import values
from .window import earlier, earlier_keys, keys_and_states, shares, where


@dataclass(frozen=True)
class Settings(values.Search):
    """AlphaEdit's settings, and those of the search for z (``values.Search``): the defaults are for Llama 3 8B.

    Parameters
    ----------
    layers : list of int, default the middle five
        The window, in ascending order.
    nullspace_threshold : float
        Eigenvalues of C below it count as free. They scale with the model: see ``covariance.spectrum``.
    nullspace_energy : float, optional
        Instead of the threshold: the share of C's trace that may be given away, smallest eigenvalues first.
    l2 : float
        What is paid for the size of Δ, in the units of squared keys.
    project : bool
        False leaves P out and keeps everything else.
    anchor_norm : bool
        Rescale each z to the length that the unedited model's state has there (after arXiv 2602.02543).
    """

    PRESETS = {
        "llama-30x576": {"layers": [2, 3, 4, 5, 6], "lr": 0.5, "weight_decay": 1e-3},  # SmolLM2-135M
        "llama-6x96": {"layers": [0], "nullspace_threshold": 0.19, "l2": 1.0, "clamp_factor": 2.0},  # tinyworld
    }

    layers: Sequence[int] = ()
    nullspace_threshold: Positive | None = 2e-2
    nullspace_energy: Share | None = None
    l2: Positive = 10.0
    project: bool = True
    anchor_norm: bool = False
    lr: Positive = 0.1


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
    """Rewrite all facts of a batch, in the directions that ordinary text and earlier edits leave free.

    Parameters
    ----------
    lm : LM
        Changed in place. Blocks that normalise what the MLP returns take one layer, as in ``memit.edit``.
    requests : Request or list of Request
        One prompt may not stand in it twice.
    covariance : dict of int to Tensor, optional
        {layer: C}. By default computed from the sample text and kept in the cache. ``SecondMoments`` keep their
        eigenvectors too: pass the same object to a series of edits.
    previous : Edit or list of Edit, optional
        Earlier AlphaEdit edits in force, at the same layers: their keys keep their values.
    progress : bool, default False
        Show a progress bar.
    **settings
        Those of ``alphaedit.Settings``. An omitted one comes from the model's preset, or else from the authors;
        ``edit.settings`` says what was used.

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
    if settings.get("nullspace_energy") is not None:
        if settings.get("nullspace_threshold") is not None:
            raise ValueError("nullspace_threshold and nullspace_energy say one thing in two ways: give one of them")
    s = Settings.of(lm, **settings)
    used = s.used() | ({} if s.nullspace_energy is None else {"nullspace_threshold": None})
    place = where(lm, s.layers)
    before = earlier(lm, previous, s.layers, "alphaedit")
    P: dict[int, Tensor] = {}
    if s.project:
        C = given_or_cached(lm, covariance, s.layers)
        warn_of_few_tokens(C, s.layers)
        threshold = s.nullspace_threshold or 0.0
        P = {layer: projector(C, layer, threshold, s.nullspace_energy) for layer in s.layers}
        # The trace of a projector is the number of its directions.
        used["directions"] = {str(layer): f"{P[layer].trace().round():.0f} of {len(P[layer])}" for layer in s.layers}
    thin: dict[str, tuple[Tensor, Tensor]] = {}
    keys: dict[int, Tensor] = {}
    with changing(lm, [lm.weight_name(layer) for layer in s.layers]) as originals:
        value = values.find(lm, requests, s.layers[-1], place, s, progress)
        z = value.v_star
        if s.anchor_norm:
            with lm.unedited():
                _, h = keys_and_states(lm, requests, s.layers[-1], s.contexts[:1], last=s.layers[-1])
            z = z * (h[:, 0].norm(dim=1) / z.norm(dim=1)).unsqueeze(1)
        for layer, K1, R in shares(lm, requests, z, s.layers, s.contexts):
            write = spread(K1, earlier_keys(before, layer, K1), P.get(layer), s.l2).float()
            thin |= factors(lm, layer, R.float(), write)
            add(lm, layer, R.float() @ write)
            keys[layer] = K1.float()
        notes = said_before(requests, value.said)
        return Edit(
            lm, "alphaedit", requests, used, originals, traces=value.traces, factors=thin, notes=notes, keys=keys
        )


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
    w, U = spectrum(covariance, layer)
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
