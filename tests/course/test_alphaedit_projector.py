"""Assignment 06: the right answers pass, and each wrong one is told what it did."""

import pytest
import torch
from answers import NUMBERS, fails, passes

from minilib import alphaedit
from minilib.course import alphaedit_projector


def projector(C, threshold, columns=True):
    w, U = torch.linalg.eigh(C)
    U0 = U[:, w < threshold] if columns else U[w < threshold].T
    return U0 @ U0.T


def through(P, K):
    return P.trace(), (P @ K).norm() ** 2 / K.norm() ** 2


def update(K1, Kp, R, P, l2):
    """In the other form, with P on both sides and a solve."""
    K = P @ torch.cat([K1, Kp], 1)
    A = K @ K.T + l2 * torch.eye(len(P)).to(P)
    return torch.linalg.solve(A, P @ K1 @ R.T).T


def one_sided(K1, Kp, R, P, l2, left=False, identity=True):
    S, eye = Kp @ Kp.T + K1 @ K1.T, torch.eye(len(P)).to(P) if identity else 1
    return R @ K1.T @ P @ torch.linalg.inv((P @ S if left else S @ P) + l2 * eye)


def bracket(K1, Kp, P, l2):
    return (Kp @ Kp.T + K1 @ K1.T) @ P + l2 * torch.eye(len(P)).to(P)


def moved(delta, W, K):
    return (delta @ K).norm() / (W @ K).norm()


def in_turn(lm, layer, batches, P, l2, keep=None, own=False, fresh=True, copy=True, sign=1):
    W = lm.memory(layer)
    before = W.detach().clone() if copy else W
    Kp = torch.zeros(len(P), 0).to(P)
    states = [alphaedit_projector.read(lm, requests, layer)[1] for requests, _ in batches]
    for (requests, z), first in zip(batches, states, strict=True):
        K1, h = alphaedit_projector.read(lm, requests, layer)
        kept = Kp if keep is None else Kp[:, Kp.shape[1] - keep :]
        kept = torch.cat([kept, K1], 1) if own else kept
        with torch.no_grad():
            W += sign * update(K1, kept, z - (h if fresh else first), P, l2)
        Kp = torch.cat([Kp, K1], 1)
    return before


RIGHT = {
    "projector": projector,
    "through": through,
    "update": update,
    "moved": moved,
    "sequence": in_turn,
}


def unprojected(K, Kp, R, P, l2, new=False):
    """P stands behind the new keys only, or behind none."""
    A = Kp @ Kp.T + K @ K.T @ (P if new else torch.eye(len(P)).to(P)) + l2 * torch.eye(len(P)).to(P)
    return R @ K.T @ P @ torch.linalg.inv(A)


