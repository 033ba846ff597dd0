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
    UNDIAL                −(1/n) Σ_t Σ_v q_t(v) log π_t(v),  q_t = softmax(logits_ref − β at the true token)  2402.10052
    AltPO                 DPO with another plausible answer in the place of ∅                    arXiv 2409.13474
    WGA                   (1/n) Σ_t p_t^α log p_t, the weights p_t^α held constant               arXiv 2502.19301
    LUNAR                 ‖h(forget) − h_ref(forget) − c·r‖² + ‖h(retain) − h_ref(retain)‖²      arXiv 2502.07218

each as a mean over the requests; π_t is what the model says at token t, p_t its probability of the true one. The losses
are in ``losses``, one loop (``loop``) trains for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..editor import editor
from ..edits import Edit
from ..measure.refusals import REFUSALS
from ..model import LM
from ..requests import Request, as_requests
from . import loop, recipes
from .directions import direction
from .loop import Batch
from .losses import dpo_loss, kl_loss, nll_loss, npo_loss, rmu_loss, simnpo_loss, undial_loss, wga_loss
from .settings import LUNAR, PRESETS, RMU, SETTINGS, UNDIAL, WGA, Preference, SimNPO, Training


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
    return loop.unlearn(lm, "gradient_ascent", forget, retain, settings, _ascent, progress=progress)


@unlearner
def gradient_difference(
    lm: LM, forget: Sequence[Request], retain: Sequence[Request], *, progress: bool = False, **settings: Any
) -> Edit:
    """Ascent on the forget set and descent on the retain set; see ``gradient_ascent``."""
    how: dict[str, Any] = {"needs_retain": True, "progress": progress}
    return loop.unlearn(lm, "gradient_difference", forget, retain, settings, _ascent, **how)


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
    how: dict[str, Any] = {"compare": ["retain"], "steps_of": "retain", "needs_retain": True, "hold": _as_before}
    return loop.unlearn(lm, "kl", forget, retain, settings, _ascent, reference, progress=progress, **how)


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

    how: dict[str, Any] = {"compare": ["forget", "other"], "instead": _one_of(refusals), "refuses": True}
    return loop.unlearn(lm, "dpo", forget, retain, settings, _preference, reference, progress=progress, **how)


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

    return loop.unlearn(lm, "npo", forget, retain, settings, loss, reference, compare=["forget"], progress=progress)


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

    return loop.unlearn(lm, "simnpo", forget, retain, settings, loss, progress=progress)


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
        return nll_loss(now.other.logp, now.other.length)

    how: dict[str, Any] = {"instead": _one_of(refusals), "refuses": True, "progress": progress}
    return loop.unlearn(lm, "refusal_tuning", forget, retain, settings, loss, **how)


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

    how: dict[str, Any] = {"compare": ["forget", "retain"], "needs_retain": True, "hold": _same_states}
    return loop.unlearn(lm, "rmu", forget, retain, settings, loss, progress=progress, **how)


