"""Finding v*: the value that makes the model say the target, by gradient descent on one vector δ.

δ is added at the last token of the subject, at one layer, and moved until the target becomes likely. ROME
adds it where the MLP's output leaves the down-projection (``place="mlp"``), MEMIT and AlphaEdit at the
block's output (``place="block"``). The loss of one request is ::

    mean over contexts of −log p(target) / (number of its tokens)          (say the target)
    + kl_factor · KL(p_edited ‖ p_original) at the subject in "{} is a"    (keep what the subject is)
    + weight_decay · ‖δ‖ / ‖v₀‖²                                           (stay close)

which is equation 4 of ROME (arXiv 2202.05262) as its authors' code computes it: there the KL runs from
the edited to the original distribution and is read at the subject's last token. ‖δ‖ ≤ clamp_factor · ‖v₀‖.

What lies left of the subject and below the layer does not depend on δ. It is computed once: the keys and
values of attention left of the subject are kept, and each step runs only the blocks above the layer, only
on the tokens from the subject on. All requests are one batch; each stops on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from .lm import LM
from .requests import SLOT, Request
from .suffixes import Place, Suffixes, wide

KL_PROMPT = "{} is a"
SEARCH = ("steps", "lr", "weight_decay", "clamp_factor", "kl_factor", "contexts", "stop_loss")  # find's settings


@dataclass
class Values:
    """v* for each request, and how it was found."""

    v_star: Float[Tensor, "requests d_out"]
    v0: Float[Tensor, "requests d_out"]  # the value there before
    traces: list[dict[str, list[float]]]  # for each request: loss, nll, kl, decay, norm and its limit at each step
    said: list[bool]  # whether the model says the target before, each token the likeliest, those before it given


@torch.inference_mode(False)  # gradients on, whatever the caller has switched off
def find(
    lm: LM,
    requests: Sequence[Request],
    layer: int,
    place: Place,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    clamp_factor: float,
    kl_factor: float,
    contexts: Sequence[str] = (SLOT,),
    stop_loss: float = 0.05,
    progress: bool = False,
) -> Values:
    """Optimise δ for each request; v* = v₀ + δ.

    Parameters
    ----------
    lm : LM
    requests : list of Request
    layer : int
        The block whose MLP output ("mlp") or own output ("block") δ is added to.
    place : {"mlp", "block"}
    steps : int
        The last step computes the loss and makes no update, as in the authors' code: n steps are n − 1 updates.
    lr : float
        Adam's learning rate, in the units of the residual stream.
    weight_decay, kl_factor, clamp_factor : float
        See the module's equation.
    contexts : list of str, default ["{}"]
        Templates put around the prompt; the first gives v₀.
    stop_loss : float, default 0.05
        A request whose loss falls below is done.
    progress : bool, default False
        Show a progress bar; on a terminal a search that takes over two seconds has one in any case.

    Returns
    -------
    Values
        The weights of the model are not touched.
    """
    terms: dict[str, Any] = {"weight_decay": weight_decay, "kl_factor": kl_factor, "contexts": contexts}
    objective = Objective(lm, requests, layer, place, **terms)
    v0, said = objective.v0, objective.said
    deltas = [torch.zeros_like(v, requires_grad=True) for v in v0]
    optimisers = [torch.optim.Adam([delta], lr=lr) for delta in deltas]
    limits = [clamp_factor * v.norm() for v in v0]
    names = ("loss", "nll", "kl", "decay", "norm", "limit")
    traces: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in requests]
    held = active = list(range(len(requests)))  # the requests in the batch, and those of them that go on
    # Not asked for, a bar is shown on a terminal alone (disable=None), and only for a search that takes long.
    shown: dict[str, Any] = {} if progress else {"disable": None, "delay": 2, "leave": False}
    for step in tqdm(range(steps), desc="v*", **shown):
        if 2 * len(active) <= len(held):  # half are done: go on with a smaller batch
            held = active
            objective = Objective(lm, [requests[i] for i in held], layer, place, **terms)
        parts = objective(torch.stack([deltas[i] for i in held]))
        for i in active:
            for name, value in parts.items():
                traces[i][name].append(value[held.index(i)].item())
            traces[i]["norm"].append(deltas[i].norm().item())
            traces[i]["limit"].append(limits[i].item())
        active = [i for i in active if not traces[i]["loss"][-1] < stop_loss]
        if step == steps - 1 or not active:
            break
        loss = parts["loss"][[held.index(i) for i in active]].sum()
        wanted = [deltas[i] for i in active]
        for i, gradient in zip(active, torch.autograd.grad(loss, wanted), strict=True):
            deltas[i].grad = gradient
            optimisers[i].step()
            with torch.no_grad():
                if (norm := deltas[i].norm()) > limits[i]:
                    deltas[i] *= limits[i] / norm
    delta = torch.stack([d.detach() for d in deltas])
    return Values(v0 + delta, v0, traces, said)


class Objective:
    """The loss as a function of δ, with all that does not depend on δ computed once.

    Each request has one row a context (prompt and target) and one for the KL prompt. A row is cut at the
    subject's last token: what is left of it is the prefix, kept as attention's keys and values; the rest, the
    suffix, starts with the subject's last token and is run anew in each step, from the edited layer upwards.
    """

    def __init__(
        self,
        lm: LM,
        requests: Sequence[Request],
        layer: int,
        place: Place,
        *,
        weight_decay: float,
        kl_factor: float,
        contexts: Sequence[str] = (SLOT,),
    ) -> None:
        self.lm, self.weight_decay, self.kl_factor = lm, weight_decay, kl_factor
        self.requests, self.contexts = len(requests), len(contexts)
        rows: list[tuple[list[int], list[int]]] = []  # prefix and suffix
        about: list[tuple[list[int], list[int]]] = []  # the same of KL prompts
        asked: list[tuple[int, int, int, int, float]] = []  # row, column, token to predict, request, weight
        for i, request in enumerate(requests):
            target = lm.encode_target(request.target)
            for context in contexts:
                ids, subject = lm.encode_request(request, context)
                lm.check_length([(ids, target)])
                first = len(ids) - 1 - subject  # the column that predicts the target's first token
                weight = 1 / (len(target) * len(contexts))
                asked += [(len(rows), first + j, token, i, weight) for j, token in enumerate(target)]
                rows.append((ids[:subject], ids[subject:] + target[:-1]))
            ids, subject = lm.encode_request(Request(KL_PROMPT, request.subject, request.target))
            about.append((ids[:subject], [ids[subject]]))  # read at the subject: what follows does not matter
        self.row, self.column, self.token, self.owner, self.weight = (torch.tensor(x) for x in zip(*asked, strict=True))
        if self.contexts == 1:
            self.passes = [Suffixes(lm, layer, place, rows + about)]
        else:
            self.passes = [Suffixes(lm, layer, place, rows), Suffixes(lm, layer, place, about)]
        self.v0 = wide(self.passes[0].value[: len(rows) : self.contexts])
        with torch.no_grad():  # the unedited model's answers: the target already? and what after the subject?
            targets, subjects = (lm.unembed(x) for x in self._picked([rows.last for rows in self.passes]))
            self._fold(torch.cat([targets, subjects]))
        right, self.reference = targets.argmax(-1).cpu() == self.token, subjects.log_softmax(-1)
        plain = self.row % self.contexts == 0
        self.said = [bool(right[plain & (self.owner == i)].all()) for i in range(len(requests))]

    def __call__(self, delta: Float[Tensor, "requests d"]) -> dict[str, Float[Tensor, " requests"]]:
        """loss, nll, kl and decay of each request (nats)."""
        targets, subjects = self._picked(self._run(delta))
        said, edited = (
            self.lm.unembed(torch.cat([targets, subjects])).log_softmax(-1).split([len(targets), len(subjects)])
        )
        token, owner, weight = (x.to(said.device) for x in (self.token, self.owner, self.weight))  # the head's
        said = said.gather(1, token.unsqueeze(1)).squeeze(1)
        nll = said.new_zeros(len(delta), dtype=delta.dtype).index_add(0, owner, -(weight * said).to(delta.dtype))
        nll = nll.to(delta.device)
        kl = self.kl_factor * (edited.exp() * (edited - self.reference)).sum(-1).to(delta.device)
        decay = self.weight_decay * delta.norm(dim=1) / self.v0.norm(dim=1) ** 2
        return {"loss": nll + kl + decay, "nll": nll, "kl": kl, "decay": decay}

    def _run(self, delta: Float[Tensor, "requests d"]) -> list[Tensor]:
        """The last block's output in each pass, with δ at every subject."""
        both = [delta.repeat_interleave(self.contexts, 0), delta]
        each = [torch.cat(both)] if self.contexts == 1 else both
        return [rows(d) for rows, d in zip(self.passes, each, strict=True)]

    def _picked(self, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the last block's output: where a target's token is predicted, and at each subject of a KL prompt."""
        about = states[0][:, -1] if self.passes[0].folded else states[-1][-self.requests :, 0]
        return states[0][self.row, self.column], about

    def _fold(self, before: Tensor) -> None:
        """Fold the KL prompts behind the prompts, where that is found to give the same logits."""
        padded = self.passes[0]
        by_distance = any(given.get("alibi") is not None for _, given in padded.calls)  # BLOOM's and Falcon's blocks
        if self.contexts == 1 and padded.base.shape[1] > 1 and not by_distance:
            self.passes = [padded.fold()]
            after = self.lm.unembed(torch.cat(self._picked(self._run(torch.zeros_like(self.v0)))))
            if not torch.allclose(after, before, rtol=1e-2, atol=1e-2):
                self.passes = [padded]
