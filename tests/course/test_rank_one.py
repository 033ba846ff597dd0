"""Assignment 01: the right answers pass, and each wrong one is told what it did."""

import pytest
import torch
from answers import fails, passes

from minilib.course import rank_one

RIGHT = {
    "second_moment": lambda K: K.T @ K / len(K),
    "least_squares": lambda K, V: torch.linalg.solve(K.T @ K, K.T @ V).T,
    "cost": lambda delta, C: torch.trace(delta @ C @ delta.T),
    "update": lambda W, C, k, v: torch.outer(v - W @ k, torch.linalg.solve(C, k)) / (torch.linalg.solve(C, k) @ k),
}
WRONG = [
    ("second_moment", lambda K: K.T @ K, "sum over keys"),
    ("second_moment", lambda K: K.T @ K / K.shape[1], "wrong axis"),
    ("second_moment", lambda K: K @ K.T, "one row for each key"),
    ("second_moment", lambda K: torch.cov(K.T), "subtracted the mean"),
    ("second_moment", lambda K: K.mul_(0), "in place"),
    ("second_moment", lambda K: None, "returns nothing"),
    ("least_squares", lambda K, V: torch.linalg.solve(K.T @ K, K.T @ V), "That is Wᵀ"),
    ("least_squares", lambda K, V: V.T @ K, "left out the inverse"),
    ("least_squares", lambda K, V: V.T @ K @ K.T, "RuntimeError|the shape"),
    ("cost", lambda delta, C: delta.square().sum(), "treats all directions alike"),
    ("cost", lambda delta, C: torch.trace(delta @ C @ delta.T).sqrt(), "root of the cost"),
    ("update", lambda W, C, k, v: -RIGHT["update"](W, C, k, v), "wrong sign"),
    ("update", lambda W, C, k, v: RIGHT["update"](W, C, k, v).T, "transposed"),
    ("update", lambda W, C, k, v: torch.outer(v - W @ k, k) / (k @ k), "did you forget C⁻¹"),
    ("update", lambda W, C, k, v: W + RIGHT["update"](W, C, k, v), "return Δ alone"),
    ("update", lambda W, C, k, v: 2 * RIGHT["update"](W, C, k, v), "2 times what it should be"),
    ("write", lambda lm, layer, delta: lm.memory(layer).clone(), "is as before"),
    ("write", lambda lm, layer, delta: wrote(lm, layer, -delta), "subtracted"),
    ("write", lambda lm, layer, delta: wrote(lm, layer, delta, copy=False), "after the change"),
]


def wrote(lm, layer, delta, copy=True):
    W = lm.memory(layer)
    old = W.detach().clone() if copy else W
    with torch.no_grad():
        W += delta
    return old


RIGHT["write"] = wrote


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_passes_for_any_numbers(name):
    passes(getattr(rank_one, f"check_{name}"), RIGHT[name])


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(rank_one, f"check_{name}"), wrong, message)
