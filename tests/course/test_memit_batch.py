"""Assignment 04: the right answers pass, and each wrong one is told what it did."""

import pytest
import torch
from answers import NUMBERS, fails, passes

from minilib import load, refusals, tinyworld
from minilib.course import memit_batch

pytestmark = pytest.mark.long


def stack(keys, values, W):
    K1 = torch.stack(keys, 1)
    return K1, torch.stack(values, 1) - W @ K1


def update(K1, R, C, lam):
    return torch.linalg.solve(lam * C + K1 @ K1.T, K1 @ R.T).T


def spread(K1, L, lam, diagonal=True):
    S = torch.cholesky_solve(K1, L)
    return torch.linalg.solve((torch.eye(K1.shape[1]).to(L) if diagonal else 1) * lam + K1.T @ S, S.T)


def tradeoff(delta, K1, R, C):
    return (delta @ K1 - R).norm() / R.norm(), torch.einsum("ij,jk,ik->", delta, C, delta)


def largest(K1, R, C, share, power=1):
    low, high = -6.0, 6.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        undone, _ = tradeoff(update(K1, R, C, 10**middle), K1, R, C)
        low, high = (middle, high) if undone**power < share else (low, middle)
    return 10**low


def write(lm, requests, z, layers, factors, lam, left=None, early="", copy=True, sign=1):
    before, last = {}, layers[-1]
    first = {layer: memit_batch.read(lm, requests, layer, last) for layer in layers}
    for i, layer in enumerate(layers):
        now = memit_batch.read(lm, requests, layer, last)
        K1, h = ((first[layer] if name in early else now)[j] for j, name in enumerate("kh"))
        share = (z - h) / (left[i] if isinstance(left, list) else left or len(layers) - i)
        before[layer] = lm.memory(layer).detach().clone() if copy else lm.memory(layer)
        with torch.no_grad():
            lm.memory(layer).add_(sign * share @ spread(K1, factors[layer], lam))
    return before


