"""Checks of assignment 06: AlphaEdit's projector, its update, and a sequence of edits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import covariance, edits
from ..editors import alphaedit, values
from ..loading import load
from ..measure import refusals
from ..model import LM
from ..requests import Request
from ..worlds import tinyworld
from . import real
from .checks import call, compare
from .seeds import generator
from .writing import read, refused

FREE, USED, D_OUT = 7, 5, 4  # directions that ordinary keys leave free, that they use; the width of values
D_K, N, EARLIER, ORDINARY = FREE + USED, 3, 2, 60  # the width of keys; new, earlier and ordinary ones
THRESHOLD = 0.19  # tinyworld's, as in the library's preset
BATCHES, SIZE, OTHERS = 4, 3, 30  # of the demonstration
REAL_LAYER = 5  # of SmolLM2

SINGULAR = (
    "Is the identity term missing, or l2 alone or l2·P in its place? P shuts some directions, so without "
    "`l2 * torch.eye(len(P))` the bracket has no inverse"
)

INSIDE = "Your Δ has parts outside the free directions (ΔP ≠ Δ): P must stand behind the whole sum K_pK_pᵀ + K₁K₁ᵀ"
SIDE = "P stands in front of K_pK_pᵀ + K₁K₁ᵀ and not behind; or `solve` was given A, where Aᵀ Δᵀ = Bᵀ is to be solved"

Batch = tuple[list[Request], Tensor]  # requests, and z (d_out, n)


@dataclass(frozen=True)
class Problem:
    """K0 (d_k, n0), ordinary keys; C, their second moment; threshold; K1, Kp; R (d_out, n); W (d_out, d_k); l2."""

    K0: Tensor
    C: Tensor
    threshold: float
    K1: Tensor
    Kp: Tensor
    R: Tensor
    W: Tensor
    l2: float


def problem(number: int) -> Problem:
    """Keys that use some directions much, and others hardly."""
    g = generator(number)
    draw = functools.partial(torch.randn, generator=g, dtype=torch.float64)
    spread = functools.partial(torch.rand, generator=g, dtype=torch.float64)
    threshold = 0.2 + 0.2 * spread(()).item()
    free = threshold * (0.01 + 0.5 * spread(FREE))
    used = threshold * torch.cat([1.2 + 0.3 * spread(2), 20 + 20 * spread(USED - 2)])
    U = torch.linalg.qr(draw(D_K, D_K)).Q
    apart = torch.linalg.qr(draw(ORDINARY, D_K)).Q.T * ORDINARY**0.5  # so that the mean of k kᵀ is U diag(w) Uᵀ exactly
    K0 = U @ (torch.cat([free, used]).sqrt().unsqueeze(1) * apart)
    shared = draw(D_K, 1)  # keys of one kind of question are alike
    K1, Kp = (shared + 0.7 * draw(D_K, n) for n in (N, EARLIER))
    l2 = 2 + 2 * spread(()).item()
    return Problem(K0, K0 @ K0.T / ORDINARY, threshold, K1, Kp, draw(D_OUT, N), draw(D_OUT, D_K), l2)


def _projector(C: Tensor, threshold: float) -> Tensor:
    w, U = torch.linalg.eigh(C)
    U0 = U[:, w < threshold]
    return U0 @ U0.T


def check_projector(function: Any, number: int) -> None:
    """``projector(C, threshold)``: P = U₀U₀ᵀ on the eigenvectors of C whose eigenvalue is below the threshold."""
    p = problem(number)
    found = call(function, p.C, p.threshold, name="projector")
    w, U = torch.linalg.eigh(p.C)
    free, P, eye = w < p.threshold, _projector(p.C, p.threshold), torch.eye(D_K, dtype=p.C.dtype)
    relative, small = _projector(p.C, p.threshold * w[-1].item()), torch.eye(FREE, dtype=p.C.dtype)
    wrong = [
        ("P lets through what is ABOVE the threshold, the directions that text uses: take those below", eye - P),
        ("The rows of U are not the eigenvectors: its columns are, `U[:, below]`", U[free].T @ U[free]),
        ("P lets too much through: compare eigenvalues with the threshold itself, an absolute number", relative),
        ("That is an identity, U₀ᵀU₀, or U₀ has eigenvectors in its rows: P = U₀U₀ᵀ with `U0 = U[:, below]`", small),
        ("That is U₀, the eigenvectors: P = U₀U₀ᵀ", U[:, free]),
        ("That is C without its large eigenvalues: P lets a direction through as it is, or not at all", P @ p.C),
        ("No direction is left out: choose columns of U by their eigenvalues", eye),
    ]
    compare(found, P, "P", wrong)


def check_through(function: Any, number: int) -> None:
    """``lets_through(P, K)``: how many directions P lets through, and which share of the keys' squared length."""
    p = problem(number)
    K, P = torch.cat([p.K0[:, :9], p.K1], 1), _projector(p.C, p.threshold)
    found = call(function, P, K, name="lets_through")
    assert isinstance(found, (tuple, list)) and len(found) == 2, "Return two things, `return directions, share`"
    wrong = [
        (
            "That is the size of P: a projector's trace is the number of directions it lets through",
            torch.tensor(float(D_K)),
        ),
        ("That is how many directions P shuts: count those that it lets through", torch.tensor(float(USED))),
        ("That is the root of it: ‖P‖² is the number of directions", torch.tensor(FREE**0.5)),
    ]
    compare(found[0], torch.tensor(float(FREE)), "The number of directions", wrong, tolerance=1e-4)
    kept, each = (P @ K).square().sum() / K.square().sum(), (P @ K).square().sum(0) / K.square().sum(0)
    wrong = [
        ("That is a quotient of lengths: the share of the squared length is its square", kept.sqrt()),
        ("That is the share that P takes away", 1 - kept),
        ("That is ‖P K‖²: divide by ‖K‖² to have a share", (P @ K).square().sum()),
        ("That is a share for each key: sum over all keys before you divide", each),
        ("That is the mean of the keys' shares: sum over all keys before you divide", each.mean()),
        ("That is the share of directions, as if keys used all alike: put K to P", torch.tensor(FREE / D_K)),
    ]  # fmt: skip
    compare(found[1], kept, "The share", wrong, tolerance=1e-4)


