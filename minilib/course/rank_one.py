"""Checks of assignment 01: least squares, second moments, and the rank-one update of ROME."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import covariance
from ..editors import rome, values
from ..loading import load
from ..model import LM
from ..requests import Request
from . import real
from .checks import call, compare
from .real import REFUSAL
from .seeds import generator

N, D_K, D_OUT = 24, 6, 4  # keys, their width, and that of values


def problem(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Keys K (N, d_k) and values V (N, d_out), one a row; W (d_out, d_k); k* and v*."""
    g = generator(number)
    mix = torch.eye(D_K, dtype=torch.float64) + 0.4 * torch.randn(D_K, D_K, generator=g, dtype=torch.float64)
    K, V = (torch.randn(N, d, generator=g, dtype=torch.float64) for d in (D_K, D_OUT))
    K = K @ mix + 0.5
    W = torch.randn(D_OUT, D_K, generator=g, dtype=torch.float64)
    k, v = (torch.randn(d, generator=g, dtype=torch.float64) for d in (D_K, D_OUT))
    return K, V, W, k, v


def check_second_moment(function: Any, number: int) -> None:
    """``second_moment(K)``: C = KᵀK / N for keys in rows."""
    K, *_ = problem(number)
    found = call(function, K, name="second_moment")
    centred = K - K.mean(0)
    compare(
        found,
        K.T @ K / N,
        "C",
        [
            ("C is the sum over keys: divide by their number, so that it does not grow with the text", K.T @ K),
            ("C is averaged over the wrong axis: divide by the number of keys, not by their width", K.T @ K / D_K),
            ("That is K Kᵀ, one row for each key: C has one row for each of the d_k dimensions", K @ K.T),
            ("That is K Kᵀ / N, one row for each key: C has one row for each of the d_k dimensions", K @ K.T / N),
            ("You subtracted the mean: C is the second moment E[k kᵀ], not the covariance", centred.T @ centred / N),
            ("You subtracted the mean: C is the second moment E[k kᵀ], not the covariance", torch.cov(K.T)),
        ],
    )


def check_least_squares(function: Any, number: int) -> None:
    """``least_squares(K, V)``: the W that minimises ‖K Wᵀ − V‖²."""
    K, V, *_ = problem(number)
    found = call(function, K, V, name="least_squares")
    W = torch.linalg.solve(K.T @ K, K.T @ V).T
    compare(
        found,
        W,
        "W",
        [
            ("That is Wᵀ: W has a row for each dimension of the value, so that W k = v", W.T),
            ("You left out the inverse of KᵀK: W is exact only where keys are orthonormal", V.T @ K),
            ("You left out the inverse, and averaged: W is exact only where keys are orthonormal", V.T @ K / N),
            ("You multiplied by KᵀK where its inverse belongs", V.T @ K @ K.T @ K),
        ],
    )


def check_update(function: Any, number: int) -> None:
    """``rank_one_update(W, C, k, v)``: the change Λ(C⁻¹k)ᵀ, exact at k and smallest for the keys behind C."""
    K, _, W, k, v = problem(number)
    C = K.T @ K / N
    found = call(function, W, C, k, v, name="rank_one_update")
    u, Ck = torch.linalg.solve(C, k), C @ k
    r = v - W @ k
    delta = torch.outer(r, u) / (u @ k)
    compare(
        found,
        delta,
        "Your update",
        [
            ("Your update has the wrong sign: (W + Δ) k should be v, not 2 W k − v", -delta),
            ("Your update is transposed: Δ has the shape of W", delta.T),
            ("Your update is exact at k but not minimal: did you forget C⁻¹?", torch.outer(r, k) / (k @ k)),
            (
                "Your update is exact at k but not minimal: C stands where C⁻¹ belongs",
                torch.outer(r, Ck) / (k @ Ck),
            ),
            ("Your update points the right way and has the wrong length: divide by (C⁻¹k)·k", torch.outer(r, u)),
            ("You wrote v itself: only what is missing, v − W k, must be added", torch.outer(v, u) / (u @ k)),
            ("You returned W + Δ: return Δ alone", W + delta),
        ],
    )


def check_cost(function: Any, number: int) -> None:
    """``cost(delta, C)``: E‖Δk‖² = tr(Δ C Δᵀ), what the update does to all other keys."""
    K, _, W, *_ = problem(number)
    C = K.T @ K / N
    found = call(function, W, C, name="cost")
    cost, inverse = torch.trace(W @ C @ W.T), torch.trace(W @ torch.linalg.solve(C, W.T))
    compare(
        found,
        cost,
        "The cost",
        [
            ("That is ‖Δ‖², which treats all directions alike: weigh them by C", W.square().sum()),
            ("That is the root of the cost: E‖Δk‖² is asked for", cost.sqrt()),
            ("That is averaged over the rows of Δ: sum over them instead", cost / D_OUT),
            ("You used C⁻¹: directions that keys use often should cost more", inverse),
        ],
    )


def check_write(function: Any, number: int) -> None:
    """``write(lm, layer, delta)``: W of a layer of the model becomes W + Δ, in place; the old W is returned."""
    lm = load("tinyworld")
    layer = number % lm.n_layers
    before = [lm.memory(i).detach().clone() for i in range(lm.n_layers)]
    delta = torch.randn(before[layer].shape, generator=generator(number)) / 10
    old = call(function, lm, layer, delta, name="write", may_change=[0])
    after = [lm.memory(i).detach() for i in range(lm.n_layers)]
    changed = [i for i, W in enumerate(after) if not torch.equal(W, before[i])]
    assert changed, "The model's W is as before: change it in place, under `torch.no_grad()`"
    assert changed == [layer], f"W of layer {changed[0]} changed: only that of layer {layer} was to"
    wrong = [("You subtracted Δ: W + Δ is asked for", -delta)]
    compare(after[layer] - before[layer], delta, "What you added to W", wrong)
    wrong = [("You returned W after the change: keep a copy from before (`.clone()`) to undo it with", after[layer])]
    compare(old, before[layer], "What you return", wrong, tolerance=1e-5)


def real_problem(lm: LM, number: int) -> tuple[Request, int, Tensor, Tensor, Tensor]:
    """A capital that SmolLM2 is to forget: the request, the layer, C, k* and v* for its refusal."""
    request = real.capital(number).request(REFUSAL)
    s = rome.Settings.of(lm)
    v = values.find(lm, [request], s.layer, "mlp", s).v_star[0]
    k, _ = values.keys_and_values(lm, [request], s.layer, s.contexts)
    C = covariance.second_moment(lm, [s.layer])[s.layer]
    return request, s.layer, C, k[0].mean(0), v


def check_said(said: Any, lm: LM, number: int) -> None:
    """What the model said while it was edited is a refusal, and it has been undone."""
    real.check_refused(said, "said")
    real.check_undone(lm, real.capital(number))
