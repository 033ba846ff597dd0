"""The losses of unlearning, as short functions of log-probabilities; the equations stand in ``unlearning``.

``logp`` is log π(y|x) of each whole answer, ``ref`` the same under the reference model, ``length`` n its tokens.
``steps`` holds log-probabilities of each next token of all answers, one answer after the other, ``tokens`` those that
stand there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


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

    The paper has no factor 2/β. With it, as in NPO's loss, β does not change how much retain weighs.
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


def wga_loss(
    steps: Float[Tensor, "tokens vocabulary"],
    tokens: Int[Tensor, " tokens"],
    length: Float[Tensor, " n"],
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """(1/n) Σ_t p_t^α log p_t, the weights p_t^α taken as constants: ascent that lets go of what is unlikely already.

    With α = 0 it is gradient ascent.
    """
    said = steps.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return _mean_of_answers((alpha * said.detach()).exp() * said, length)


def undial_loss(
    steps: Float[Tensor, "tokens vocabulary"],
    ref: Float[Tensor, "tokens vocabulary"],
    tokens: Int[Tensor, " tokens"],
    length: Float[Tensor, " n"],
    beta: float,
) -> Float[Tensor, ""]:
    """−(1/n) Σ_t Σ_v q_t(v) log π_t(v), where q_t = softmax(reference's logits − β at the true token).

    ``ref`` may be log-probabilities, since a softmax does not see what is added to all logits. The loss ends at the
    entropy of q, not at 0.
    """
    q = (ref - beta * torch.nn.functional.one_hot(tokens, ref.shape[-1])).softmax(-1)
    return _mean_of_answers(-(q * steps).sum(-1), length)


def _mean_of_answers(values: Float[Tensor, " tokens"], length: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean over each answer's tokens, and then over the answers."""
    return torch.stack([part.mean() for part in values.split([int(n) for n in length])]).mean()
