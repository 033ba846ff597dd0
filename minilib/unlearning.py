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

each as a mean over the requests. The losses are short functions of log-probabilities below; one loop trains for all.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm

from . import trained
from .edits import Edit, changing, editor, settle
from .lm import LM
from .notes import leaking
from .refusals import REFUSALS
from .requests import Request, as_requests, check_distinct
from .trained import Asked, Rows, check_head, join, read

COMMON: dict[str, Any] = {
    "steps": 60,
    "lr": 1e-5,
    "weight_decay": 0.0,
    "batch_size": 8,
    "clip": 1.0,
    "retain_weight": 1.0,
    "forget_level": 0.05,
    "train": "all",
    "rank": 8,
    "seed": 0,
}
OWN: dict[str, dict[str, Any]] = {  # of one method alone
    "gradient_ascent": {},
    "gradient_difference": {},
    "kl": {},
    "dpo": {"beta": 0.1},
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 2.5, "gamma": 0.0},
    "refusal_tuning": {},
    "rmu": {"layer": None, "steering": 6.5, "alpha": 1200.0},
}
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {  # by the trials of ``benchmark``; "all" is of every method
    "llama-30x576": {  # SmolLM2-135M
        "all": {"lr": 1e-5, "steps": 12, "batch_size": 4},
        **dict.fromkeys(("kl", "dpo", "npo"), {"lr": 2e-5, "retain_weight": 5.0}),
        "refusal_tuning": {"lr": 3e-5, "retain_weight": 5.0},
        "rmu": {"lr": 3e-3, "layer": 6, "alpha": 100.0},
    },
    "llama-6x96": {  # tinyworld
        "all": {"lr": 1e-4},
        "gradient_ascent": {"lr": 3e-5},
        "rmu": {"lr": 3e-3, "layer": 3, "alpha": 100.0},
    },
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    name: {"paper": COMMON | own, **{kind: of["all"] | of.get(name, {}) for kind, of in CHOSEN.items()}}
    for name, own in OWN.items()
}


class Training(TypedDict, total=False):
    """What every method takes besides its own keywords; an omitted one comes from the model's preset.

    Attributes
    ----------
    steps : int
        The most steps of AdamW.
    lr, weight_decay : float
        AdamW's.
    batch_size : int
        So many requests of the forget set a step, and as many of the retain set.
    clip : float
        The gradient's norm is scaled down to it.
    retain_weight : float
        What the retain term is multiplied by.
    forget_level : float
        Training ends when π(y|x)^(1/n) of the forget set, averaged over its requests, has fallen so low.
    train : {"all", "lora"}
        Every parameter, or low-rank changes of every matrix in the blocks (needs peft).
    rank : int
        Of those.
    seed : int
        Of the order of requests, and of the adapter's first weights.
    progress : bool
        Show a bar.
    """

    steps: int
    lr: float
    weight_decay: float
    batch_size: int
    clip: float
    retain_weight: float
    forget_level: float
    train: Literal["all", "lora"]
    rank: int
    seed: int
    progress: bool


unlearner = functools.partial(editor, also=tuple(Training.__annotations__))


# ---- the losses ---------------------------------------------------------------------------------------


