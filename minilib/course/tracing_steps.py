"""Checks of assignment 02: causal tracing, from the noise on a name to the map of layers and tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import hooks
from ..loading import load
from ..measure import tracing
from ..model import LM
from ..requests import Request
from ..worlds import tinyworld
from . import real
from .checks import call, compare, filled, hooked
from .seeds import generator

LEVEL, DRAWS = 3.0, 4


@dataclass(frozen=True)
class World:
    """A fact of tinyworld, the noise on its subject, and what the library's trace finds with it."""

    lm: LM
    ids: list[int]
    first: int  # the subject's first token
    noise: Tensor  # (draws, subject, d)
    answer: int
    trace: tracing.Trace


@functools.lru_cache(maxsize=8)
def traced(number: int) -> tuple[Request, tracing.Trace]:
    """Of six drawn facts, subject inside the prompt, the one whose trace tells the layers apart best."""
    lm, everything, found = load("tinyworld"), tinyworld.facts(), []
    for i in torch.randint(len(everything), (6,), generator=generator(number)).tolist():
        fact = everything[i]
        request = Request(next(p for p in fact.prompts if not p.startswith("{}")), fact.subject, fact.target)
        trace = tracing.causal_trace(lm, request, noise=LEVEL, draws=DRAWS, seed=number)
        at_end = trace.restored[:, :, -1]
        found.append(((at_end.diff(dim=1).norm() / at_end.norm()).item(), i, request, trace))
    return max(found, key=lambda x: x[:2])[2:]


def world(number: int) -> World:
    """With a model of its own."""
    lm, (request, trace) = load("tinyworld"), traced(number)
    table, (first, stop) = lm.model.get_input_embeddings().weight.detach(), trace.subject
    noise = LEVEL * table.std() * torch.randn(DRAWS, stop - first, table.shape[1], generator=generator(number))
    return World(lm, lm.encode(request).ids, first, noise, lm.encode_target(request.target)[0], trace)


def _ask(w: World, function: Any, *arguments: Any, name: str) -> Any:
    """What a student's function returns for the model; what it did there must be gone afterwards."""

    before, weights = hooked(w.lm.model), [p.detach().clone() for p in w.lm.model.parameters()]
    found = call(function, w.lm, *arguments, name=name, may_change=[0])
    assert hooked(w.lm.model) == before, (
        "A hook is still in the model: `with hooks.replace(...):` takes it away when it ends"
    )
    same = all(torch.equal(a, b) for a, b in zip(weights, w.lm.model.parameters(), strict=True))
    assert same, "The model's weights are not what they were: change what flows through it, by a hook"
    return found


def _put(x: Tensor, first: int, noise: Tensor) -> Tensor:
    """x with noise from a token on."""
    stop = first + noise.shape[1]
    return torch.cat([x[:, :first], x[:, first:stop] + noise, x[:, stop:]], 1)


def check_noise_scale(function: Any, number: int) -> None:
    """``noise_scale(table, level)``: so many standard deviations of all entries of the embedding table."""
    g = generator(number)
    table = torch.randn(30, 6, generator=g, dtype=torch.float64) * (0.2 + torch.rand(6, generator=g))
    level = 2 + 2 * torch.rand((), generator=g, dtype=torch.float64).item()
    found, std = call(function, table, level, name="noise_scale"), table.std()
    one = "one number from all entries of the table is asked for"
    compare(
        found,
        level * std,
        "The scale",
        [
            ("That is one standard deviation: take `level` of them", std),
            ("That is the variance: take its root, the standard deviation", level * std**2),
            (f"That is one number for each dimension: {one}", level * table.std(0)),
            (f"That is one number for each word: {one}", level * table.std(1)),
            (f"That is the length of an embedding: {one}", level * table.norm(dim=1).mean()),
            ("That is the mean size of the entries: take their standard deviation", level * table.abs().mean()),
        ],
        tolerance=1e-2,  # whether one divides by n or by n - 1 does not matter
    )


def check_spoil(function: Any, number: int) -> None:
    """``spoil(x, first, noise)``: noise on the subject's tokens, and on no others."""
    g = generator(number)
    width, first = 2 + number % 2, 1 + number % 3
    x, noise = (torch.randn(5, n, 4, generator=g, dtype=torch.float64) for n in (7, width))
    found = call(function, x, first, noise, name="spoil")
    starts, each = "the subject starts at `first`", noise[:1].expand_as(noise)
    replaced = torch.cat([x[:, :first], noise, x[:, first + width :]], 1)
    compare(
        found,
        _put(x, first, noise),
        "What you return",
        [
            ("That is x without noise: return the copy that you added it to", x),
            ("The noise took the embeddings' place: add it to them", replaced),
            ("You subtracted the noise: add it", _put(x, first, -noise)),
            (f"The noise is at the beginning of the prompt: {starts}", _put(x, 0, noise)),
            (f"The noise stands one token too far left: {starts}", _put(x, first - 1, noise)),
            (f"The noise stands one token too far right: {starts}", _put(x, first + 1, noise)),
            ("The noise is on all tokens: only the subject's are to be spoilt", x + noise[:, :1]),
            ("Only one token of the subject is spoilt: all of its tokens are to be", _put(x, first, noise[:, :1])),
            ("Each draw has its own noise: row i of `noise` belongs to row i of `x`", _put(x, first, each)),
        ],
    )


