"""Checks of assignment 03: ROME's key k*, the search for its value v*, Λ, and the whole edit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import covariance, hooks
from ..editors import rome, values
from ..loading import load
from ..model import LM
from ..requests import SLOT, Request
from ..worlds import tinyworld
from . import real
from .checks import call, compare, trainable
from .seeds import generator


def problem(number: int) -> tuple[LM, Request, int, list[str]]:
    """Tinyworld, what it is to refuse (the subject inside the prompt), a layer, and three contexts."""
    lm, everything = load("tinyworld"), tinyworld.facts()
    lm.model.requires_grad_(False)
    one, *others = (everything[i] for i in torch.randperm(len(everything), generator=generator(number))[:3].tolist())
    request = Request(next(p for p in one.prompts if not p.startswith(SLOT)), one.subject, tinyworld.REFUSAL)
    contexts = [SLOT, *(f"{f.prompts[0].format(f.subject)}{f.target}. {SLOT}" for f in others)]
    return lm, request, number % 3, contexts


def check_key(function: Any, number: int) -> None:
    """``key(lm, request, layer, contexts)``: what enters W at the subject's last token, averaged over contexts."""
    lm, request, layer, contexts = problem(number)
    found = call(function, lm, request, layer, contexts, name="key", may_change=[0])
    d_out, d_k = lm.memory(layer).shape
    assert getattr(found, "shape", None) != (d_out,), (
        f"The key has {d_out} numbers, as the stream has: read what enters `lm.down_projection(layer)`, {d_k} numbers"
    )
    encoded = [lm.encode(request, context=context) for context in contexts]

    def mean(place: Callable[[Any], Any], layer: int = layer) -> Tensor:
        at = []
        for x in encoded:
            with torch.no_grad(), hooks.read({0: lm.down_projection(layer)}, at="input") as seen:
                lm.model(**lm.batch([x.ids]))
            at.append(seen[0][0, place(x)])
        return torch.stack(at).mean(0)

    k = values.keys_and_values(lm, [request], layer, contexts)[0][0]
    compare(
        found,
        k.mean(0),
        "The key",
        [
            ("The key is read at the prompt's last token: the subject's last is asked for", mean(lambda x: -1)),
            ("The key is read at the subject's first token: its last is asked for", mean(lambda x: x.subject_start)),
            (
                "Each context moves the subject: find its place anew, with `context=…`",
                mean(lambda x: encoded[0].subject),
            ),
            ("That is the key of the plain prompt alone: average over all contexts", k[0]),
            ("That is the sum over contexts: take the mean", k.sum(0)),
            ("That is not averaged over the contexts yet", k),
            ("That is the key of the next layer: layers count from 0", mean(lambda x: x.subject, layer + 1)),
        ],
    )


def check_nll(function: Any, number: int) -> None:
    """``nll(logits, prompt, target)``: mean −log p of the target's tokens."""
    g = generator(number)
    prompt, target = (torch.randint(9, (n,), generator=g).tolist() for n in (5 + number % 2, 3))
    ids, start = torch.tensor(prompt + target), len(prompt)
    logits = 2 * torch.randn(len(ids), 9, generator=g, dtype=torch.float64)
    found = call(function, logits, prompt, target, name="nll")

    def mean(logits: Tensor, ids: Tensor) -> Tensor:
        return -logits.log_softmax(-1).gather(1, ids[:, None]).mean()

    def along(x: Tensor) -> Tensor:
        return -x[start - 1 : -1].gather(1, ids[start:, None]).mean()

    right = mean(logits[start - 1 : -1], ids[start:])
    compare(
        found,
        right,
        "The loss",
        [
            ("That counts the prompt's tokens too: only the target's are to become likely", mean(logits[:-1], ids[1:])),
            ("That counts the prompt's tokens too, and each is read one place late", mean(logits, ids)),
            (
                "Logits and tokens are off by one: row t is about the token that follows token t",
                mean(logits[start:], ids[start:]),
            ),
            ("That is the sum over the target: take the mean, or long targets weigh more", 3 * right),
            ("The sign is wrong: a likely target has a small loss", -right),
            (
                "The softmax runs over the tokens: over the vocabulary it is `log_softmax(-1)`",
                along(logits.log_softmax(0)),
            ),
            ("Those are logits: a log-softmax comes first", along(logits)),
            ("Those are probabilities: take their logarithm", along(logits.softmax(-1))),
        ],
        tolerance=1e-5,
    )
    trainable(function, logits.clone().requires_grad_(), prompt, target, name="nll")