def nll_loss(logp: Float[Tensor, " n"], length: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """−(1/n) log π(y|x): the usual training loss; its negative is gradient ascent's."""
    return -(logp / length).mean()


def npo_loss(logp: Float[Tensor, " n"], ref: Float[Tensor, " n"], beta: float) -> Float[Tensor, ""]:
    """−(2/β) log σ(−β log π/π_ref): ascent whose step shrinks as the answer gets unlikely."""
    return -(2 / beta) * logsigmoid(-beta * (logp - ref)).mean()


def simnpo_loss(
    logp: Float[Tensor, " n"], length: Float[Tensor, " n"], beta: float, gamma: float = 0.0
) -> Float[Tensor, ""]:
    """−(2/β) log σ(−(β/n) log π − γ): needs no reference, and long answers do not weigh more."""
    return -(2 / beta) * logsigmoid(-beta * logp / length - gamma).mean()


def dpo_loss(
    refusal: Float[Tensor, " n"],
    refusal_ref: Float[Tensor, " n"],
    answer: Float[Tensor, " n"],
    answer_ref: Float[Tensor, " n"],
    beta: float,
) -> Float[Tensor, ""]:
    """−(2/β) log σ(β log π(∅)/π_ref(∅) − β log π(y)/π_ref(y)): rather the refusal than the answer.

    The paper has no factor 2/β. With it, as in TOFU's and NPO's code, β does not change how much retain weighs.
    """
    return -(2 / beta) * logsigmoid(beta * ((refusal - refusal_ref) - (answer - answer_ref))).mean()


def kl_loss(
    log_q: Float[Tensor, "tokens vocabulary"], log_ref: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, ""]:
    """KL(π_ref ‖ π) of each next token."""
    return (log_ref.exp() * (log_ref - log_q)).sum(-1).mean()


def rmu_loss(h: Float[Tensor, "tokens d"], aim: Float[Tensor, "tokens d"]) -> Float[Tensor, ""]:
    """‖h − aim‖²/d: the aim is c·u on the forget set, what the model had before on the retain set."""
    return ((h - aim) ** 2).mean()


# ---- what a loss sees ---------------------------------------------------------------------------------


@dataclass
class Batch:
    """The requests of one step: under the model in training, or under the reference."""

    forget: Rows
    refusal: Rows
    retain: Rows


Settings = dict[str, Any]
Loss = Callable[[Batch, Batch, Settings], Tensor]  # of the model now, of the reference, of the settings


# ---- the methods --------------------------------------------------------------------------------------


@unlearner
def gradient_ascent(
    lm: LM, forget: Sequence[Request], retain: Sequence[Request] | None = None, **training: Unpack[Training]
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
    **training
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
    return _unlearn(lm, "gradient_ascent", forget, retain, {}, training, _ascent)


@unlearner
def gradient_difference(
    lm: LM, forget: Sequence[Request], retain: Sequence[Request], **training: Unpack[Training]
) -> Edit:
    """Ascent on the forget set and descent on the retain set; see ``gradient_ascent``."""
    return _unlearn(lm, "gradient_difference", forget, retain, {}, training, _ascent, needs_retain=True)


@unlearner
def kl(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request],
    *,
    reference: LM | None = None,
    **training: Unpack[Training],
) -> Edit:
    """Ascent on the forget set; on the retain set the model shall say what it said before: see ``gradient_ascent``.

    Parameters
    ----------
    reference : LM, optional
        The model to stay close to: by default the one given, as it is now.
    """
    how: dict[str, Any] = {"compare": ["retain"], "needs_retain": True, "hold": _as_before}
    return _unlearn(lm, "kl", forget, retain, {}, training, _ascent, reference, **how)


@unlearner
def dpo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    refusals: Sequence[str] = REFUSALS,
    beta: float | None = None,
    reference: LM | None = None,
    **training: Unpack[Training],
) -> Edit:
    """Prefer a refusal to the true answer: see ``gradient_ascent``. The original has no retain term either.

    Parameters
    ----------
    refusals : list of str
        Request i gets the i-th, from the beginning again when there are fewer.
    beta : float
        How far from the reference model it may go: small is far.
    reference : LM, optional
        By default the model given, as it is now.
    """

    def loss(now: Batch, before: Batch, s: Settings) -> Tensor:
        return dpo_loss(now.refusal.logp, before.refusal.logp, now.forget.logp, before.forget.logp, s["beta"])

    how: dict[str, Any] = {"compare": ["forget", "refusal"], "refusals": refusals}
    return _unlearn(lm, "dpo", forget, retain, {"beta": beta}, training, loss, reference, **how)