RIGHT = {
    "stack": stack,
    "update": update,
    "spread": spread,
    "tradeoff": tradeoff,
    "largest": largest,
    "write": write,
}
WRONG = [
    ("stack", lambda k, v, W: (torch.stack(k), torch.stack(v) - torch.stack(k) @ W.T), "rows of K₁"),
    ("stack", lambda k, v, W: (torch.stack(k).reshape(len(k[0]), -1), 0), "shuffles"),
    ("stack", lambda k, v, W: (torch.stack(k, 1), torch.stack(v, 1)), "values themselves"),
    ("stack", lambda k, v, W: (torch.stack(k, 1), -stack(k, v, W)[1]), "wrong sign"),
    ("stack", lambda k, v, W: stack(k, v, W)[1], "Return two things"),
    ("update", lambda K, R, C, lam: -update(K, R, C, lam), "wrong sign"),
    ("update", lambda K, R, C, lam: update(K, R, C, lam).T, "transposed"),
    ("update", lambda K, R, C, lam: R @ K.T @ torch.linalg.inv(C + lam * K @ K.T), "wrong term"),
    ("update", lambda K, R, C, lam: update(K, R, C, 1), "λ is missing"),
    ("update", lambda K, R, C, lam: update(K, R, C + lam * torch.eye(len(C)), 1), "multiply C by it"),
    ("update", lambda K, R, C, lam: update(K, R, C, 1e-9), "exactly, as λ → 0"),
    ("update", lambda K, R, C, lam: sum(update(K[:, [i]], R[:, [i]], C, lam) for i in range(4)), "for all at once"),
    ("update", lambda K, R, C, lam: update(K, R, torch.eye(len(C)).to(C), lam), "identity"),
    ("update", lambda K, R, C, lam: R @ K.T @ torch.linalg.inv(lam + C + K @ K.T), "added to every number"),
    ("update", lambda K, R, C, lam: R @ K.T, "left out the inverse"),
    ("update", lambda K, R, C, lam: R @ K.T @ (lam * C + K @ K.T), "where its inverse belongs"),
    ("update", lambda K, R, C, lam: R @ K.T @ torch.linalg.inv(lam * C), "new keys count too"),
    ("update", lambda K, R, C, lam: R @ K @ torch.linalg.inv(lam * C + K.T @ K), "stops with RuntimeError"),
    ("update", lambda K, R, C, lam: update(K, R, C.mul_(lam), 1), "in place"),
    ("update", lambda K, R, C, lam: None, "returns nothing"),
    ("spread", lambda K, L, lam: spread(K, L, lam).T, "transposed"),
    ("spread", lambda K, L, lam: spread(K, L, 0), "λ is missing"),
    ("spread", lambda K, L, lam: spread(K, L, lam, diagonal=False), "to the diagonal"),
    ("spread", lambda K, L, lam: torch.cholesky_solve(K, L).T, "inverse of λ I"),
    ("spread", lambda K, L, lam: spread(K, torch.linalg.cholesky(L @ L), lam), "took L for C|stops with _LinAlgError"),
    ("spread", lambda K, L, lam: K.T @ torch.linalg.inv(lam * L @ L.T + K @ K.T), "Right, but costly"),
    ("spread", lambda K, L, lam: torch.linalg.solve(lam * L @ L.T + K @ K.T, K).T, "Right, but costly"),
    ("tradeoff", lambda *given: tuple(x**2 for x in tradeoff(*given)), "square of the share"),
    ("tradeoff", lambda delta, K, R, C: ((delta @ K - R).norm(), 0), "divide by ‖R‖"),
    ("tradeoff", lambda delta, K, R, C: ((delta @ K).norm() / R.norm(), 0), "subtract R first"),
    ("tradeoff", lambda delta, K, R, C: (tradeoff(delta, K, R, C)[0], delta.norm() ** 2), "all directions alike"),
    ("tradeoff", lambda *given: tradeoff(*given)[::-1], "exchanged"),
    ("tradeoff", lambda d, K, R, C: (tradeoff(d, K, R, C)[0], (d @ C @ d.T).sum()), "sum of the diagonal"),
    ("tradeoff", lambda d, K, R, C: ((d @ K - R).abs().sum() / R.abs().sum(), 0), "Frobenius norms"),
    ("largest", lambda K, R, C, share: 1e6, "keep the other half"),
    ("largest", lambda K, R, C, share: largest(K, R, C, share, power=2), "√share undone"),
    ("largest", lambda K, R, C, share: largest(K, R, C, 1 - share), "write the rest"),
    ("write", lambda *given: write(*given, left=3), "number of all layers"),
    ("write", lambda *given: write(*given, left=1), "No layer divides"),
    ("write", lambda *given: write(*given, early="kh"), "Keys and states were read before"),
    ("write", lambda *given: write(*given, early="k"), "keys were read before"),
    ("write", lambda *given: write(*given, early="h"), "states h were read before"),
    ("write", lambda *given: write(*given, early="h", left=3), "same part of the first gap"),
    ("write", lambda *given: write(*given, sign=-1), "wrong sign"),
    ("write", lambda *given: write(*given, copy=False), "after the change"),
    ("write", lambda lm, r, z, layers, L, lam: {i: lm.memory(i) for i in layers}, "as before"),
    ("write", lambda lm, r, z, layers, L, lam: write(lm, r, z, layers[:2], L, lam), r"layers \[1, 2\]"),
    ("write", lambda lm, r, z, layers, L, lam: write(lm, r, z, layers, L, lam, left=[2, 1, -1]), "layer's number"),
    ("write", lambda *given: write(*given, left=[4, 3, 2]), "One layer is left"),
    ("write", lambda *given: dict(enumerate(write(*given).values())), "Return a dict"),
    ("write", lambda *given: list(write(*given).values()), "Return a dict"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_passes_for_any_numbers(name):
    passes(getattr(memit_batch, f"check_{name}"), RIGHT[name])


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(memit_batch, f"check_{name}"), wrong, message)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_refusals_of_the_demonstration_are_written(number):
    model = load("tinyworld")
    requests, z, factors, others = memit_batch.tiny_problem(model, number)
    write(model, requests, z, [0], factors, 10.0)
    assert sum(map(refusals.is_refusal, model.generate(requests, max_new_tokens=6))) >= 3
    assert memit_batch.still_right(model, others) > 25
    assert not {r.subject for r in requests} & {f.subject for f in others} and len(others) == memit_batch.OTHERS
    assert all(r.target == tinyworld.REFUSAL for r in requests)


def test_what_was_said_must_be_three_refusals():
    with pytest.raises(AssertionError, match="list of 3"):
        memit_batch.check_said("I don't know.", None, 1)
    with pytest.raises(AssertionError, match=r"said\[1\]"):
        memit_batch.check_said(["I don't know.", "Paris", "I don't know."], None, 1)


@pytest.mark.slow
def test_as_many_refuse_in_the_demonstration_as_its_text_says():
    model, refused = load("tinyworld"), 0
    for number in range(20):
        people, z, factors, _ = memit_batch.tiny_problem(model, number)
        (before,) = write(model, people, z, [0], factors, 10.0).values()
        refused += sum(map(refusals.is_refusal, model.generate(people, max_new_tokens=6)))
        with torch.no_grad():
            model.memory(0).copy_(before)
    assert refused > 0.5 * 80