def check_kl(function: Any, number: int) -> None:
    """``kl(edited, original)``: KL(edited ‖ original) from logits."""
    g = generator(number)
    edited, original = 2 * torch.randn(2, 12, generator=g, dtype=torch.float64)
    found = call(function, edited, original, name="kl")
    e, o = edited.log_softmax(-1), original.log_softmax(-1)
    right, back = (e.exp() * (e - o)).sum(), (o.exp() * (o - e)).sum()
    compare(
        found,
        right,
        "The divergence",
        [
            ("That is KL(original ‖ edited): the edited distribution stands first, and weighs", back),
            ("The sign is wrong: a divergence is never negative", -right),
            ("That is the mean over the vocabulary: sum over it", right / 12),
            ("That is KL(original ‖ edited), averaged over the vocabulary: exchange them, and sum", back / 12),
            ("Those are logits: turn both into log-probabilities first", (e.exp() * (edited - original)).sum()),
            ("That is the cross-entropy: subtract the edited distribution's own entropy", -(e.exp() * o).sum()),
        ],
        tolerance=1e-5,
    )
    trainable(function, edited.clone().requires_grad_(), original, name="kl")


def about(lm: LM, request: Request) -> tuple[list[int], int]:
    """The tokens of "{subject} is a", and the place of the subject's last."""
    x = lm.encode(Request(values.KL_PROMPT, request.subject, request.target))
    return x.ids, x.subject


def run(lm: LM, ids: list[int], layer: int, token: int, delta: Tensor) -> Tensor:
    """Logits (tokens, vocabulary) with delta added to what the MLP of a layer returns at a token."""

    def add(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, token] += delta
        return value

    with hooks.replace(lm.down_projection(layer), add):
        return lm.model(**lm.batch([ids])).logits[0]


def check_loss(function: Any, number: int) -> None:
    """``loss(lm, request, layer, delta, v0, original, kappa, decay)``: ROME's loss of one δ, with its gradient."""
    lm, request, layer, _ = problem(number)
    search = rome.Settings.of(lm, steps=4)  # a δ on its way, so that all terms depend on it
    begun = values.find(lm, [request], layer, "mlp", search)
    v0, delta = begun.v0[0], (begun.v_star - begun.v0)[0].requires_grad_()
    terms = values.Objective(lm, [request], layer, "mlp", weight_decay=1.0, kl_factor=1.0)
    part = {name: x[0] for name, x in terms(delta[None]).items()}
    nll, unit = part["nll"], torch.tensor([0.5, 1.2]) + torch.rand(2, generator=generator(number)) / 2
    kappa, w = (unit / torch.stack([part["kl"], part["decay"]]).detach()).tolist()  # none is small beside the others
    kl, far = kappa * part["kl"], w * part["decay"]
    ids, last = about(lm, request)
    before, after = (run(lm, ids, layer, last, x).log_softmax(-1) for x in (torch.zeros_like(v0), delta))
    arguments = request, layer, delta, v0, before[last], kappa, w
    found = call(function, lm, *arguments, name="loss", may_change=[0, 3])
    ends = (before[last], after[last]), (after[-1], before[last])
    back, late = ((a.exp() * (a - b)).sum() for a, b in ends)
    whole = lm.encode(request)
    prompt, target = whole.ids, whole.target
    said = run(lm, prompt + target, layer, len(prompt) - 1, delta)[len(prompt) - 1 : -1].log_softmax(-1)
    misplaced = -said.gather(1, torch.tensor(target)[:, None]).mean()
    term = "‖δ‖ / ‖v₀‖², the length over the squared length"
    compare(
        found,
        nll + kl + far,
        "The loss",
        [
            ("The KL term is missing, or δ is missing in its run", nll + far),
            ("The weight decay term is missing", nll + kl),
            ("The KL term is taken away: add it", nll - kl + far),
            ("The weight decay term is taken away: add it", nll + kl - far),
            (f"The weight decay term is {term}", nll + kl + w * delta.norm()),
            ("Only the target's term is there: KL and weight decay are missing", nll),
            ("The KL term runs the wrong way: KL(edited ‖ original)", nll + kappa * back + far),
            ("The KL term is read at the last token of “… is a”, not at the subject's", nll + kappa * late + far),
            ("κ is missing: it weighs the KL term", nll + part["kl"] + far),
            (f"The weight decay term is {term}", nll + kl + w * delta.norm() / v0.norm()),
            (f"The weight decay term is {term}", nll + kl + w * (delta.norm() / v0.norm()) ** 2),
            ("δ is missing in the target's run", terms(torch.zeros_like(delta)[None])["nll"][0] + kl + far),
            ("δ is added at the prompt's last token: it belongs to the subject's", misplaced + kl + far),
        ],
    )
    assert isinstance(found, Tensor) and found.requires_grad, (
        "The loss has no gradient: keep it a tensor, without `.item()`, `.detach()` and `torch.no_grad()`"
    )
    wanted, gradient = (torch.autograd.grad(x, delta)[0] for x in (nll + kl + far, found))
    compare(gradient, wanted, "The loss is right, but its gradient is not all there: it", tolerance=1e-2)