@unlearner
def undial(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    reference: LM | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Learn from the model itself, with each true token's logit lowered by β: see ``gradient_ascent``, and ``UNDIAL``.

    The original has no retain term: what the true token loses goes to the others in the proportions they had, and
    training ends where the model says just that. Without it in between, ascent has nowhere to end.

    Parameters
    ----------
    reference : LM, optional
        Whose logits are lowered; by default the model given, as it is now.
    """

    def loss(now: Batch, before: Batch, s: UNDIAL) -> Tensor:
        return undial_loss(now.forget.steps, before.forget.steps, now.forget.tokens, now.forget.length, s.beta)

    how: dict[str, Any] = {"compare": ["forget"], "steps_of": "forget", "progress": progress}
    return loop.unlearn(lm, "undial", forget, retain, settings, loss, reference, **how)


@unlearner
def altpo(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    alternatives: Sequence[Sequence[str]] | None = None,
    reference: LM | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Prefer other plausible answers to the true one: see ``gradient_ascent``, and ``Preference``.

    The paper holds the rest by NLL on a retain set, which here is optional as for all losses.

    Parameters
    ----------
    alternatives : list of list of str, optional
        For each request of the forget set, answers as long and as plausible as the true one, and wrong. By default the
        model writes them (``recipes.alternatives``), as in the paper, where a model of 7 billion parameters does so;
        small ones write poor ones, so give your own where you can.
    reference : LM, optional
        By default the model given, as it is now.
    """
    seed = settings.get("seed") or 0
    how: dict[str, Any] = {"compare": ["forget", "other"], "progress": progress}

    def instead(asked: list[Request]) -> list[list[str]]:
        return recipes.alternatives(lm, asked, seed=seed) if alternatives is None else _for_each(alternatives, asked)

    return loop.unlearn(lm, "altpo", forget, retain, settings, _preference, reference, instead=instead, **how)


@unlearner
def wga(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request] | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Ascent in which a token weighs as its probability to the power of α: see ``gradient_ascent``, and ``WGA``."""

    def loss(now: Batch, before: Batch, s: WGA) -> Tensor:
        return wga_loss(now.forget.steps, now.forget.tokens, now.forget.length, s.alpha)

    return loop.unlearn(lm, "wga", forget, retain, settings, loss, progress=progress)


@unlearner
def lunar(
    lm: LM,
    forget: Sequence[Request],
    retain: Sequence[Request],
    *,
    refused: Sequence[str | Request] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Move hidden states of the forget set to where the model declines, hold those of the retain set.

    Only W, the down-projection of one layer, is trained. The direction r is the mean state of prompts that the model
    declines, less that of the forget set, at each prompt's last token; see ``directions``. States are moved by c·r from
    the subject's end through the answer (the authors' code does so at every token of the prompt).

    Where nothing lies between W and h, h changes by ΔW k, and this is least squares: with k̄_f for the forget set's
    mean key, C_f and C_r for the second moments of both sets' keys and w for ``retain_weight``, the minimum is
    ΔW = c r k̄_fᵀ (C_f + w C_r)⁻¹. That is a change of rank one, as ROME's is, with k̄_f for k* and r for its value. The
    authors take steps of AdamW instead, as here, which need not go all the way. See ``gradient_ascent`` for the rest,
    and ``LUNAR`` for the settings.

    Parameters
    ----------
    refused : list of str or Request, optional
        What the model declines to answer: prompts that it answers count for nothing. By default
        ``directions.default_refused(lm)``.
    """
    with lm.silenced():
        asked, s = as_requests(forget, "forget"), LUNAR.of(lm, known=PRESETS["lunar"], **settings)
        r = direction(lm, asked, refused, s.layer)

    def loss(now: Batch, before: Batch, s: LUNAR) -> Tensor:
        return rmu_loss(now.forget.states, before.forget.states + s.coefficient * r)

    how: dict[str, Any] = {"compare": ["forget", "retain"], "needs_retain": True, "hold": _same_states}
    return loop.unlearn(lm, "lunar", forget, retain, settings, loss, progress=progress, **how)


# ---- what several share ---------------------------------------------------------------------------------


def _ascent(now: Batch, before: Batch, s: Training) -> Tensor:
    return -nll_loss(now.forget.logp, now.forget.length)


def _as_before(now: Batch, before: Batch, s: Training) -> Tensor:
    return kl_loss(now.retain.steps, before.retain.steps)


def _preference(now: Batch, before: Batch, s: Preference) -> Tensor:
    return dpo_loss(now.other.logp, before.other.logp, now.forget.logp, before.forget.logp, s.beta)


def _same_states(now: Batch, before: Batch, s: RMU | LUNAR) -> Tensor:
    return rmu_loss(now.retain.states, before.retain.states)


def _one_of(refusals: Sequence[str]) -> Callable[[list[Request]], list[list[str]]]:
    """Request i gets the i-th refusal, from the beginning again when there are fewer."""
    return lambda forget: [[_texts(refusals, "refusals")[i % len(refusals)]] for i in range(len(forget))]


def _for_each(alternatives: Any, forget: list[Request]) -> list[list[str]]:
    """The caller's alternatives, a list for each request."""
    if isinstance(alternatives, str) or not isinstance(alternatives, Sequence):
        raise TypeError(f"alternatives must be a list with a list of strings for each request, not {alternatives!r}")
    if len(alternatives) != len(forget):
        raise ValueError(f"alternatives has {len(alternatives)} lists for {len(forget)} requests: give one for each")
    return [_texts(some, f"alternatives[{i}]") for i, some in enumerate(alternatives)]


def _texts(texts: Any, name: str) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise TypeError(f"{name} must be a list of strings that is not empty, not {texts!r}")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise TypeError(f"{name}[{i}] must be a string that is not empty, not {text!r}")
    return list(texts)
