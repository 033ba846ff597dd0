"""Checks of assignment 07: the losses of gradient ascent and NPO, a training loop, and the distance to the oracle."""

from __future__ import annotations

import functools
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..loading import load
from ..measure import tasks
from ..model import LM
from ..requests import Request
from ..unlearning.training import read as read_rows
from ..worlds import facts
from ..worlds.facts import Fact, Question
from . import real
from .checks import call, compare, trainable
from .seeds import generator

N, TOKENS, WORDS = 5, 9, 7  # answers, tokens of a text, and words of a vocabulary
STEPS = 4  # of training in a check
LEARNING = (1e-3, 7e-4, 5e-4)  # rates
BETAS = (0.3, 0.4, 3.0, 6.0)  # with 1 or 2 some mistakes would not show


class Answers(NamedTuple):
    """Of some answers log π(y|x) and the number n of their tokens, both (answers,)."""

    logp: Tensor
    length: Tensor


class World(NamedTuple):
    """Twenty questions of tinyworld that are to be forgotten, sixty to be kept, sixty others; and the oracle."""

    forget: list[Request]
    retain: list[Request]
    facts: list[Fact]
    others: list[Question]
    oracle: LM


def read(lm: LM, requests: list[Request]) -> Answers:
    """What a model thinks of the answers to some questions, their targets; gradients flow back into its weights."""
    rows = read_rows(lm, lm.encode(requests, ended=True))
    return Answers(rows.logp, rows.length)


@functools.cache
def world() -> World:
    """The facts and the oracle of chapter 09."""
    task = tasks.exact()
    assert task.oracle is not None
    others = [question for kind, question in task.outside if kind == "neighbour"]
    return World(task.forget_said, task.retain_said, task.forget, others, task.oracle)


def score(lm: LM) -> dict[str, int]:
    """How many of the twenty facts a model still tells, and of sixty others that no training has seen."""
    said = lm.generate([*world().forget, *(question.text for question in world().others)], max_new_tokens=8)
    told = [fact.answered_by(text) for fact, text in zip(world().facts, said, strict=False)]
    others = [question.answered_by(text) for question, text in zip(world().others, said[len(told) :], strict=True)]
    return {"told": sum(told), "others": sum(others)}