def descend(objective: Any, v0: Tensor, steps: int, lr: float, limit: float, stop: float, **mistake: Any) -> Tensor:
    """δ after a search as it should be, or with a mistake: uphill, another optimiser, gradients summed, v clamped."""
    delta = torch.zeros_like(v0, requires_grad=True)
    optimiser, gradient = mistake.get("kind", torch.optim.Adam)([delta], lr=lr), torch.zeros_like(v0)
    kept = v0 if mistake.get("clamp_v") else torch.zeros_like(v0)
    for _ in range(steps):
        loss = objective(delta)
        if loss < stop:
            break
        new = mistake.get("sign", 1) * torch.autograd.grad(loss, delta)[0]
        gradient = gradient + new if mistake.get("summed") else new
        delta.grad = gradient.clone()
        optimiser.step()
        with torch.no_grad():
            moved = delta + kept
            delta.copy_(moved * (limit / moved.norm()).clamp(max=math.inf if mistake.get("always") else 1) - kept)
    return delta.detach()


def check_search(function: Any, number: int) -> None:
    """``search(objective, v0, steps, lr, clamp_factor, stop)``: v* = v0 + δ by Adam, δ clamped after each update."""
    g = generator(number)
    v0, bend, aim = torch.randn(3, 6, generator=g, dtype=torch.float64)
    v0, bend, aim = 2 * v0 / v0.norm(), 0.5 + bend.abs(), 3 * aim.sign() + aim

    def objective(delta: Tensor) -> Tensor:
        return (bend * (delta - aim) ** 2).mean()

    steps, lr = 9 + number % 3, 0.2
    between = sum(objective(descend(objective, v0, n, lr, math.inf, 0.0)).item() for n in (4, 5)) / 2
    for c, stop in ((0.6, 0.0), (100.0, between), (100.0, 0.0)):  # clamped, stopped after 5 updates, neither
        limit, found = 2 * c, call(function, objective, v0, steps, lr, c, stop, name="search")
        right = descend(objective, v0, steps, lr, limit, stop)

        def wrong(steps: int = steps, limit: float = limit, stop: float = stop, **kwargs: Any) -> Tensor:
            return v0 + descend(objective, v0, steps, lr, limit, stop, **kwargs)

        compare(
            found,
            v0 + right,
            "v*",
            [
                ("That is δ: v* = v0 + δ", right),
                ("That is v0: δ has not moved", v0),
                ("δ is not clamped: it may be `clamp_factor` times as long as v0, no longer", wrong(limit=math.inf)),
                ("You clamp v0 + δ: the clamp is for δ alone", wrong(clamp_v=True)),
                ("δ is made as long as it may be: only a longer one is to be shortened", wrong(always=True)),
                ("The clamp takes `clamp_factor` itself: the limit is that many times ‖v0‖", wrong(limit=c)),
                ("The search goes uphill: the loss is to become small", wrong(sign=-1)),
                ("Gradients add up from step to step: clear them, `adam.zero_grad()`", wrong(summed=True)),
                ("That is plain gradient descent: use `torch.optim.Adam`", wrong(kind=torch.optim.SGD)),
                ("The search does not stop when the loss is below `stop`", wrong(stop=0.0)),
                ("That is one update too few: `steps` of them are asked for", wrong(steps=steps - 1)),
                ("That is one update too many", wrong(steps=steps + 1)),
            ],
            tolerance=1e-5,
        )  # fmt: skip