def solved(K1: Tensor, Kp: Tensor, R: Tensor, P: Tensor, l2: float) -> Tensor:
    """Δ = R K₁ᵀP (K_pK_pᵀP + K₁K₁ᵀP + l2·I)⁻¹, literally."""
    A = (Kp @ Kp.T + K1 @ K1.T) @ P + l2 * torch.eye(len(P), dtype=P.dtype)
    return R @ K1.T @ P @ torch.linalg.inv(A)


def check_update(function: Any, number: int) -> None:
    """``update(K1, Kp, R, P, l2)``: AlphaEdit's Δ, with and without earlier keys."""
    p = problem(number)
    P, eye, none, inverse = _projector(p.C, p.threshold), torch.eye(D_K).double(), p.Kp[:, :0], torch.linalg.inv
    for Kp in (p.Kp, none):
        right, free = solved(p.K1, Kp, p.R, P, p.l2), solved(p.K1, Kp, p.R, eye, p.l2)
        S, RK = Kp @ Kp.T + p.K1 @ p.K1.T, p.R @ p.K1.T
        try:
            found = call(function, p.K1, Kp, p.R, P, p.l2, name="update")
        except AssertionError as error:
            assert "singular" not in str(error), SINGULAR
            raise
        wrong = [
            ("Your update has the wrong sign: Δ K₁ should come close to R, not to −R", -right),
            ("Your update is transposed: Δ has the shape of W, (d_out, d_k)", right.T),
            ("P is missing: this update writes where ordinary keys are", free),
            ("You solve without P and project afterwards, which is not the best: P belongs into the bracket", free @ P),
            (SIDE, RK @ P @ inverse(P @ S + p.l2 * eye)),
            ("P is missing behind R K₁ᵀ, and the bracket is transposed", RK @ inverse(P @ S + p.l2 * eye)),
            ("P is missing behind R K₁ᵀ", RK @ inverse(S @ P + p.l2 * eye)),
            (INSIDE, RK @ P @ inverse(S + p.l2 * eye)),
            (INSIDE, RK @ P @ inverse(Kp @ Kp.T + p.K1 @ p.K1.T @ P + p.l2 * eye)),
            (INSIDE, RK @ P @ inverse(Kp @ Kp.T @ P + p.K1 @ p.K1.T + p.l2 * eye)),
            ("The earlier keys are forgotten: K_pK_pᵀP belongs into the bracket", solved(p.K1, none, p.R, P, p.l2)),
            ("K₁K₁ᵀP is missing in the bracket", RK @ P @ inverse(Kp @ Kp.T @ P + p.l2 * eye)),
            ("You left out the inverse of the bracket", RK @ P),
            (SINGULAR, RK @ torch.linalg.pinv(P @ S @ P)),
            (SINGULAR, RK @ P @ torch.linalg.pinv(S @ P)),
            ("l2 is missing before the identity", solved(p.K1, Kp, p.R, P, 1.0)),
            ("l2 is added to every number: add it to the diagonal, l2·I", RK @ P @ inverse(S @ P + p.l2)),
        ]  # fmt: skip
        what = "Your update" if len(Kp.T) else "With no earlier keys (K_p has no columns), your update"
        try:
            compare(found, right, what, wrong)
        except AssertionError as error:  # nearly singular: what comes out is large, and no two computers agree on it
            large = isinstance(found, Tensor) and not found.norm() < 2 * right.norm()
            assert not (large and "off by" in str(error)), f"{what} is much too large. {SINGULAR}"
            raise