def problem(number: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """log π and log π_ref of five answers, their lengths, and β."""
    g = generator(number)
    length = 1 + torch.randperm(N, generator=g)
    ref = -(1 + torch.rand(N, generator=g, dtype=torch.float64)) * length**2 / 6  # long answers are less likely a token
    logp = ref - 1.5 * torch.randn(N, generator=g, dtype=torch.float64)
    return logp.clamp(max=-0.01), ref, length.double(), BETAS[number % 4]


def check_answer_logprob(function: Any, number: int) -> None:
    """``answer_logprob(logits, ids, n)``: log π(y|x) of the last n tokens of a text."""
    g, lengths = generator(number), torch.tensor([1, 3, 4])
    logits = 2 * torch.randn(TOKENS, WORDS, generator=g, dtype=torch.float64)
    ids = torch.randint(WORDS, (TOKENS,), generator=g)
    found = [torch.as_tensor(call(function, logits, ids, n, name="answer_logprob")) for n in (1, 3, 4)]
    assert all(x.numel() == 1 for x in found), "`answer_logprob` must return one number: sum over the tokens"

    def of(steps: Tensor, shift: int = 1, end: int | None = None) -> Tensor:
        said = steps[: TOKENS - shift].gather(1, ids[shift:, None]).squeeze(1)[:end]
        return torch.stack([said[-n:].sum() for n in lengths.tolist()])

    steps = logits.log_softmax(-1)
    said = steps[:-1].gather(1, ids[1:, None]).squeeze(1)
    whole, first = said.sum(), torch.stack([said[:n].sum() for n in lengths.tolist()])
    summed = torch.stack([said[-n:].exp().sum().log() for n in lengths.tolist()])
    right, late = of(steps), "The logits at a token foretell the *next* one: shift by one"
    suspects = [
        (late, of(steps, 0)),
        (late, of(steps, 0, -1)),
        ("You shifted once too often: the logits at a token foretell the next one", of(steps, 2)),
        ("That is about the beginning of the text: the answer stands at its end", first),
        ("Take the logarithm of each token's probability, and then sum", summed),
        ("These are logits: take their `log_softmax` first", of(logits)),
        ("You normalised over the tokens: normalise over the vocabulary, the last axis", of(logits.log_softmax(0))),
        ("That is the mean over tokens: probabilities are multiplied, logarithms added", right / lengths),
        ("That is the probability: its logarithm is wanted", right.exp()),
        ("The sign is wrong: the logarithm of a probability is below 0", -right),
        ("The question's tokens are in it: only the last n are the answer", whole.expand(3)),
    ]
    compare(torch.stack([x.reshape(()) for x in found]), right, "log π(y|x)", suspects)


def check_ascent_loss(function: Any, number: int) -> None:
    """``ascent_loss(logp, length)``: mean of (1/n) log π."""
    _, logp, length, _ = problem(number)
    found = call(function, logp, length, name="ascent_loss")
    loss, tokens = (logp / length).mean(), logp.sum() / length.sum()
    suspects = [
        ("The sign is wrong: training goes *down*, so this would make the answers likelier", -loss),
        ("That is the sum over the answers: take the mean", loss * N),
        ("Each answer is to be divided by the number of its tokens", logp.mean()),
        ("You divided by all tokens, so that long answers weigh more: divide each by its own n", tokens),
        ("That has probabilities: their logarithms are given, and wanted", (logp / length).exp().mean()),
        ("One number is wanted: take the mean over the answers", logp / length),
    ]
    compare(found, loss, "The loss", suspects, tolerance=1e-4)
    trainable(function, logp.clone().requires_grad_(), length, name="ascent_loss")


def check_npo_loss(function: Any, number: int) -> None:
    """``npo_loss(logp, ref, beta)``: (2/β) log(1 + (π/π_ref)^β)."""
    logp, ref, _, beta = problem(number)
    s = logp - ref
    each, alone = -(2 / beta) * logsigmoid(-beta * s), -(2 / beta) * logsigmoid(-beta * logp).mean()
    ratio = (
        "That grows as the answer gets *un*likely: the ratio is π/π_ref, and in log σ(−β log π/π_ref) stands a minus"
    )
    suspects = [
        (ratio, (-(2 / beta) * logsigmoid(beta * s)).mean()),
        ("The sign is wrong: the loss is positive, and goes to 0 as the answer gets unlikely", -each.mean()),
        ("That is the sum over the answers: take the mean", each.sum()),
        ("One number is wanted: take the mean over the answers", each),
        ("The factor 2/β in front is missing", each.mean() * beta / 2),
        ("The 2 of 2/β is missing", each.mean() / 2),
        ("You multiplied by β in front: the factor is 2/β", each.mean() * beta**2),
        ("β is missing inside: it is the exponent of the ratio", (2 / beta) * s.exp().log1p().mean()),
        ("β is a factor of the ratio: it is its exponent", (2 / beta) * (beta * s.exp()).log1p().mean()),
        ("Without 1 + … that is ascent: nothing brakes it", 2 * s.mean()),
        ("The reference is missing: compare with what the model said before", alone),
        ("The mean comes last: first the logarithm of each answer", -(2 / beta) * logsigmoid(-beta * s.mean())),
    ]
    compare(call(function, logp, ref, beta, name="npo_loss"), each.mean(), "The loss", suspects, tolerance=1e-4)
    long = call(function, logp - 9000, ref - 9000, beta, name="npo_loss")
    finite = bool(torch.as_tensor(long).isfinite().all())
    assert finite, (
        "Of a long answer π is too small for a float, and the loss is NaN: subtract logarithms, take exp last"
    )
    compare(long, each.mean(), "The loss of long answers", tolerance=1e-2)
    trainable(function, logp.clone().requires_grad_(), ref, beta, name="npo_loss")


def check_npo_weight(function: Any, number: int) -> None:
    """``npo_weight(logp, ref, beta)``: w = 2 π^β / (π^β + π_ref^β) for each answer."""
    logp, ref, _, beta = problem(number)
    s = beta * (logp - ref)
    w = 2 * s.sigmoid()
    suspects = [
        ("That grows as the answer gets *un*likely: π^β stands above the line", 2 * (-s).sigmoid()),
        ("The factor 2 is missing: at the start, where π = π_ref, the weight is 1", w / 2),
        ("β is missing", 2 * (logp - ref).sigmoid()),
        ("The reference is missing: compare with what the model said before", 2 * (beta * logp).sigmoid()),
        ("That is the derivative of σ: differentiate log(1 + eᵃ) with a = β s", 2 * s.sigmoid() * (-s).sigmoid()),
        ("β is in it once too often: of the loss 2/β · …, the derivative has no β in front", w * beta),
        ("β is in it once too often: of the loss 2/β · …, the derivative has no β in front", w / beta),
        ("Each answer has its own weight: no mean", w.mean()),
        ("The mean's 1/n is not part of the weight", w / N),
    ]
    compare(call(function, logp, ref, beta, name="npo_weight"), w, "The weight", suspects)
    w = call(function, logp, ref, 1e-6, name="npo_weight")
    compare(w, torch.ones(N, dtype=torch.float64), "For β → 0 all weights go to 1, as those of ascent. Yours")


def objective(forget: Answers, before: Answers, retain: Answers, beta: float, weight: float) -> Tensor:
    """NPO with a retain term."""
    npo = -(2 / beta) * logsigmoid(-beta * (forget.logp - before.logp)).mean()
    return npo - weight * (retain.logp / retain.length).mean()


def check_npo_with_retain(function: Any, number: int) -> None:
    """``npo_with_retain(forget, before, retain, beta, weight)``: NPO − weight · mean (1/n) log π of the retained."""
    logp, ref, length, beta = problem(number)
    kept, _, kept_length, _ = problem(number + 1)
    weight = (0.5, 2.0, 3.0)[number % 3]
    forget, before, retain = Answers(logp, length), Answers(ref, length), Answers(kept, kept_length)
    found = call(function, forget, before, retain, beta, weight, name="npo_with_retain")
    npo, held = (objective(forget, before, retain, beta, at) for at in (0.0, 1.0))
    held -= npo
    turned, same = (objective(*three, beta, weight) for three in ((before, forget, retain), (forget, before, forget)))
    tokens = kept.sum() / kept_length.sum()
    suspects = [
        ("The retain term has the wrong sign: the loss of what is to stay likely is −log π", npo - weight * held),
        ("The retain term's weight is missing", npo + held),
        ("The weight belongs to the retain term, not to NPO", weight * npo + held),
        ("The retain term is missing", npo),
        ("NPO is missing", weight * held),
        ("In the retain term divide each answer by the number of its tokens", npo - weight * kept.mean()),
        ("The retain term is a sum over answers: take the mean", npo + weight * N * held),
        ("`forget` and `before` are exchanged: the ratio is π/π_ref", turned),
        ("The retain term is read from the forget set", same),
        ("In the retain term divide each answer by its own number of tokens", npo - weight * tokens),
    ]
    compare(found, npo + weight * held, "The loss", suspects, tolerance=1e-4)
    now = forget._replace(logp=logp.clone().requires_grad_())
    trainable(function, now, before, retain, beta, weight, name="npo_with_retain")


def _trace(
    forget: list[Request], retain: list[Request], loss: Any, lr: float, piled: bool = False, clipped: bool = False
) -> Tensor:
    """What ``unlearn`` is to return; with ``piled`` gradients add up, with ``clipped`` none is longer than 1."""
    lm = load("tinyworld")
    with torch.no_grad():
        before = read(lm, forget)
    optimizer, trace = torch.optim.AdamW(lm.model.parameters(), lr=lr), []
    for _ in range(STEPS):
        now = read(lm, forget)
        trace.append(now.logp.mean().item())
        if not piled:
            optimizer.zero_grad()
        loss(now, before, read(lm, retain)).backward()
        if clipped:
            torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimizer.step()
    return torch.tensor(trace)


def check_unlearn(function: Any, number: int) -> None:
    """``unlearn(lm, forget, retain, loss, steps, lr)``: AdamW; the mean of log π before each step is returned."""
    draw, lm = random.Random(number), load("tinyworld")
    forget, retain = draw.sample(world().forget, 5), draw.sample(world().retain, 6)
    lr, weights = LEARNING[number % 3], [p.detach().clone() for p in lm.model.parameters()]
    references: list[Tensor] = []
    order = "`loss(now, before, kept)` takes them in this order; is the "

    def loss(now: Answers, before: Answers, kept: Answers) -> Tensor:
        assert len(now.logp) == len(forget), "`loss` is given the forget set first"
        assert now.logp.requires_grad, order + "forget set read in each step, without `no_grad`?"
        assert kept.logp.requires_grad, order + "retain set read anew in each step, without `no_grad`?"
        assert not before.logp.requires_grad, "a gradient flows into the reference: read it under `torch.no_grad()`"
        references.append(before.logp)
        return objective(now, before, kept, 2.0, 1.0)

    found = call(function, lm, forget, retain, loss, STEPS, lr, name="unlearn", may_change=[0])
    assert len(references) == STEPS, f"`loss` was called {len(references)} times in {STEPS} steps: once in each"
    moved = not all(torch.equal(one, references[0]) for one in references)
    assert not moved, "The reference follows the training, so the ratio stays at 1: read it once, before the loop"
    assert not lm.model.training, "The model was left in training mode: call `lm.model.eval()`"
    several = isinstance(found, (list, tuple)) or (isinstance(found, Tensor) and found.dim() == 1)
    assert several and len(found) == STEPS, "Return a list: the mean of log π from before each step"
    trace, right = torch.stack([torch.as_tensor(x).detach() for x in found]).float(), _trace(forget, retain, loss, lr)
    if (trace - right).norm() <= 0.005 * right.norm():
        moved = not all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters(), strict=True))
        assert moved, "The model that was given is as before: train `lm` itself, not a copy"
        return
    assert not torch.allclose(trace, trace[0]), "Nothing is learned: is there `backward()`, and then `step()`?"
    other = functools.partial(_trace, forget, retain, loss, lr)
    assert trace[-1] < trace[0], "The answers get likelier, not less likely: is `loss` to go down?"
    suspects = [
        ("Gradients of all steps pile up: call `zero_grad()` before `backward()`", other(piled=True)),
        ("Gradients are clipped: chapter 09 does so, and here they are not to be", other(clipped=True)),
        ("Those are means from after each step: note log π before it", torch.cat([right[1:], trace[-1:]])),
        ("That is the sum of log π over the answers: note the mean", 5 * right),
    ]
    compare(trace, right, "What you note of log π", suspects, tolerance=0.005)


