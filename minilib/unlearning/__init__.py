"""Unlearning by gradient: train the model until it no longer says what is to be forgotten.

Nothing is located and nothing solved for. All of the model, or a low-rank adapter, follows the gradient of a loss on
the *forget set*, and mostly of a second one on a *retain set* that holds the rest in place. With π(y|x) for the
probability of the whole answer, π_ref for the model before, n for its number of tokens, σ for the logistic function ::

    gradient ascent       (1/n) log π(y|x)
    gradient difference   the same  −  retain: (1/n) log π(y|x)
    KL                    the same  +  retain: KL(π_ref ‖ π) of each next token
    DPO                   −(2/β) log σ(β log π(∅|x)/π_ref(∅|x) − β log π(y|x)/π_ref(y|x))       arXiv 2305.18290
    NPO                   −(2/β) log σ(−β log π(y|x)/π_ref(y|x))                                 arXiv 2404.05868
    SimNPO                −(2/β) log σ(−(β/n) log π(y|x) − γ)                                    arXiv 2410.07163
    refusal tuning        −(1/n) log π(∅|x)                                                      IDK in arXiv 2401.06121
    RMU                   ‖h(forget) − c·u‖² + α ‖h(retain) − h_ref(retain)‖²                    arXiv 2403.03218

each as a mean over the requests. The losses are in ``losses``, one loop trains for all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..editor import editor, leaking
from ..edits import Edit, changing
from ..measure.refusals import REFUSALS
from ..model import LM
from ..requests import Request, as_requests, check_distinct
from ..tokens import EncodedRequest
from . import training
from .losses import dpo_loss, kl_loss, nll_loss, npo_loss, rmu_loss, simnpo_loss
from .settings import PRESETS, RMU, SETTINGS, Preference, SimNPO, Training
from .training import Rows, check_head, join, read


@dataclass
class Batch:
    """What a loss sees: the requests of one step, under the model in training or under the reference."""

    forget: Rows
    refusal: Rows
    retain: Rows


Loss = Callable[[Batch, Batch, Any], Tensor]  # of the model now, of the reference, of the settings


def unlearner(method: Any) -> Any:
    """``editor`` with the method's settings."""
    return editor(SETTINGS[method.__name__])(method)


# ---- the methods --------------------------------------------------------------------------------------