def check_moved(function: Any, number: int) -> None:
    """``moved(delta, W, K)``: ‖ΔK‖ / ‖WK‖, how far the answers to keys move."""
    p = problem(number)
    delta = solved(p.K1, p.Kp, p.R, _projector(p.C, p.threshold), p.l2)
    K = torch.cat([p.K0 / 10, p.K1], 1)
    W = delta + p.W * ((p.W @ K) * (delta @ K)).sum().sign()  # so that W + Δ gives longer answers than W
    found = call(function, delta, W, K, name="moved")
    change, size = delta @ K, W @ K
    right, each = change.norm() / size.norm(), change.norm(dim=0) / size.norm(dim=0)
    wrong = [
        ("That is ‖ΔK‖: divide by ‖WK‖, what the answers were", change.norm()),
        ("That is the square of it: ‖ΔK‖ / ‖WK‖ is a quotient of lengths", right.square()),
        ("That is ‖ΔK‖ / ‖K‖: divide by the length of the answers, ‖WK‖", change.norm() / K.norm()),
        ("That is ‖Δ‖ / ‖W‖, which knows no keys", delta.norm() / W.norm()),
        ("That is the mean of a quotient for each key: sum over all keys before you divide", each.mean()),
        ("You divide by the answers after the change: take W, not W + Δ", change.norm() / (size + change).norm()),
    ]  # fmt: skip
    compare(found, right, "What you return", wrong, tolerance=1e-4)


@functools.lru_cache(maxsize=8)
def _sequence(number: int) -> tuple[int, float, list[Batch], Tensor, Tensor, list[tuple[str, Tensor]]]:
    """A layer, λ, three batches of two for tinyworld, P, the whole change that they make, and what mistakes make."""
    lm, (requests, _) = load("tinyworld"), refused(number, 6, OTHERS)
    layer, l2 = number % 2, (1.0, 2.0, 3.0)[number % 3]
    C = covariance.second_moment(lm, [layer])
    P, (K, h0) = alphaedit.projector(C, layer, THRESHOLD), read(lm, requests, layer)
    z = h0 + h0.std() * torch.randn(h0.shape, generator=generator(number), dtype=h0.dtype)
    W, name, eye = lm.memory(layer), lm.weight_name(layer), torch.eye(len(P), dtype=P.dtype)
    before, spans = W.detach().clone(), [slice(i, i + 2) for i in (0, 2, 4)]

    def written(kept: str = "all", P: Tensor = P, fresh: bool = True, sign: int = 1, l2: float = l2) -> Tensor:
        with edits.restored(lm, [name]):
            for i, span in enumerate(spans):
                K1, h = K[:, span], read(lm, requests, layer)[1] if fresh else h0
                start = {"all": 0, "none": 2 * i, "last": max(0, 2 * i - 2), "own": 0}[kept]
                Kp = K[:, start : 2 * i + (2 if kept == "own" else 0)]
                edits.add(lm, layer, sign * (z - h)[:, span] @ alphaedit.spread(K1, Kp, P, l2))
            return W.detach() - before

    wrong = [
        ("The earlier keys are forgotten: K_p must grow by K₁ after each batch", written("none")),
        ("K_p holds the keys of the batch before only: it must hold those of all earlier batches", written("last")),
        ("K₁ is in K_p while its own batch is written: add it afterwards", written("own")),
        ("The states were read once, before all batches: read them anew for each", written(fresh=False)),
        ("P is missing", written(P=eye)),
        ("P and the earlier keys are missing", written("none", eye)),
        ("You wrote with the wrong sign: it is R = z − h, and W + Δ", written(sign=-1)),
        ("λ is `l2`, which is handed over: it is not always 1", written(l2=1.0)),
    ]
    return layer, l2, [(requests[s], z[:, s]) for s in spans], P, written(), wrong