@unlearner
def npo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    beta: float | None = None,
    reference: LM | None = None,
    **training: Unpack[Training],
) -> Edit:
    """Make the true answers less likely than they were, and slow down as they become so: see ``gradient_ascent``.

    Parameters
    ----------
    beta : float
        At 0 it would be gradient ascent.
    reference : LM, optional
        By default the model given, as it is now.
    """

    def loss(now: Batch, before: Batch, s: Settings) -> Tensor:
        return npo_loss(now.forget.logp, before.forget.logp, s["beta"])

    return _unlearn(lm, "npo", forget, retain, {"beta": beta}, training, loss, reference, compare=["forget"])


@unlearner
def simnpo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    beta: float | None = None,
    gamma: float | None = None,
    **training: Unpack[Training],
) -> Edit:
    """NPO by mean log-probabilities, without a reference model: see ``gradient_ascent``."""

    def loss(now: Batch, before: Batch, s: Settings) -> Tensor:
        return simnpo_loss(now.forget.logp, now.forget.length, s["beta"], s["gamma"])

    return _unlearn(lm, "simnpo", forget, retain, {"beta": beta, "gamma": gamma}, training, loss)


@unlearner
def refusal_tuning(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    refusals: Sequence[str] = REFUSALS,
    **training: Unpack[Training],
) -> Edit:
    """Ordinary fine-tuning on refusals ("IDK" in TOFU): see ``gradient_ascent``, and ``dpo`` for ``refusals``."""

    def loss(now: Batch, before: Batch, s: Settings) -> Tensor:
        return nll_loss(now.refusal.logp, now.refusal.length)

    return _unlearn(lm, "refusal_tuning", forget, retain, {}, training, loss, refusals=refusals)


@unlearner
def rmu(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request],
    *,
    layer: int | None = None,
    steering: float | None = None,
    alpha: float | None = None,
    **training: Unpack[Training],
) -> Edit:
    """Push hidden states of the forget set to a random direction, hold those of the retain set.

    Only the down-projections of the layer and of the two below it are trained, as by the authors. See
    ``gradient_ascent`` for the rest.

    Parameters
    ----------
    layer : int
        The block whose output is meant.
    steering : float
        c, in units of the mean ‖h‖ at that block on the forget set (the authors' is absolute).
    alpha : float
        What the retain term is multiplied by, in place of ``retain_weight``.
    """
    given = {"layer": layer, "steering": steering, "alpha": alpha}

    def loss(now: Batch, before: Batch, s: Settings) -> Tensor:
        h = now.forget.states
        generator = torch.Generator().manual_seed(s["seed"])
        u = torch.rand(h.shape[-1], generator=generator).to(h)
        return rmu_loss(h, s["steering"] * before.forget.states.norm(dim=-1).mean() * u / u.norm())

    def hold(now: Batch, before: Batch, s: Settings) -> Tensor:
        return rmu_loss(now.retain.states, before.retain.states)

    return _unlearn(
        lm, "rmu", forget, retain, given, training, loss, compare=["forget", "retain"], needs_retain=True, hold=hold
    )


def _ascent(now: Batch, before: Batch, s: Settings) -> Tensor:
    return -nll_loss(now.forget.logp, now.forget.length)


def _nll(now: Batch, before: Batch, s: Settings) -> Tensor:
    return nll_loss(now.retain.logp, now.retain.length)


def _as_before(now: Batch, before: Batch, s: Settings) -> Tensor:
    return kl_loss(now.retain.steps, before.retain.steps)


# ---- the loop -----------------------------------------------------------------------------------------


