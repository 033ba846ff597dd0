"""Assignment 03: the right answers pass, and each wrong one is told what it did."""

import pytest
import torch
from answers import fails, passes

from minilib import hooks
from minilib.course import rome_value
from minilib.course.rome_value import about, run

pytestmark = pytest.mark.long

Adam = torch.optim.Adam


def key(lm, request, layer, contexts, place=lambda x: x.subject, average=lambda k: k.mean(0)):
    found = []
    for context in contexts:
        x = lm.encode(request, context=context)
        with torch.no_grad(), hooks.read({0: lm.down_projection(layer)}, at="input") as seen:
            lm.model(**lm.batch([x.ids]))
        found.append(seen[0][0, place(x)])
    return average(torch.stack(found))


def value_in_its_place(lm, request, layer, contexts):
    return lm.memory(layer) @ key(lm, request, layer, contexts)


def nll(logits, prompt, target):
    said = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return -said[range(len(target)), target].mean()


def everything(logits, prompt, target):
    return nll(logits, prompt[:1], prompt[1:] + target)


def kl(edited, original):
    edited, original = edited.log_softmax(-1), original.log_softmax(-1)
    return (edited.exp() * (edited - original)).sum()


def loss(
    lm, request, layer, delta, v0, original, kappa, decay, kl=kl, size=lambda d, v: d.norm() / v.norm() ** 2, at=None
):
    x = lm.encode(request)
    ids, last = x.ids, x.subject
    target, (what, named) = lm.encode_target(request.target), about(lm, request)
    said = nll(run(lm, ids + target, layer, last, delta), ids, target)
    kept = kl(run(lm, what, layer, named, delta)[named if at is None else at], original)
    return said + kappa * kept + decay * size(delta, v0)


def search(objective, v0, steps, lr, clamp_factor, stop, kind=Adam, around=0, sign=1, clear=True, more=0, always=False):
    delta = torch.zeros_like(v0, requires_grad=True)
    optimiser = kind([delta], lr=lr)
    for _ in range(steps + more):
        value = sign * objective(delta)
        if value < stop and sign > 0:
            break
        if clear:
            optimiser.zero_grad()
        value.backward()
        optimiser.step()
        with torch.no_grad():
            moved = delta + around * v0
            if always or moved.norm() > clamp_factor * v0.norm():
                moved *= clamp_factor * v0.norm() / moved.norm()
            delta.copy_(moved - around * v0)
    return (v0 + delta).detach()


def Lambda(W, C, k, v):
    return (v - W @ k) / (torch.linalg.solve(C, k) @ k)


def change(lm, request, layer, C, steps, row=torch.linalg.solve, scale=Lambda):
    k, W, (what, named) = key(lm, request, layer, ["{}"]), lm.memory(layer), about(lm, request)
    v0 = W @ k
    original = run(lm, what, layer, named, torch.zeros_like(v0))[named]
    terms = v0, original, 0.0625, 1e-3
    v = search(lambda delta: loss(lm, request, layer, delta, *terms), v0, steps, 0.5, 4.0, 0.05)
    return torch.outer(scale(W, C, k, v), row(C, k))