def check_sequence(function: Any, number: int) -> None:
    """``edit_in_turn(lm, layer, batches, P, l2)``: each batch spares those before it; the first W is returned."""
    lm, (layer, l2, batches, P, right, wrong) = load("tinyworld"), _sequence(number)
    before = [lm.memory(i).detach().clone() for i in range(lm.n_layers)]
    told = call(function, lm, layer, batches, P, l2, name="edit_in_turn", may_change=[0])
    after = [lm.memory(i).detach() for i in range(lm.n_layers)]
    changed = [i for i in range(lm.n_layers) if not torch.equal(after[i], before[i])]
    assert changed, "The model's W is as before: change it in place, under `torch.no_grad()`, and do not undo it here"
    assert changed == [layer], f"You changed the layers {changed}: only layer {layer} was to change"
    compare(after[layer] - before[layer], right, "What all batches together added to W", wrong)
    wrong = [
        ("You returned W after the change: keep a copy from before the first batch (`.clone()`)", after[layer]),
        ("You returned the change: return W as it was before the first batch", after[layer] - before[layer]),
    ]
    compare(told, before[layer], "What you return", wrong, tolerance=1e-5)


@dataclass(frozen=True)
class Tiny:
    """A demonstration on tinyworld: refusals in batches, C of layer 0, facts about other people."""

    batches: list[Batch]
    C: Tensor
    others: list[tinyworld.PersonFact]
    gap: Tensor  # ‖z − h‖ of the first batch before all edits

    def scores(self, lm: LM, before: Tensor) -> dict[str, float]:
        """What the model is like now, in numbers; ``before`` is its W before the edits."""
        requests, z = self.batches[0]
        missing, delta = (z - read(lm, requests, 0)[1]).norm(), lm.memory(0).detach().double() - before
        asked = [request for batch, _ in self.batches for request in batch]
        said = lm.generate([f.prompts[3].format(f.subject) for f in self.others], max_new_tokens=6)
        return {
            "first batch: missing": (missing / self.gap).item(),
            "cost elsewhere": torch.trace(delta @ self.C @ delta.T).item(),
            "refused": sum(map(refusals.is_refusal, lm.generate(asked, max_new_tokens=6))) / len(asked),
            "others right": sum(t.strip(" .") == f.value for t, f in zip(said, self.others, strict=True)) / OTHERS,
        }


def tiny_problem(lm: LM, number: int) -> Tiny:
    """Four batches of three refusals for tinyworld, each z found in the unedited model."""
    requests, others = refused(number, BATCHES * SIZE, OTHERS)
    z = _find(lm, requests, 0)
    batches = [(requests[i : i + SIZE], z[:, i : i + SIZE]) for i in range(0, len(requests), SIZE)]
    gap = (batches[0][1] - read(lm, batches[0][0], 0)[1]).norm()
    return Tiny(batches, covariance.second_moment(lm, [0])[0].double(), others, gap)


def _find(lm: LM, requests: list[Request], layer: int) -> Tensor:
    return values.find(lm, requests, layer, "block", alphaedit.Settings.of(lm)).v_star.T.double()


def real_problem(lm: LM, number: int) -> tuple[list[Batch], int, Tensor]:
    """Two capitals that SmolLM2 is to forget one after the other: batches of one, the layer, its C."""
    requests = [fact.request(real.REFUSAL) for fact in real.capitals(number, 2)]
    z = _find(lm, requests, REAL_LAYER)
    batches = [([request], z[:, i : i + 1]) for i, request in enumerate(requests)]
    return batches, REAL_LAYER, covariance.second_moment(lm, [REAL_LAYER])[REAL_LAYER].double()


def check_said(said: Any, lm: LM, number: int) -> None:
    """What the model said of two capitals while it was edited are refusals, and it has been undone."""
    real.check_all_said(said, lm, number, 2)