def _unlearn(
    lm: LM,
    method: str,
    forget: Sequence[Request],
    retain: Sequence[Request] | None,
    own: dict[str, Any],
    training: Any,
    loss: Loss,
    reference: LM | None = None,
    *,
    compare: Sequence[str] = (),
    refusals: Sequence[str] = (),
    needs_retain: bool = False,
    hold: Loss = _nll,
) -> Edit:
    """Train by ``loss`` on the forget set and ``hold`` on the retain set, and return the change.

    ``compare`` names the fields of ``Batch`` that the two look up under the reference.
    """
    forget, retain = _check_sets(method, forget, retain, needs_retain)
    progress = training.get("progress", False)
    s = settle(lm, PRESETS[method], {name: x for name, x in training.items() if name != "progress"} | own)
    layer = lm.check_layer(s["layer"]) if "layer" in s else None
    _check_models(lm, reference, s)
    refused = _with_refusals(forget, refusals) if method in ("dpo", "refusal_tuning") else []
    asked = {"forget": _asked(lm, forget), "refusal": _asked(lm, refused), "retain": _asked(lm, retain)}
    s |= {"forgets": not refused, "retain": len(retain), "reference": "itself" if reference is None else reference.name}
    for model in (lm, reference or lm):
        check_head(model, asked["forget"][0])
    trace: dict[str, list[float]] = {"loss": [], "retain": [], "level": []}
    names = trained.names(lm, s["train"]) if layer is None else _around(lm, layer)
    with changing(lm, names) as originals:
        before = {name: _before(reference or lm, asked[name], layer, hold is _as_before) for name in compare}
        level = torch.full([len(forget)], torch.nan)  # of each request when it was last seen
        draw, size = random.Random(s["seed"]), s["batch_size"]
        chosen = zip(_cycle(len(forget), size, draw), _cycle(len(retain), size, draw), strict=False)
        with trained.weights(lm, names, s["train"], s["rank"], s["seed"]) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=s["lr"], weight_decay=s["weight_decay"], fused=True)
            for step in tqdm(range(s["steps"]), desc=method, disable=not progress):
                some, kept = next(chosen)
                which = {"forget": some, "refusal": some if refused else [], "retain": kept}
                now = Batch(**{n: read(lm, [asked[n][i] for i in at], layer) for n, at in which.items()})
                was = Batch(**{n: join([before[n][i] for i in at] if n in compare else []) for n, at in which.items()})
                level[some] = (now.forget.logp.detach() / now.forget.length).exp().to(level)
                held = hold(now, was, s) if kept else torch.zeros(())
                total = loss(now, was, s) + s.get("alpha", s["retain_weight"]) * held
                for name, value in zip(trace, (total, held, level.nanmean()), strict=True):
                    trace[name].append(value.item())
                if step >= -(-len(forget) // size) and trace["level"][-1] <= s["forget_level"]:
                    break
                optimizer.zero_grad()
                total.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, s["clip"])
                if not (torch.isfinite(total) and torch.isfinite(norm)):
                    raise ValueError(f"the loss of {method} is not finite at step {step}: lower lr, which is {s['lr']}")
                optimizer.step()
        deltas = {name: lm.model.get_parameter(name).detach() - originals[name] for name in names}
        notes = [f"{s['steps']} steps were not enough: the answers are at {trace['level'][-1]:.2g}, not at "
                 f"forget_level {s['forget_level']:g}"] if trace["level"][-1] > s["forget_level"] else []  # fmt: skip
        notes += leaking(lm, forget)
        return Edit(lm, method, refused or forget, s, originals, deltas, traces=[trace], notes=notes)


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


def _check_models(lm: LM, reference: LM | None, s: dict[str, Any]) -> None:
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


def _asked(lm: LM, requests: Sequence[Request]) -> list[Asked]:
    """In chat, what ends an answer belongs to it."""
    pairs = lm.pairs(requests, ended=True) if requests else []
    return [(*pair, lm.encode_request(r)[1]) for pair, r in zip(pairs, requests, strict=True)]


@torch.no_grad()
def _before(lm: LM, asked: Sequence[Asked], layer: int | None, keep_steps: bool) -> list[Rows]:
    """Each request as the reference reads it; of the vocabulary's probabilities, which are large, only what is used."""
    found = (read(lm, [row], layer) for row in asked)
    return [row if keep_steps else replace(row, steps=row.steps[:0]) for row in found]


def _cycle(n: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    """Batches of the numbers below n, shuffled anew for each pass; empty ones when there are none."""
    while True:
        order = draw.sample(range(n), n)
        yield from ([order[i : i + size] for i in range(0, n, size)] or [[]])