RIGHT = {name: globals()[name] for name in ("key", "nll", "kl", "loss", "search", "Lambda", "change")}
WRONG = [
    ("key", lambda *a: key(*a, place=lambda x: -1), "the prompt's last token"),
    ("key", lambda *a: key(*a, place=lambda x: x.subject_start), "first token"),
    ("key", lambda *a: key(*a[:3], ["{}"]), "the plain prompt alone"),
    ("key", lambda *a: key(*a, average=lambda k: k.sum(0)), "the sum over contexts"),
    ("key", lambda *a: key(*a, average=lambda k: k), "not averaged"),
    ("key", lambda lm, r, layer, c: key(lm, r, layer, c, lambda x: lm.encode(r).subject), "moves the subject"),
    ("key", value_in_its_place, "96 numbers"),
    ("nll", everything, "counts the prompt's tokens"),
    ("nll", lambda *a: len(a[2]) * nll(*a), "the sum over the target"),
    ("nll", lambda *a: -nll(*a), "sign"),
    ("nll", lambda logits, p, t: nll(logits.roll(-1, 0), p, t), "off by one"),
    ("nll", lambda logits, p, t: -logits[len(p) - 1 : -1][range(3), t].mean(), "Those are logits"),
    ("nll", lambda *a: None, "returns nothing"),
    ("nll", lambda *a: nll(*a).item(), "no gradient"),
    ("kl", lambda edited, original: kl(edited, original).detach(), "no gradient"),
    ("kl", lambda edited, original: kl(original, edited), "original ‖ edited"),
    ("kl", lambda edited, original: -kl(edited, original), "never negative"),
    ("kl", lambda *a: kl(*a[::-1]) / len(a[0]), "exchange them"),
    ("kl", lambda edited, original: (edited.softmax(-1) * (edited - original)).sum(), "Those are logits"),
    ("loss", lambda *a: loss(*a, kl=lambda e, o: 0), "KL term is missing"),
    ("loss", lambda *a: loss(*a[:-1], 0), "decay term is missing"),
    ("loss", lambda *a: loss(*a, kl=lambda e, o: kl(o, e)), "the wrong way"),
    ("loss", lambda *a: loss(*a, kl=lambda e, o: -kl(e, o)), "KL term is taken away"),
    ("loss", lambda *a: loss(*a, size=lambda d, v: d.norm()), "squared length"),
    ("loss", lambda *a: loss(*a, at=-1), "not at the subject"),
    ("loss", lambda *a: loss(*a[:6], 1, a[7]), "κ is missing"),
    ("loss", lambda *a: loss(*a, size=lambda d, v: d.norm() / v.norm()), "squared length"),
    ("loss", lambda *a: loss(*a).item(), "no gradient"),
    ("loss", lambda *a: loss(*a, kl=lambda e, o: kl(e.detach(), o)), "not all there"),
    ("search", lambda o, v0, *a: search(o, v0, *a) - v0, "That is δ"),
    ("search", lambda o, v0, n, lr, c, s: search(o, v0, n, lr, 1e9, s), "not clamped"),
    ("search", lambda *a: search(*a, around=1), "You clamp v0"),
    ("search", lambda *a: search(*a, sign=-1), "uphill"),
    ("search", lambda *a: search(*a, always=True), "only a longer one"),
    ("search", lambda *a: search(*a, clear=False), "add up"),
    ("search", lambda *a: search(*a, kind=torch.optim.SGD), "plain gradient descent"),
    ("search", lambda *a: search(*a, more=-1), "too few"),
    ("search", lambda *a: search(*a[:5], -1), "does not stop"),
    ("Lambda", lambda *a: -Lambda(*a), "sign"),
    ("Lambda", lambda W, C, k, v: (v - W @ k) / (k @ k), "lacks C⁻¹"),
    ("Lambda", lambda W, C, k, v: (v - W @ k) / (k @ C @ k), "C stands where"),
    ("Lambda", lambda W, C, k, v: v / (torch.linalg.solve(C, k) @ k), "You used v itself"),
    ("Lambda", lambda W, C, k, v: v - W @ k, "divide by"),
    ("Lambda", lambda W, C, k, v: (v - W @ k) / torch.linalg.solve(C, k).square().sum(), "and not ‖C⁻¹k‖²"),
    ("change", lambda *a: -change(*a), "sign"),
    ("change", lambda *a: change(*a).T, "transposed"),
    ("change", lambda lm, r, layer, *a: lm.memory(layer).data.add_(change(lm, r, layer, *a)), "write nothing yet"),
    ("change", lambda *a: change(*a, row=lambda C, k: k), "the row C⁻¹k"),
    ("change", lambda lm, r, layer, C, n: change(lm, r, layer, torch.eye(len(C)), n), "forget C⁻¹"),
    ("change", lambda lm, r, layer, *a: lm.memory(layer) + change(lm, r, layer, *a), "return Δ alone"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_passes_for_any_numbers(name):
    passes(getattr(rome_value, f"check_{name.lower()}"), RIGHT[name])


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(rome_value, f"check_{name.lower()}"), wrong, message)