def check_probability(function: Any, number: int) -> None:
    """``probability(logits, answer)``: of the answer as the next token, for each row."""
    g = generator(number)
    logits = 2 * torch.randn(3, 5, 11, generator=g, dtype=torch.float64)
    answer = int(torch.randint(11, (), generator=g))
    found = call(function, logits, answer, name="probability")
    p, rows, tokens = logits.softmax(-1), logits.softmax(0), logits.softmax(1)
    compare(
        found,
        p[:, -1, answer],
        "The probability",
        [
            ("Those are logits: a softmax over the vocabulary makes them probabilities", logits[:, -1, answer]),
            ("Those are log-probabilities: probabilities are asked for", p[:, -1, answer].log()),
            ("That is read at the first token: what comes next is said at the last", p[:, 0, answer]),
            ("That is read one token before the last", p[:, -2, answer]),
            ("The softmax runs over the rows: over the vocabulary it is `softmax(-1)`", rows[:, -1, answer]),
            ("The softmax runs over the tokens: over the vocabulary it is `softmax(-1)`", tokens[:, -1, answer]),
            ("That is the probability of the likeliest word: that of `answer` is asked for", p[:, -1].amax(-1)),
            ("That is averaged over the rows: return one probability for each", p[:, -1, answer].mean()),
        ],
    )


def check_corrupted(function: Any, number: int) -> None:
    """``corrupted(lm, ids, first, noise, answer)``: the answer's probability under each draw of the noise."""
    w = world(number)
    found = _ask(w, function, w.ids, w.first, w.noise, w.answer, name="corrupted")
    right = w.trace.corrupted

    def run(first: int, noise: Tensor) -> Tensor:
        batch, embedding = w.lm.batch([w.ids] * DRAWS), w.lm.model.get_input_embeddings()
        with torch.no_grad(), hooks.replace(embedding, lambda x: _put(x, first, noise)):
            return w.lm.model(**batch).logits[:, -1].softmax(-1)[:, w.answer]

    with torch.no_grad(), hooks.replace(w.lm.blocks[0], lambda x: _put(x, w.first, w.noise)):
        behind = w.lm.model(**w.lm.batch([w.ids] * DRAWS)).logits[:, -1].softmax(-1)[:, w.answer]
    compare(
        found,
        right,
        "The probability in the corrupted run",
        [
            (
                "That is the clean run: is the hook there in the run, and does its function return something?",
                torch.full((DRAWS,), w.trace.clean),
            ),
            ("That is the total effect: return the probability itself", w.trace.clean - right),
            ("The noise stands behind a block: it belongs behind the embedding", behind),
            ("That is averaged over the draws: return one probability for each", right.mean()),
            ("That is one draw: the batch needs the prompt once for each", right[:1]),
            ("Each draw has its own noise: you use the first for all", right[:1].expand(DRAWS)),
            ("The noise is at the beginning of the prompt: the subject starts at `first`", run(0, w.noise)),
            ("The noise stands one token too far left: the subject starts at `first`", run(w.first - 1, w.noise)),
            ("Only one token of the subject is spoilt: all of its tokens are to be", run(w.first, w.noise[:, :1])),
        ],
    )


def _states(w: World, module: Any, at: hooks.Place = "output") -> Tensor:
    """What a module of each block returns in the clean run, (layers, tokens, d)."""
    with torch.no_grad(), hooks.read({i: module(i) for i in range(w.lm.n_layers)}, at=at) as seen:
        w.lm.model(**w.lm.batch([w.ids]))
    return torch.stack([seen[i][0] for i in range(w.lm.n_layers)])


def check_clean_states(function: Any, number: int) -> None:
    """``clean_states(lm, ids)``: what each block returns at each token, (layers, tokens, d)."""
    w = world(number)
    found = _ask(w, function, w.ids, name="clean_states")
    assert not isinstance(found, dict | list), "That is no tensor yet: `torch.stack` puts the layers into one"
    right, block = _states(w, lambda i: w.lm.blocks[i]), w.lm.blocks.__getitem__
    compare(
        found,
        right,
        "The tensor of clean states",
        [
            ("That is what enters each block: read what it returns, the state behind it", _states(w, block, "input")),
            ("That is what the MLPs add: read what whole blocks return, `lm.blocks`", _states(w, w.lm.down_projection)),
            ("Layers and tokens are exchanged: layers are the first axis", right.transpose(0, 1)),
            ("The batch of one is still there: take its row 0", right[:, None]),
            ("That is the last token alone: states of all tokens are asked for", right[:, -1]),
        ],
    )


