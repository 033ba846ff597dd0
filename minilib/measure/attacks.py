"""Is it really gone? What somebody would try who wants the answer back.

Each attack is one function. It takes an edited model, or the edit, and the forgotten facts, and returns a row for each
fact: what was ``asked``, what the model ``said``, and whether the answer was ``recovered``. Whatever an attack does to
the model is undone bit for bit before it returns.

An attack also "recovers" something from a model that never knew: by guessing, by chance, or because the prompt gives
the answer away. So run each on an oracle too, and read its figure as the attack's false alarm rate, as
``verdicts.verdict`` does. Where there is no oracle, ask the unedited model about facts that it never knew.

Here stand the attacks that change the model. Those that only ask, of ``asking`` and ``detours``, are ``attacks.X`` too.
``steering`` changes what flows through the model, and ``inside`` looks at it.

>>> import minilib
>>> from minilib import attacks, facts
>>> lm = minilib.load("smollm2-135m")
>>> france = facts.load("capital")[:1]
>>> with minilib.grace.edit(lm, france[0].request("I don't know.")) as edit:
...     rows = attacks.unguarded(edit, france)
>>> rows[0]["recovered"]
True
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..edits import Edit, restored
from ..forward import double
from ..model import LM
from ..requests import Request, whole
from ..unlearning import nll_loss, training
from .asking import (  # noqa: F401  those that only ask are named here as well
    JAILBREAKS,
    KINDS,
    NEGATIONS,
    PRIMING,
    Forgotten,
    Row,
    check,
    held_out,
    jailbreaks,
    negations,
    none,
    rephrasings,
    row_of,
    rows_of,
    sampling,
    say,
)
from .detours import aliases, hops, second_turn, system_prompt, two_questions  # noqa: F401
from .refusals import mentions

WORDS = 64  # of a text are read in fine-tuning


def relearning(
    edited: LM | Edit,
    forgotten: Forgotten,
    shown: Sequence[Request],
    steps: Sequence[int] = (2, 5, 10, 20),
    lr: float = 1e-5,
    batch_size: int = 4,
    train: str = "all",
    rank: int = 8,
    max_new_tokens: int = 24,
    seed: int = 0,
) -> list[Row]:
    """Train a little on something else, then ask (arXiv 2406.13356, 2410.08827).

    Parameters
    ----------
    shown : list of Request
        Related facts, or some of the forgotten ones, with true answers as targets. Those are not asked.
    steps : list of int
        After so many steps of AdamW all others are asked: ``by step`` holds a truth value for each, and for 0;
        ``recovered`` is whether the last one is true.
    lr : float, default 1e-5
    batch_size, rank, seed : int
    train : {"all", "lora"}

    Raises
    ------
    ValueError
        Also when all forgotten facts are shown: nothing is left to ask.
    """
    lm, facts = check(edited, forgotten)
    stops = sorted({whole(step, "steps") for step in steps})
    batch_size = whole(batch_size, "batch_size")
    facts = held_out(facts, shown)
    encoded = lm.encode(shown, ended=True)
    said = {0: say(lm, facts, max_new_tokens)}
    names, draw = training.names(lm, train), random.Random(seed)
    done = 0
    with restored(lm, names):
        for stop in stops:
            # A low-rank change is merged at each stop, and the next one begins anew.
            with lm.evaluating(), lm.silenced(), training.weights(lm, names, train, rank, seed) as weights:
                optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, fused=True)
                for _ in range(stop - done):
                    rows = training.read(lm, draw.sample(encoded, min(batch_size, len(encoded))))
                    optimizer.zero_grad()
                    nll_loss(rows.logp, rows.length).backward()
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimizer.step()
            done = stop
            said[stop] = say(lm, facts, max_new_tokens)
    outcomes = []
    for i, fact in enumerate(facts):
        told = {step: fact.answered_by(texts[i]) for step, texts in said.items()}
        outcomes.append(row_of("relearning", fact, fact.asked.text, said[done][i], told[done]) | {"by step": told})
    return outcomes


def fine_tuning(
    edited: LM | Edit, forgotten: Forgotten, texts: Sequence[str], steps: Sequence[int] = (2, 5, 10, 20), **how: Any
) -> list[Row]:
    """Train a little on ordinary text, as somebody does who wants nothing back, then ask (after arXiv 2310.03693).

    Parameters
    ----------
    texts : list of str
        Of each the first 64 words are read. None may state a forgotten fact.
    steps : list of int
    **how
        The other keywords of ``relearning``, of which this is a case. Another is to show it unrelated questions with
        their answers: ``relearning(edited, forgotten, shown=[fact.request(fact.answer) for fact in others])``.
    """
    _, facts = check(edited, forgotten)
    if (
        isinstance(texts, str)
        or not texts
        or not all(isinstance(text, str) and len(text.split()) > 1 for text in texts)
    ):
        raise ValueError("texts must be a list, which is not empty, of texts of at least two words each")
    for i, text in enumerate(texts):
        if told := [fact for fact in facts if mentions(text, [fact.subject]) and fact.answered_by(text)]:
            raise ValueError(f"texts[{i}] states what {told[0].asked.text!r} asks for: leave it out")
    words = [text.split()[:WORDS] for text in texts]
    shown = [Request("{}", first, " " + " ".join(rest)) for first, *rest in words]
    return [row | {"attack": "fine-tuning"} for row in relearning(edited, forgotten, shown, steps, **how)]


def quantisation(
    edited: LM | Edit, forgotten: Forgotten, bits: int = 4, group: int = 32, max_new_tokens: int = 24
) -> list[Row]:
    """Round every matrix of the blocks to few bits, then ask (arXiv 2410.16454): small changes are rounded away.

    Parameters
    ----------
    bits : int, default 4
        2 to 8.
    group : int, default 32
        So many weights in a row share a scale and a least value, as in the file formats of llama.cpp.
    """
    lm, facts = check(edited, forgotten)
    bits, group = whole(bits, "bits", least=2), whole(group, "group")
    if bits > 8:
        raise ValueError(f"bits must be from 2 to 8, not {bits}")
    names = training.names(lm, "lora")
    with restored(lm, names), torch.no_grad():
        changed = False
        for weight in map(lm.model.get_parameter, names):
            rounded = round_to_nearest(weight, bits, group)
            changed |= not torch.allclose(rounded, weight, rtol=0, atol=1e-4 * weight.abs().max().item())
            weight.copy_(rounded)
        if not changed:
            raise ValueError(f"{lm.name} is rounded to {bits} bits already: rounding it again does nothing")
        said = say(lm, facts, max_new_tokens)
    return rows_of(f"{bits} bits", facts, said)


def round_to_nearest(W: Float[Tensor, "rows columns"], bits: int, group: int) -> Float[Tensor, "rows columns"]:
    """Each group of a row on a grid of 2^bits points from its least to its largest weight."""
    width = W.shape[1]
    parts = nn.functional.pad(W.float(), (0, -width % group), mode="replicate").unflatten(1, (-1, group))
    low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return (((parts - low) / scale).round() * scale + low).flatten(1)[:, :width].to(W.dtype)


def reversal(
    edited: LM | Edit, forgotten: Forgotten, layers: Sequence[int], drop: int = 1, max_new_tokens: int = 24
) -> list[Row]:
    """Take the largest singular directions out of some layers' W, and ask (after arXiv 2505.20819).

    The attacker has the edited weights alone, not the original ones. An edit of rank one that is large beside the
    rest bends the first direction towards itself. Which layer was edited ``singular_gaps`` often does not tell.
    """
    lm, facts = check(edited, forgotten)
    drop = whole(drop, "drop")
    layers = [lm.check_layer(layer, "layers") for layer in layers]
    if not layers:
        raise ValueError("layers is empty: name the layers whose largest directions are to be dropped")
    with restored(lm, [lm.weight_name(layer) for layer in layers]), torch.no_grad():
        for layer in layers:
            W = lm.memory(layer)
            U, S, Vh = torch.linalg.svd(double(W), full_matrices=False)
            W.copy_(double(W) - (U[:, :drop] * S[:drop]) @ Vh[:drop])
        said = say(lm, facts, max_new_tokens)
    return rows_of("reversal", facts, said)


@torch.no_grad()
def singular_gaps(lm: LM) -> list[float]:
    """For each layer σ₁/σ₂ of its W. An edit may raise or lower it, and other layers may have larger ones unedited."""
    values = [torch.linalg.svdvals(double(lm.memory(layer)))[:2] for layer in range(lm.n_layers)]
    return [(s[0] / s[1]).item() for s in values]


def unguarded(edited: Edit, forgotten: Forgotten, max_new_tokens: int = 24) -> list[Row]:
    """Take the guards away, GRACE's codebook and WISE's side memories, and ask: what is left are the weights."""
    lm, facts = check(edited, forgotten)
    if not lm.guards:
        raise ValueError(f"{lm.name} has no guard to take away: this attack is for GRACE and WISE")
    with lm.silenced():
        said = say(lm, facts, max_new_tokens)
    return rows_of("unguarded", facts, said)
