"""Checks of assignment 04: MEMIT's batched update, its small system, λ, and a window of layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .. import covariance, edits
from ..editors import memit, values
from ..loading import load
from ..model import LM
from ..requests import Request
from ..worlds import tinyworld
from . import real
from .checks import call, compare
from .seeds import generator
from .writing import read, refused

N, D_K, D_OUT = 4, 10, 5  # facts, the width of keys, and that of values
LAYERS, LAMBDA = [1, 2, 4], 10.0  # of tinyworld, where writing is checked
OTHERS = 30  # facts of tinyworld that nobody edits
WINDOW = [4, 5, 6]  # of SmolLM2
HALF = "That is the border of where you search: the share left undone *rises* with λ, so keep the other half"
SYSTEMS = ("linalg_inv", "solve_ex", "cholesky_ex", "cholesky_inverse", "lstsq", "linalg_eig", "svd", "lu_factor")


class _Sizes(TorchDispatchMode):
    """While it is on, notes the shapes of matrices that are inverted, factored, or solved with."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in SYSTEMS):
            self.shapes.add(tuple(args[0].shape[-2:]))
        return func(*args, **(kwargs or {}))


def problem(number: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, float]:
    """n keys and wanted values, one a vector; W (d_out, d_k); C (d_k, d_k); λ."""
    g = generator(number)
    draw = functools.partial(torch.randn, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(draw(D_K, D_K)).Q
    root = axes * torch.logspace(-0.5, 0.5, D_K, dtype=torch.float64)
    keys = root @ (draw(D_K, 1) + 0.7 * draw(D_K, N))  # alike, as those of one prompt are
    weight = 2 + 6 * torch.rand((), generator=g).item()
    return list(keys.T.contiguous()), list(draw(N, D_OUT)), draw(D_OUT, D_K), root @ root.T, weight


def _stacked(number: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """K₁, R, C, λ."""
    k, v, W, C, weight = problem(number)
    K1 = torch.stack(k, 1)
    return K1, torch.stack(v, 1) - W @ K1, C, weight


def _pair(found: Any, names: str) -> tuple[Any, Any]:
    assert isinstance(found, (tuple, list)) and len(found) == 2, f"Return two things, `return {names}`"
    return found[0], found[1]


def check_stack(function: Any, number: int) -> None:
    """``stack(keys, values, W)``: K₁ (d_k, n) and R (d_out, n), a fact in each column."""
    k, v, W, _, _ = problem(number)
    K1, R = _pair(call(function, k, v, W, name="stack"), "K1, R")
    right, V = torch.stack(k, 1), torch.stack(v, 1)
    wrong = [
        ("Your keys stand in the rows of K₁: the book has a key in each column, (d_k, n)", right.T),
        ("`reshape` shuffles the numbers of K₁: stack the keys as columns", torch.stack(k).reshape(D_K, N)),
    ]
    compare(K1, right, "K₁", wrong)
    wrong = [
        ("R holds the values themselves: only what is missing, V − W K₁, is to be written", V),
        ("R has the wrong sign: what is missing is V − W K₁", W @ right - V),
        ("Your residuals stand in the rows of R: a fact in each column, (d_out, n)", (V - W @ right).T),
        ("R is what W gives now: subtract it from what is wanted", W @ right),
    ]
    compare(R, V - W @ right, "R", wrong)


def check_update(function: Any, number: int) -> None:
    """``batch_update(K1, R, C, lam)``: Δ = R K₁ᵀ (λC + K₁K₁ᵀ)⁻¹."""
    K1, R, C, weight = _stacked(number)
    found = call(function, K1, R, C, weight, name="batch_update")
    A, RK, KK, eye = weight * C + K1 @ K1.T, R @ K1.T, K1 @ K1.T, torch.eye(D_K, dtype=C.dtype)
    inverse = torch.linalg.inv
    right = RK @ inverse(A)
    each = zip(R.T, K1.T, strict=True)
    single = torch.stack([torch.outer(r, k) @ inverse(weight * C + torch.outer(k, k)) for r, k in each]).sum(0)
    wrong = [
        ("Your update has the wrong sign: Δ K₁ should come close to R, not to −R", -right),
        ("Your update is transposed: Δ has the shape of W, (d_out, d_k)", right.T),
        ("λ stands on the wrong term: it weighs ordinary keys, so it belongs to C", RK @ inverse(C + weight * KK)),
        ("λ is missing: the bracket is λ C + K₁K₁ᵀ", RK @ inverse(C + KK)),
        ("λ weighs the identity there, and it should weigh C", RK @ inverse(weight * eye + KK)),
        ("λ is added to every number: multiply C by it", RK @ inverse(weight + C + KK)),
        ("You left out the inverse of λ C + K₁K₁ᵀ", RK),
        ("λ is added to the diagonal, λ I: multiply C by it", RK @ inverse(C + weight * eye + KK)),
        (
            "That writes all of R exactly, as λ → 0: weigh it against C",
            R @ memit.spread(K1, torch.linalg.cholesky(C), 0),
        ),
        ("Those are updates of single facts, added up: solve for all at once", single),
        ("You multiplied by λ C + K₁K₁ᵀ where its inverse belongs", RK @ A),
        ("K₁K₁ᵀ is missing in the bracket: the new keys count too", RK @ inverse(weight * C)),
        ("K₁K₁ᵀ is a sum over the facts, not a mean: do not divide it by n", RK @ inverse(weight * C + KK / N)),
    ]
    compare(found, right, "Your update", wrong)


def check_spread(function: Any, number: int) -> None:
    """``spread(K1, L, lam)``: (λI + G)⁻¹ K₁ᵀC⁻¹ with G = K₁ᵀC⁻¹K₁ and C = L Lᵀ, by an n × n system."""
    K1, _, C, weight = _stacked(number)
    L, eye = torch.linalg.cholesky(C), torch.eye(N, dtype=C.dtype)
    with _Sizes() as used:
        found = call(function, K1, L, weight, name="spread")
    inverse = torch.linalg.inv
    S, T = torch.cholesky_solve(K1, L), inverse(L) @ K1
    G = K1.T @ S
    ridge = inverse(weight * eye + G)
    right = ridge @ S.T
    wrong = [
        ("That is transposed: a row for each fact, (n, d_k)", right.T),
        ("λ is missing: without it the write is exact, as in the book's first formula", inverse(G) @ S.T),
        ("λ is added to every number of G: add it to the diagonal, λ I", inverse(weight + G) @ S.T),
        ("The last factor is K₁ᵀC⁻¹: C⁻¹ is missing there", ridge @ K1.T),
        ("C⁻¹ is missing in G = K₁ᵀC⁻¹K₁", inverse(weight * eye + K1.T @ K1) @ S.T),
        ("The inverse of λ I + G is missing", S.T),
        ("Only L⁻¹ stands at the end: C⁻¹ = L⁻ᵀL⁻¹, which is what `cholesky_solve` does", ridge @ T.T),
        ("You took L for C: it is C = L Lᵀ, so use `cholesky_solve`", inverse(weight * eye + K1.T @ T) @ T.T),
    ]  # fmt: skip
    compare(found, right, "What you return", wrong)
    large = (
        "Right, but costly: you invert or factor a d_k × d_k matrix. `cholesky_solve` and an n × n system are enough"
    )
    assert (D_K, D_K) not in used.shapes, large


def check_tradeoff(function: Any, number: int) -> None:
    """``tradeoff(delta, K1, R, C)``: ‖ΔK₁ − R‖ / ‖R‖ and tr(Δ C Δᵀ)."""
    K1, R, C, weight = _stacked(number)
    delta = R @ memit.spread(K1, torch.linalg.cholesky(C), weight)
    undone, cost = _pair(call(function, delta, K1, R, C, name="tradeoff"), "undone, cost")
    gap, size, spectral = (delta @ K1 - R).norm(), R.norm(), torch.linalg.matrix_norm(R, 2)
    right = torch.trace(delta @ C @ delta.T)
    wrong = [
        ("The two are exchanged: `return undone, cost`, the share first", right),
        ("That is the square of the share: ‖ΔK₁ − R‖ / ‖R‖ is a quotient of lengths", (gap / size).square()),
        ("That is ‖ΔK₁ − R‖: divide by ‖R‖ to have a share", gap),
        ("That is ‖ΔK₁ − R‖²: take lengths, and divide by that of R", gap.square()),
        ("That is one minus the share left undone", 1 - gap / size),
        ("That is ‖ΔK₁‖ / ‖R‖, the size of what was written: subtract R first", (delta @ K1).norm() / size),
        ("You added R: what is left undone is Δ K₁ − R", (delta @ K1 + R).norm() / size),
        ("Those are sums of absolute values: take Frobenius norms", (delta @ K1 - R).abs().sum() / R.abs().sum()),
        ("Those are spectral norms: take Frobenius norms", torch.linalg.matrix_norm(delta @ K1 - R, 2) / spectral),
    ]
    compare(undone, gap / size, "The share left undone", wrong, tolerance=1e-4)
    wrong = [
        ("That is ‖Δ‖², which treats all directions alike: weigh them by C", delta.square().sum()),
        ("That is the root of the cost: E‖Δk‖² is asked for", right.sqrt()),
        ("You add up all of Δ C Δᵀ: its trace is the sum of the diagonal", (delta @ C @ delta.T).sum()),
        ("That is what Δ does to the edited keys: C says what it does to all others", (delta @ K1).square().sum()),
    ]
    compare(cost, right, "The cost", wrong, tolerance=1e-4)


def check_largest(function: Any, number: int) -> None:
    """``largest_weight(K1, R, C, share)``: the λ at which just so much of R is left undone, to one percent."""
    K1, R, C, _ = _stacked(number)
    share = 0.1 + 0.3 * torch.rand((), generator=generator(number)).item()
    found = call(function, K1, R, C, share, name="largest_weight")
    wrong = [
        ("Your λ leaves share² undone: compare lengths, not their squares", _weight(K1, R, C, share**2)),
        ("Your λ leaves √share undone: compare lengths, not their squares", _weight(K1, R, C, share**0.5)),
        ("Your λ writes the share that may be left undone: write the rest", _weight(K1, R, C, 1 - share)),
        ("That is the logarithm (base 10) of λ", _weight(K1, R, C, share).log10()),
        (HALF, torch.tensor(1e-6)),
        (HALF, torch.tensor(1e6)),
        ("That is the natural logarithm of λ", _weight(K1, R, C, share).log()),
    ]  # fmt: skip
    compare(found, _weight(K1, R, C, share), "Your λ", wrong, tolerance=0.02)


def _weight(K1: Tensor, R: Tensor, C: Tensor, share: float) -> Tensor:
    """From the eigenvalues γ of G, of which the share λ / (λ + γ) is left undone."""
    gamma, Q = torch.linalg.eigh(K1.T @ torch.linalg.solve(C, K1))
    parts = (R @ Q).square().sum(0) / R.square().sum()
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        undone = (parts * (10**middle / (10**middle + gamma)).square()).sum().sqrt()
        low, high = (middle, high) if undone <= share else (low, middle)
    return torch.tensor(10**low, dtype=K1.dtype)


@functools.lru_cache(maxsize=8)
def _window(number: int) -> tuple[list[Request], Tensor, dict[int, Tensor], Tensor, list[tuple[str, Tensor]]]:
    """Three requests, z, {layer: L}, what each layer has to write, and what it writes by mistake."""
    lm, (requests, _) = load("tinyworld"), refused(number, 3, OTHERS)
    C = covariance.second_moment(lm, LAYERS)
    L = {layer: covariance.cholesky(C[layer]) for layer in LAYERS}
    first = {layer: read(lm, requests, layer, LAYERS[-1]) for layer in LAYERS}
    h = first[LAYERS[0]][1]
    z = h + h.std() * torch.randn(h.shape, generator=generator(number), dtype=h.dtype)

    def written(
        left: Sequence[int] = (3, 2, 1),
        fresh: str = "kh",
        order: Sequence[int] = LAYERS,
        key: int | None = None,  # where keys are read, if not at the layer
        end: int | None = LAYERS[-1],  # where states are read; None is the layer
    ) -> Tensor:
        found = {}
        with edits.restored(lm, [lm.weight_name(layer) for layer in LAYERS]):
            for layer, share in zip(order, left, strict=True):
                now = read(lm, requests, layer if key is None else key, layer if end is None else end)
                K1, h = (now[i] if name in fresh else first[layer][i] for i, name in enumerate("kh"))
                found[layer] = ((z - h) / share @ memit.spread(K1, L[layer], LAMBDA)).float()
                edits.add(lm, layer, found[layer])
        return torch.stack([found[layer] for layer in LAYERS])

    wrong = [
        ("Each layer divides by the number of all layers: divide by those that are left", written([3, 3, 3])),
        ("No layer divides what is missing by the number of layers left", written([1, 1, 1])),
        ("You divide by the layers done, 1, 2, …: divide by those that are left", written([1, 2, 3])),
        ("Keys and states were read before anything was written: read both anew at each layer", written(fresh="")),
        ("The keys were read before anything was written: read them anew at each layer", written(fresh="h")),
        ("The states h were read before anything was written: read them anew at each layer", written(fresh="k")),
        ("Each layer writes the same part of the first gap: read h anew at each layer", written([3, 3, 3], "k")),
        ("You start at the highest layer: start at the lowest", written(order=LAYERS[::-1])),
        ("You count down from the layer's number: count layers of the window", written([2, 1, -1])),
        ("h is read at the layer itself: read it where the window ends", written(end=None)),
        ("The keys are read at the window's last layer: read them at the one that is written", written(key=LAYERS[-1])),
        ("One layer is left at the last, not two: `len(layers) - i`", written([4, 3, 2])),
        ("You wrote with the wrong sign: it is R = (z − h) / (layers left), and W + Δ", written([-3, -2, -1])),
    ]
    return requests, z, L, written(), wrong


def check_write(function: Any, number: int) -> None:
    """``write_window(lm, requests, z, layers, factors, lam)``: each layer writes its share; old Ws are returned."""
    lm, (requests, z, L, right, wrong) = load("tinyworld"), _window(number)
    before = [lm.memory(i).detach().clone() for i in range(lm.n_layers)]
    told = call(function, lm, requests, z, LAYERS, L, LAMBDA, name="write_window", may_change=[0])
    after = [lm.memory(i).detach() for i in range(lm.n_layers)]
    changed = [i for i in range(lm.n_layers) if not torch.equal(after[i], before[i])]
    assert changed, "The model's matrices are as before: change them in place, under `torch.no_grad()`"
    assert changed == LAYERS, f"You changed the layers {changed}: write to each of {LAYERS}, and to no other"
    found = torch.stack([after[i] - before[i] for i in LAYERS])
    assert found.isfinite().all(), "W holds NaN or infinity: at the last layer one layer is left, not none"
    compare(found, right, "What you added to the matrices", wrong)
    assert isinstance(told, Mapping) and set(told) == set(LAYERS), f"Return a dict {{layer: old W}} for {LAYERS}"
    for i in LAYERS:
        message = "You returned W after the change: keep a copy from before (`.clone()`) to undo it with"
        compare(told[i], before[i], f"What you return for layer {i}", [(message, after[i])], tolerance=1e-5)


def tiny_problem(lm: LM, number: int) -> tuple[list[Request], Tensor, dict[int, Tensor], list[tinyworld.PersonFact]]:
    """Four refusals for tinyworld: requests, z at layer 0, {0: L}, and facts about other people."""
    requests, others = refused(number, 4, OTHERS)
    z = values.find(lm, requests, 0, "block", memit.Settings.of(lm, clamp_factor=2.0)).v_star
    C = covariance.second_moment(lm, [0])
    return requests, z.T.double(), {0: covariance.cholesky(C[0])}, others


def still_right(lm: LM, others: Sequence[tinyworld.PersonFact]) -> int:
    """How many of these facts the model of tinyworld answers."""
    said = lm.generate([f.prompts[3].format(f.subject) for f in others], max_new_tokens=6)
    return sum(text.strip(" .") == f.value for text, f in zip(said, others, strict=True))


def real_problem(lm: LM, number: int) -> tuple[list[Request], Tensor, list[int], dict[int, Tensor]]:
    """Three capitals that SmolLM2 is to forget: requests, z at the end of a window, the window, {layer: L}."""
    requests = [fact.request(real.REFUSAL) for fact in real.capitals(number, 3)]
    z = values.find(lm, requests, WINDOW[-1], "block", memit.Settings.of(lm)).v_star
    C = covariance.second_moment(lm, WINDOW)
    return requests, z.T.double(), list(WINDOW), {layer: covariance.cholesky(C[layer]) for layer in WINDOW}


def check_said(said: Any, lm: LM, number: int) -> None:
    """What the model said of three capitals while it was edited are refusals, and it has been undone."""
    real.check_all_said(said, lm, number, 3)