@unlearner
def gradient_ascent(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Make the true answers unlikely, by all means. With ``retain=``, it is gradient difference.

    Parameters
    ----------
    lm : LM
        Changed in place. Memories beside the weights (GRACE, WISE) are silent while it is trained.
    forget : list of Request
        Their targets are the true answers.
    retain : list of Request, optional
        Questions whose answers, their targets, are to stay. The original has no retain term; giving it adds the usual
        NLL on them.
    progress : bool, default False
        Show a bar.
    **settings
        See ``Training``.

    Returns
    -------
    Edit
        ``edit.traces[0]`` holds, for each step, ``loss``, ``retain`` (that term alone) and ``level`` (the forget set's
        mean π(y|x)^(1/n)).

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, a request stands in both sets, or the loss is not finite any more. Whatever goes
        wrong, the model is left as it was.
    """
    return _unlearn(lm, "gradient_ascent", forget, retain, settings, _ascent, progress=progress)


@unlearner
def gradient_difference(
    lm: LM, forget: Sequence[Request], retain: Sequence[Request], *, progress: bool = False, **settings: Any
) -> Edit:
    """Ascent on the forget set and descent on the retain set; see ``gradient_ascent``."""
    how: dict[str, Any] = {"needs_retain": True, "progress": progress}
    return _unlearn(lm, "gradient_difference", forget, retain, settings, _ascent, **how)


@unlearner
def kl(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request],
    *,
    reference: LM | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Ascent on the forget set; on the retain set the model shall say what it said before: see ``gradient_ascent``.

    Parameters
    ----------
    reference : LM, optional
        The model to stay close to: by default the one given, as it is now.
    """
    how: dict[str, Any] = {"compare": ["retain"], "needs_retain": True, "hold": _as_before, "progress": progress}
    return _unlearn(lm, "kl", forget, retain, settings, _ascent, reference, **how)


@unlearner
def dpo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    refusals: Sequence[str] = REFUSALS,
    reference: LM | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Prefer a refusal to the true answer: see ``gradient_ascent``. The original has no retain term either.

    Parameters
    ----------
    refusals : list of str
        Request i gets the i-th, from the beginning again when there are fewer.
    reference : LM, optional
        By default the model given, as it is now.
    **settings
        See ``Preference``.
    """

    def loss(now: Batch, before: Batch, s: Preference) -> Tensor:
        return dpo_loss(now.refusal.logp, before.refusal.logp, now.forget.logp, before.forget.logp, s.beta)

    how: dict[str, Any] = {"compare": ["forget", "refusal"], "refusals": refusals, "progress": progress}
    return _unlearn(lm, "dpo", forget, retain, settings, loss, reference, **how)


@unlearner
def npo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    reference: LM | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Make the true answers less likely than they were, and slow down as they become so: see ``gradient_ascent``.

    Parameters
    ----------
    reference : LM, optional
        By default the model given, as it is now.
    **settings
        See ``Preference``.
    """

    def loss(now: Batch, before: Batch, s: Preference) -> Tensor:
        return npo_loss(now.forget.logp, before.forget.logp, s.beta)

    return _unlearn(lm, "npo", forget, retain, settings, loss, reference, compare=["forget"], progress=progress)


@unlearner
def simnpo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """NPO by mean log-probabilities, without a reference model: see ``gradient_ascent``, and ``SimNPO``."""

    def loss(now: Batch, before: Batch, s: SimNPO) -> Tensor:
        return simnpo_loss(now.forget.logp, now.forget.length, s.beta, s.gamma)

    return _unlearn(lm, "simnpo", forget, retain, settings, loss, progress=progress)


@unlearner
def refusal_tuning(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    refusals: Sequence[str] = REFUSALS,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Ordinary fine-tuning on refusals ("IDK" in TOFU): see ``gradient_ascent``, and ``dpo`` for ``refusals``."""

    def loss(now: Batch, before: Batch, s: Training) -> Tensor:
        return nll_loss(now.refusal.logp, now.refusal.length)

    return _unlearn(lm, "refusal_tuning", forget, retain, settings, loss, refusals=refusals, progress=progress)


@unlearner
def rmu(
    lm: LM, forget: Sequence[Request], retain: Sequence[Request], *, progress: bool = False, **settings: Any
) -> Edit:
    """Push hidden states of the forget set to a random direction, hold those of the retain set.

    Only the down-projections of the layer and of the two below it are trained, as by the authors. See
    ``gradient_ascent`` for the rest, and ``RMU`` for its settings.
    """

    def loss(now: Batch, before: Batch, s: RMU) -> Tensor:
        h = now.forget.states
        u = torch.rand(h.shape[-1], generator=torch.Generator().manual_seed(s.seed)).to(h)
        return rmu_loss(h, s.steering * before.forget.states.norm(dim=-1).mean() * u / u.norm())

    def hold(now: Batch, before: Batch, s: RMU) -> Tensor:
        return rmu_loss(now.retain.states, before.retain.states)

    how: dict[str, Any] = {"compare": ["forget", "retain"], "needs_retain": True, "hold": hold, "progress": progress}
    return _unlearn(lm, "rmu", forget, retain, settings, loss, **how)


def _ascent(now: Batch, before: Batch, s: Training) -> Tensor:
    return -nll_loss(now.forget.logp, now.forget.length)


def _nll(now: Batch, before: Batch, s: Training) -> Tensor:
    return nll_loss(now.retain.logp, now.retain.length)


def _as_before(now: Batch, before: Batch, s: Training) -> Tensor:
    return kl_loss(now.retain.steps, before.retain.steps)


# ---- the loop -----------------------------------------------------------------------------------------


def _unlearn(
    lm: LM,
    method: str,
    forget: Sequence[Request],
    retain: Sequence[Request] | None,
    given: Mapping[str, Any],
    loss: Loss,
    reference: LM | None = None,
    *,
    compare: Sequence[str] = (),
    refusals: Sequence[str] = (),
    needs_retain: bool = False,
    hold: Loss = _nll,
    progress: bool = False,
) -> Edit:
    """Train by ``loss`` on the forget set and ``hold`` on the retain set, and return the change.

    ``compare`` names the fields of ``Batch`` that the two look up under the reference.
    """
    forget, retain = _check_sets(method, forget, retain, needs_retain)
    s = SETTINGS[method].of(lm, known=PRESETS[method], **given)
    layer = s.layer if isinstance(s, RMU) else None
    weight = s.alpha if isinstance(s, RMU) else s.retain_weight
    _check_models(lm, reference)
    refused = _with_refusals(forget, refusals) if method in ("dpo", "refusal_tuning") else []
    asked = {name: _asked(lm, some) for name, some in (("forget", forget), ("refusal", refused), ("retain", retain))}
    for model in (lm, reference or lm):
        check_head(model, asked["forget"][0])
    trace: dict[str, list[float]] = {"loss": [], "retain": [], "level": []}
    names = training.names(lm, s.train) if layer is None else _around(lm, layer)
    with changing(lm, names) as originals:
        before = {name: _before(reference or lm, asked[name], layer, hold is _as_before) for name in compare}
        level = torch.full([len(forget)], torch.nan)  # of each request when it was last seen
        draw, size = random.Random(s.seed), s.batch_size
        chosen = zip(_cycle(len(forget), size, draw), _cycle(len(retain), size, draw), strict=False)
        with training.weights(lm, names, s.train, s.rank, s.seed) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay, fused=True)
            for step in tqdm(range(s.steps), desc=method, disable=not progress):
                some, kept = next(chosen)
                which = {"forget": some, "refusal": some if refused else [], "retain": kept}
                now = Batch(**{n: read(lm, [asked[n][i] for i in at], layer) for n, at in which.items()})
                was = Batch(**{n: join([before[n][i] for i in at] if n in compare else []) for n, at in which.items()})
                level[some] = (now.forget.logp.detach() / now.forget.length).exp().to(level)
                held = hold(now, was, s) if kept else torch.zeros(())
                total = loss(now, was, s) + weight * held
                for name, value in zip(trace, (total, held, level.nanmean()), strict=True):
                    trace[name].append(value.item())
                if step >= -(-len(forget) // size) and trace["level"][-1] <= s.forget_level:
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
        used = s.used() | {"forgets": not refused, "retain": len(retain)}
        used["reference"] = "itself" if reference is None else reference.name
        return Edit(lm, method, refused or forget, used, originals, deltas, traces=[trace], notes=notes)


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
    if reference.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise ValueError(
            f"reference {reference.name} has another vocabulary than {lm.name}: their answers do not compare"
        )


def _with_refusals(forget: list[Request], refusals: Sequence[str]) -> list[Request]:
    """Each request with a refusal as its target."""
    if isinstance(refusals, str) or not isinstance(refusals, Sequence) or not refusals:
        raise TypeError(f"refusals must be a list of strings that is not empty, not {refusals!r}")
    return [replace(request, target=refusals[i % len(refusals)]) for i, request in enumerate(forget)]


def _around(lm: LM, layer: int) -> list[str]:
    """RMU's parameters."""
    return [lm.weight_name(at) for at in range(max(0, layer - 2), layer + 1)]


def _asked(lm: LM, requests: Sequence[Request]) -> list[EncodedRequest]:
    """In chat, what ends an answer belongs to it."""
    return lm.encode(requests, ended=True) if requests else []


@torch.no_grad()
def _before(lm: LM, asked: Sequence[EncodedRequest], layer: int | None, keep_steps: bool) -> list[Rows]:
    """Each request as the reference reads it; of the vocabulary's probabilities, which are large, only what is used."""
    rows = (read(lm, [x], layer) for x in asked)
    return [row if keep_steps else replace(row, steps=row.steps[:0]) for row in rows]


def _cycle(n: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    """Batches of the numbers below n, shuffled anew for each pass; empty ones when there are none."""
    while True:
        order = draw.sample(range(n), n)
        yield from ([order[i : i + size] for i in range(0, n, size)] or [[]])
