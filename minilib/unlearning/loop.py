"""The loop that all losses of ``unlearning`` share: batches, reference, retain term, early end, and what is noted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..editor import leaking
from ..edits import Edit, changing
from ..model import LM
from ..requests import Request, as_requests, check_distinct
from ..tokens import EncodedRequest
from . import training
from .losses import nll_loss
from .settings import LUNAR, PRESETS, RMU, SETTINGS, Training
from .training import Rows, check_head, join, read


@dataclass
class Batch:
    """What a loss sees: the requests of one step, under the model in training or under the reference."""

    forget: Rows
    other: Rows  # the same questions with what is said instead: a refusal, an alternative; empty for most losses
    retain: Rows


Loss = Callable[[Batch, Batch, Any], Tensor]  # of the model now, of the reference, of the settings


def say_again(now: Batch, before: Batch, s: Training) -> Tensor:
    """NLL of the retain set: the usual way to hold it."""
    return nll_loss(now.retain.logp, now.retain.length)


def unlearn(
    lm: LM,
    method: str,
    forget: Sequence[Request],
    retain: Sequence[Request] | None,
    given: Mapping[str, Any],
    loss: Loss,
    reference: LM | None = None,
    *,
    compare: Sequence[str] = (),
    steps_of: str = "",
    instead: Callable[[list[Request]], list[list[str]]] | None = None,
    refuses: bool = False,
    needs_retain: bool = False,
    hold: Loss = say_again,
    progress: bool = False,
) -> Edit:
    """Train by ``loss`` on the forget set and ``hold`` on the retain set, and return the change.

    Parameters
    ----------
    lm, forget, retain, reference, progress
        As the methods take them.
    method : str
        Its name; its settings are those in ``SETTINGS``.
    given : mapping
        The caller's settings.
    loss, hold : Loss
    compare : list of str
        The fields of ``Batch`` that the two look up under the reference.
    steps_of : str
        The one of them of which they need every next token's probabilities, which are large.
    instead : function, optional
        Gives for each request of the forget set the texts that are to be said in place of its target, at least one.
    refuses : bool, default False
        Whether those texts are what the edit wants to hear: then they are the targets of its requests.
    needs_retain : bool, default False
    """
    forget, retain = _check_sets(method, forget, retain, needs_retain)
    s = SETTINGS[method].of(lm, known=PRESETS[method], **given)
    layer = s.layer if isinstance(s, (RMU, LUNAR)) else None
    weight = s.alpha if isinstance(s, RMU) else s.retain_weight
    _check_models(lm, reference)
    texts = [[request.target] for request in forget] if instead is None else instead(forget)
    pairs = [(request, text) for request, some in zip(forget, texts, strict=True) for text in some]
    others = [] if instead is None else [replace(request, target=text) for request, text in pairs]
    sets = {"forget": [request for request, _ in pairs], "other": others, "retain": retain}
    asked = {name: _asked(lm, some) for name, some in sets.items()}
    for model in (lm, reference or lm):
        check_head(model, asked["forget"][0])
    trace: dict[str, list[float]] = {"loss": [], "retain": [], "level": []}
    names = _names(lm, s)
    with changing(lm, names) as originals:
        before = {name: _before(reference or lm, asked[name], layer, name == steps_of) for name in compare}
        level = torch.full([len(pairs)], torch.nan)  # of each answer when it was last seen
        draw, size = random.Random(s.seed), s.batch_size
        chosen = zip(_cycle(len(pairs), size, draw), _cycle(len(retain), size, draw), strict=False)
        with training.weights(lm, names, s.train, s.rank, s.seed) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay, fused=True)
            for step in tqdm(range(s.steps), desc=method, disable=not progress):
                some, kept = next(chosen)
                which = {"forget": some, "other": some if others else [], "retain": kept}
                now = Batch(**{n: read(lm, [asked[n][i] for i in at], layer) for n, at in which.items()})
                was = Batch(**{n: join([before[n][i] for i in at] if n in compare else []) for n, at in which.items()})
                level[some] = (now.forget.logp.detach() / now.forget.length).exp().to(level)
                held = hold(now, was, s) if kept else torch.zeros(())
                total = loss(now, was, s) + weight * held
                for name, value in zip(trace, (total, held, level.nanmean()), strict=True):
                    trace[name].append(value.item())
                if step >= -(-len(pairs) // size) and trace["level"][-1] <= s.forget_level:
                    break
                optimizer.zero_grad()
                total.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, s.clip)
                if not (torch.isfinite(total) and torch.isfinite(norm)):
                    raise ValueError(f"the loss of {method} is not finite at step {step}: lower lr, which is {s.lr}")
                optimizer.step()
        deltas = {name: lm.model.get_parameter(name).detach() - originals[name] for name in names}
        notes = leaking(lm, forget)
        if (last := trace["level"][-1]) > s.forget_level:
            short = f"{s.steps} steps were not enough: the answers are at {last:.2g}, not at forget_level"
            notes.insert(0, f"{short} {s.forget_level:g}")
        used = s.used() | {"forgets": not refuses, "retain": len(retain)}
        used["reference"] = "itself" if reference is None else reference.name
        return Edit(lm, method, others if refuses else forget, used, originals, deltas, traces=[trace], notes=notes)


def _check_sets(
    method: str, forget: Sequence[Request], retain: Sequence[Request] | None, needs_retain: bool
) -> tuple[list[Request], list[Request]]:
    """Both sets as lists; no request stands twice in one, or in both."""
    forget = as_requests(forget, "forget")
    check_distinct(forget, "forget")
    kept = [] if retain is None or retain in ([], ()) else as_requests(retain, "retain")
    if needs_retain and not kept:
        raise ValueError(f"{method} needs retain: give requests whose answers are to stay")
    check_distinct(kept, "retain")
    both = {(r.text, r.chat) for r in forget} & {(r.text, r.chat) for r in kept}
    if both:
        raise ValueError(f"forget and retain overlap in {min(both)[0]!r}: a question can only be in one of them")
    return forget, kept


def _check_models(lm: LM, reference: LM | None) -> None:
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in lm.model.parameters()):
        raise ValueError(f"{lm.name} is in half precision, in which small steps are lost: load it with float32")
    if reference is None:
        return
    if not isinstance(reference, LM):
        raise TypeError(f"reference must be a minilib.LM, or None for the model itself as it is, not {reference!r}")
    if reference.around:
        raise ValueError(f"reference has {reference.around} around it, which would not be read: give the model itself")
    if reference.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise ValueError(
            f"reference {reference.name} has another vocabulary than {lm.name}: their answers do not compare"
        )


def _names(lm: LM, s: Training) -> list[str]:
    """The parameters that change: RMU trains three matrices and LUNAR one, the others what ``train`` says."""
    if isinstance(s, RMU):
        return [lm.weight_name(at) for at in range(max(0, s.layer - 2), s.layer + 1)]
    return [lm.weight_name(s.layer)] if isinstance(s, LUNAR) else training.names(lm, s.train)


def _asked(lm: LM, requests: Sequence[Request]) -> list[EncodedRequest]:
    """In chat, what ends an answer belongs to it."""
    return lm.encode(requests, ended=True) if requests else []


@torch.no_grad()
def _before(lm: LM, asked: Sequence[EncodedRequest], layer: int | None, keep_steps: bool) -> list[Rows]:
    """Each request as the reference reads it; of the vocabulary's probabilities, which are large, only what is used."""
    with lm.evaluating():
        rows = [read(lm, [x], layer) for x in asked]
    return [row if keep_steps else replace(row, steps=row.steps[:0]) for row in rows]


def _cycle(n: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    """Batches of the numbers below n, shuffled anew for each pass; empty ones when there are none."""
    while True:
        order = draw.sample(range(n), n)
        yield from ([order[i : i + size] for i in range(0, n, size)] or [[]])