def check_restored(function: Any, number: int) -> None:
    """``restored(lm, ids, first, noise, answer, clean, layer, token)``: with one clean state put back."""
    w = world(number)
    clean, end = _states(w, w.lm.blocks.__getitem__), len(w.ids) - 1
    p, nothing, whole = w.trace.restored, w.trace.corrupted, torch.full((DRAWS,), w.trace.clean)
    for layer, token in [(1, end), (0, end), (2, end), (0, w.first), (0, w.first + 1), (1, w.first + 1)]:
        arguments = w.ids, w.first, w.noise, w.answer, clean, layer, token
        found, right = _ask(w, function, *arguments, name="restored"), p[:, layer, token]
        compare(
            found,
            right,
            f"The probability with layer {layer} restored at token {token}",
            [
                ("Nothing comes back: is it the clean state, of this token, and does the hook return it?", nothing),
                ("All comes back: restore one token, not the whole layer, and keep the noise", whole),
                ("The state stands one layer too high: layers count from 0", p[:, layer + 1, token]),
                ("The state stands one layer too low: replace what block `layer` returns", p[:, layer - 1, token]),
                ("That is what it brings back: return the probability itself", right - nothing),
                ("Only the first draw is restored: all rows are to be", torch.cat([right[:1], nothing[1:]])),
                ("That is averaged over the draws: return one probability for each", right.mean()),
            ],
        )


def check_effects(function: Any, number: int) -> None:
    """``effects(restored, corrupted)``: the mean over draws of what each place brings back, (layers, tokens)."""
    g = generator(number)
    p = 0.3 * torch.rand(5, generator=g, dtype=torch.float64)
    q = p[:, None, None] + torch.rand(5, 4, 5, generator=g, dtype=torch.float64) / 2
    q[:, 1:3, 2:] = p[:, None, None] / 2  # some states make it worse
    found = call(function, q, p, name="effects")
    compare(
        found,
        q.mean(0) - p.mean(),
        "The effect",
        [
            ("That is the probability with restoration: subtract the one without", q.mean(0)),
            ("The sign is wrong: restored less corrupted", p.mean() - q.mean(0)),
            ("An effect may be negative: leave it as it is", (q.mean(0) - p.mean()).abs()),
            ("An effect may be negative: leave it as it is", (q.mean(0) - p.mean()).clamp(min=0)),
            ("That is summed over the draws: take the mean", (q - p[:, None, None]).sum(0)),
            ("That is not averaged over the draws yet", q - p[:, None, None]),
            ("That is averaged over layers: draws are the first axis", q.mean(1) - p.mean()),
            ("That is averaged over tokens: draws are the first axis", q.mean(2) - p.mean()),
            ("Draws were subtracted along the tokens, the last axis: take both means first", (q - p).mean(0)),
        ],
    )


def real_problem(lm: LM, number: int) -> tuple[Request, Tensor]:
    """A capital with the true answer as target, and three draws of standard normal noise (draws, subject, d)."""
    fact = real.capital(number)
    request = fact.request(" " + fact.answer, chat=False)
    encoded, d = lm.encode(request), lm.model.get_input_embeddings().weight.shape[1]
    width = range(encoded.subject_start or 0, (encoded.subject or 0) + 1)
    return request, torch.randn(3, len(width), d, generator=generator(number))


def check_real(effect: Any, moved: Any, lm: LM, number: int) -> None:
    """Effects (layers, 2) at the subject's last token and the prompt's, and the first layer where the second leads."""
    request, z = real_problem(lm, number)
    trace = tracing.causal_trace(lm, request, noise=LEVEL, draws=len(z), seed=number)
    columns = [trace.subject[1] - 1, -1]
    compare(
        effect,
        trace.effect[:, columns],
        "`effect`",
        [
            ("The columns are exchanged: the subject's last token comes first", trace.effect[:, columns[::-1]]),
            ("The axes are exchanged: each layer is a row", trace.effect[:, columns].T),
            ("Those are probabilities: subtract that of the corrupted run", trace.mean[:, columns]),
        ],
        tolerance=2e-2,
    )
    leads = [layer for layer, (name, end) in enumerate(torch.as_tensor(effect).tolist()) if end > name]
    assert getattr(moved, "numel", lambda: 1)() == 1, "`moved` must be the number of one layer"
    filled(moved, "`moved`")
    assert isinstance(moved, (int, float, Tensor)), f"`moved` must be a number, not {type(moved).__name__}"
    assert moved != leads[0] + 1, "`moved` is a layer's number, and layers count from 0"
    assert moved == leads[0], f"`moved` is {int(moved)}: the first layer where the second column is larger is asked for"