WRONG = [
    ("projector", lambda C, t: torch.eye(len(C)) - projector(C, t), "ABOVE"),
    ("projector", lambda C, t: projector(C, t, columns=False), "rows of U"),
    ("projector", lambda C, t: projector(C, t * torch.linalg.eigvalsh(C)[-1]), "absolute"),
    ("projector", lambda C, t: torch.eye(int((torch.linalg.eigvalsh(C) < t).sum())), "identity, U₀ᵀU₀"),
    ("projector", lambda C, t: torch.linalg.eigh(C)[1][:, torch.linalg.eigvalsh(C) < t], "That is U₀"),
    ("projector", lambda C, t: projector(C, t) @ C, "without its large"),
    ("projector", lambda C, t: projector(C, 1e9), "No direction is left out"),
    ("projector", lambda C, t: projector(C.sub_(1), t - 1), "in place"),
    ("projector", lambda C, t: None, "returns nothing"),
    ("projector", lambda C, t: projector(C, t**0.5), "absolute"),
    ("projector", lambda C, t: projector(C, t).tolist(), "must be a tensor, not list"),
    ("projector", lambda C, t: projector(C, t).numpy(), "must be a tensor, not ndarray"),
    ("projector", lambda C, t: projector(C, t).to(torch.complex128), "complex"),
    ("through", lambda P, K: (len(P), through(P, K)[1]), "trace"),
    ("through", lambda P, K: (len(P) - P.trace(), through(P, K)[1]), "P shuts"),
    ("through", lambda P, K: (P.trace(), through(P, K)[1] ** 0.5), "quotient of lengths"),
    ("through", lambda P, K: (P.trace(), 1 - through(P, K)[1]), "takes away"),
    ("through", lambda P, K: (P.trace(), (P @ K).norm() ** 2), "divide by"),
    ("through", lambda P, K: (P.trace(), ((P @ K).norm(dim=0) / K.norm(dim=0)).square().mean()), "mean of the keys"),
    ("through", lambda P, K: through(P, K)[1], "Return two things"),
    ("through", lambda P, K: (..., ...), "put your code in the place"),
    ("update", lambda *given: -update(*given), "wrong sign"),
    ("update", lambda *given: update(*given).T, "transposed"),
    ("update", lambda K, Kp, R, P, l2: update(K, Kp, R, torch.eye(len(P)).to(P), l2), "P is missing"),
    ("update", lambda K, Kp, R, P, l2: update(K, Kp, R, torch.eye(len(P)).to(P), l2) @ P, "project afterwards"),
    ("update", lambda *given: one_sided(*given, left=True), "in front of"),
    ("update", lambda K, Kp, R, P, l2: torch.linalg.solve(bracket(K, Kp, P, l2), P @ K @ R.T).T, "Aᵀ Δᵀ = Bᵀ"),
    ("update", lambda K, Kp, R, P, l2: (torch.linalg.inv(bracket(K, Kp, P, l2)) @ K @ R.T).T, "transposed"),
    ("update", lambda K, Kp, R, P, l2: update(K, Kp[:, :0], R, P, l2), "earlier keys are forgotten"),
    ("update", lambda K, Kp, R, P, l2: update(K, Kp, R, P, 1), "l2 is missing"),
    ("update", lambda *given: unprojected(*given), "outside the free directions"),
    ("update", lambda *given: unprojected(*given, new=True), "outside the free directions"),
    ("update", lambda *given: one_sided(*given, identity=False), "every number"),
    ("update", lambda *given: one_sided(*given[:4], 0), "identity term"),
    ("update", lambda K, Kp, R, P, l2: R @ K.T @ P @ torch.linalg.pinv((K @ K.T + Kp @ Kp.T) @ P), "identity term"),
    ("update", lambda K, Kp, R, P, l2: torch.linalg.solve(0 * P, K @ R.T).T, "identity term"),
    ("update", lambda K, Kp, R, P, l2: R @ K.T @ P, "left out the inverse"),
    ("moved", lambda delta, W, K: (delta @ K).norm(), "divide by"),
    ("moved", lambda delta, W, K: moved(delta, W, K) ** 2, "square"),
    ("moved", lambda delta, W, K: delta.norm() / W.norm(), "knows no keys"),
    ("moved", lambda delta, W, K: (delta @ K).norm() / K.norm(), "length of the answers"),
    ("moved", lambda delta, W, K: moved(delta, W + delta, K), "after the change"),
    ("sequence", lambda *given: in_turn(*given, keep=0), "must grow"),
    ("sequence", lambda *given: in_turn(*given, keep=2), "batch before only"),
    ("sequence", lambda *given: in_turn(*given, own=True), "while its own batch"),
    ("sequence", lambda *given: in_turn(*given, fresh=False), "read once"),
    ("sequence", lambda lm, i, b, P, l2: in_turn(lm, i, b, torch.eye(len(P)).to(P), l2), "P is missing"),
    ("sequence", lambda *given: in_turn(*given, sign=-1), "wrong sign"),
    ("sequence", lambda *given: in_turn(*given, copy=False), "after the change"),
    ("sequence", lambda lm, i, b, P, l2: in_turn(lm, i, b, P, 5.0), "is off by|handed over"),
    ("sequence", lambda lm, i, b, P, l2: in_turn(lm, 2, b, P, l2), "only layer"),
    ("sequence", lambda lm, i, *given: -in_turn(lm, i, *given) + lm.memory(i).detach(), "You returned the change"),
    ("sequence", lambda lm, i, b, P, l2: lm.memory(i).clone(), "as before"),
]


LONG = [pytest.mark.long]  # what edits a model, and takes longer than what is asked of some matrices


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG * (name == "sequence")) for name in RIGHT])
def test_the_right_answer_passes_for_any_numbers(name):
    passes(getattr(alphaedit_projector, f"check_{name}"), RIGHT[name])


def test_the_formula_as_the_chapter_writes_it_passes_too():
    passes(alphaedit_projector.check_update, one_sided)


@pytest.mark.parametrize(
    ("name", "wrong", "message"), [pytest.param(*case, marks=LONG * (case[0] == "sequence")) for case in WRONG]
)
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(alphaedit_projector, f"check_{name}"), wrong, message)


@pytest.mark.parametrize("number", [NUMBERS[0], *(pytest.param(number, marks=LONG) for number in NUMBERS[1:])])
def test_the_demonstration_shows_what_p_and_the_earlier_keys_are_for(number, tinyworld):
    model = tinyworld
    tiny = alphaedit_projector.tiny_problem(model, number)
    P = alphaedit.projector({0: tiny.C}, 0, 0.19)
    scores = {}
    for name, P_, keep in (("both", P, None), ("no keys", P, 0), ("no P", torch.eye(len(P)).to(P), None)):
        before = in_turn(model, 0, tiny.batches, P_, 1.0, keep=keep)
        scores[name] = tiny.scores(model, before)
        with torch.no_grad():
            model.memory(0).copy_(before)
    missing, cost = ({name: row[key] for name, row in scores.items()} for key in list(scores["both"])[:2])
    assert missing["no keys"] > 1.5 * missing["both"] and cost["no P"] > 3 * cost["both"]


def test_what_was_said_must_be_two_refusals():
    with pytest.raises(AssertionError, match="list of 2"):
        alphaedit_projector.check_said("I don't know.", None, 1)
    with pytest.raises(AssertionError, match=r"said\[1\]"):
        alphaedit_projector.check_said(["I don't know.", "Paris"], None, 1)