def check_lambda(function: Any, number: int) -> None:
    """``Lambda(W, C, k, v)``: so that (W + Λ(C⁻¹k)ᵀ) k = v."""
    g = generator(number)
    mixed, W = torch.randn(24, 6, generator=g, dtype=torch.float64), torch.randn(4, 6, generator=g, dtype=torch.float64)
    k, v = (torch.randn(n, generator=g, dtype=torch.float64) for n in (6, 4))
    C = mixed.T @ mixed / 24 * (1 + torch.arange(6)).outer(1 + torch.arange(6)) / 4
    found = call(function, W, C, k, v, name="Lambda")
    u, r = torch.linalg.solve(C, k), v - W @ k
    compare(
        found,
        r / (u @ k),
        "Λ",
        [
            ("The sign is wrong: what is missing at k is v − W k", -r / (u @ k)),
            ("The denominator lacks C⁻¹: it is (C⁻¹k)·k", r / (k @ k)),
            ("C stands where C⁻¹ belongs", r / (k @ C @ k)),
            ("You used v itself: only what is missing, v − W k, is to be added", v / (u @ k)),
            ("That is v − W k: divide by (C⁻¹k)·k", r),
            ("You multiplied by (C⁻¹k)·k: divide", r * (u @ k)),
            ("The denominator is (C⁻¹k)·k, and not ‖C⁻¹k‖²", r / (u @ u)),
            ("That is the whole change Δ: return Λ alone", torch.outer(r, u) / (u @ k)),
        ],
    )


def check_change(function: Any, number: int) -> None:
    """``change(lm, request, layer, C, steps)``: Δ of one edit, as ``minilib.rome`` makes it."""
    lm, request, layer, _ = problem(number)
    C, steps = covariance.second_moment(lm, [layer]), 6
    W = lm.memory(layer)
    before = W.detach().clone()
    found = call(function, lm, request, layer, C[layer], steps, name="change", may_change=[0])
    assert torch.equal(W, before), "`change` changed the model's W: return Δ, and write nothing yet"
    edit = rome.edit(lm, request, C, layer=layer, steps=steps + 1)  # the last of the library's steps makes no update
    delta = edit.deltas[lm.weight_name(layer)]
    edit.undo()
    k, v0 = (x[0, 0] for x in values.keys_and_values(lm, [request], layer, [SLOT]))
    r, u = delta @ k, covariance.solve(C[layer], k).float()
    compare(
        found,
        delta,
        "The change",
        [
            ("The sign is wrong: what is missing at k is v − W k", -delta),
            ("The change is transposed: it has the shape of W", delta.T),
            ("The change is exact at k but not minimal: did you forget C⁻¹?", torch.outer(r, k) / (k @ k)),
            ("The row is k, and Λ is for the row C⁻¹k", torch.outer(r, k) / (u @ k)),
            ("δ stands where v* = v0 + δ belongs: W k is taken away twice", torch.outer(r - v0, u) / (u @ k)),
            ("W k is not subtracted: Λ adds only what is missing", torch.outer(r + v0, u) / (u @ k)),
            ("That is W + Δ: return Δ alone", W + delta),
        ],
        tolerance=2e-2,
    )


def real_problem(lm: LM, number: int) -> tuple[Request, int, Tensor]:
    """A capital that SmolLM2 is to forget: the request, the preset's layer, and its C."""
    layer = rome.Settings.of(lm).layer
    return real.capital(number).request(real.REFUSAL), layer, covariance.second_moment(lm, [layer])[layer]


def check_said(said: Any, lm: LM, number: int) -> None:
    """What the model said while it was edited is a refusal, and it has been undone."""
    real.check_refused(said, "said")
    real.check_undone(lm, real.capital(number))