def check_distance(function: Any, number: int) -> None:
    """``distance(log_p, log_q)``: mean KL(p ‖ q) over questions."""
    g = generator(number)
    both = 1.5 * torch.randn(2, N, WORDS, generator=g, dtype=torch.float64)
    log_p, log_q = both.log_softmax(-1)
    found = call(function, log_p, log_q, name="distance")
    each = (log_p.exp() * (log_p - log_q)).sum(1)
    suspects = [
        ("That is KL(q ‖ p): the oracle's p is to stand in front", (log_q.exp() * (log_q - log_p)).sum(1).mean()),
        ("The sign is wrong: a KL divergence is never below 0", -each.mean()),
        ("That is the sum over questions: take the mean", each.sum()),
        ("Weigh by p, the oracle's, and not by q", (log_q.exp() * (log_p - log_q)).sum(1).mean()),
        ("That is the mean over the vocabulary: sum over that, the mean is over questions", each.mean() / WORDS),
        ("One number is wanted: take the mean over questions", each),
        ("Weigh each token by its probability p, which is `log_p.exp()`", (log_p - log_q).sum(1).mean()),
        ("Weigh each token by its probability p, which is `log_p.exp()`", (log_p * (log_p - log_q)).sum(1).mean()),
        ("The oracle's own log p is missing: that is the cross-entropy", -(log_p.exp() * log_q).sum(1).mean()),
    ]
    compare(found, each.mean(), "The distance", suspects, tolerance=1e-4)


def real_problem(lm: LM, number: int) -> tuple[list[Request], list[Request], list[Fact]]:
    """A capital that SmolLM2 is to forget, two to retain, and all that is asked: these three, and three more."""
    known = [fact for fact in facts.recorded() if fact.relation == "capital"][: real.CAPITALS]
    asked = [known[(number + i) % len(known)] for i in range(6)]
    return facts.as_said(lm, asked[:1]), facts.as_said(lm, asked[1:3]), asked


def check_said(said: Any, lm: LM, number: int) -> None:
    """The model no longer told the capital when it was asked; and all weights are as before."""
    fact = real.capital(number)
    assert isinstance(said, (list, tuple)) and len(said) == 6, "`said` must be the list of the six answers"
    assert isinstance(lm, LM) and lm.fingerprint == load(lm.name, progress=False).fingerprint, (
        "The weights are not put back: ask inside `with restored(…):`"
    )
    told = fact.answered_by(str(said[0]))
    assert not told, f"said[0] is {said[0]!r}, which still tells it: was it asked inside the block, after the training?"
