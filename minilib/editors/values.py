"""Finding v*: the value that makes the model say the target, by gradient descent on one vector δ.

v* = v₀ + δ, where v₀ is the value there before. δ is added at the last token of the subject, at one layer, and moved
until the target becomes likely. ROME adds it where the MLP's output leaves the down-projection (``place="mlp"``), MEMIT
and AlphaEdit at the block's output (``place="block"``). The loss of one request is ::

    mean over contexts of −log p(target) / (number of its tokens)          (say the target)
    + kl_factor · KL(p_edited ‖ p_original) at the subject in "{} is a"    (keep what the subject is)
    + weight_decay · ‖δ‖ / ‖v₀‖²                                           (stay close)

which is equation 4 of ROME (arXiv 2202.05262) as its authors' code computes it: there the KL runs from
the edited to the original distribution and is read at the subject's last token. ‖δ‖ ≤ clamp_factor · ‖v₀‖.

``find_plainly`` is that loop as one would first write it, and what a reader should meet first. ``find`` gives the same
v*, for many requests in a batch, each stopping on its own, and runs only what depends on δ (see ``forward``): for one
chat request a third of the time, for many much less (``benchmarks/speed.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import hooks
from ..editor import Count, NotNegative, Positive, Seed, Settings
from ..forward import Place, Suffixes, Targets, wide
from ..model import LM
from ..requests import SLOT, Request, as_contexts

KL_PROMPT = "{} is a"
SAMPLED = "sampled"
STARTS = ("The", "Therefore", "Because", "I", "You")
Lengths = tuple[tuple[int, int], ...]  # (tokens of a prefix, how many prefixes), ...
ROWS = 64  # prompts run together, where only their keys are read


@dataclass(frozen=True)
class Search(Settings):
    """The settings of the search for v*, which ROME, MEMIT and AlphaEdit share.

    Parameters
    ----------
    steps : int
        The last step computes the loss and makes no update, as in the authors' code: n steps are n − 1 updates.
    lr : float
        Adam's learning rate, in the units of the residual stream.
    weight_decay, kl_factor, clamp_factor : float
        See the module's equation.
    contexts : list of str or "sampled", default ["{}"]
        Templates put around the prompt, over which keys are averaged; the first gives v₀. "sampled": the plain prompt,
        and prefixes that the unedited model writes, as many as the method's authors take.
    stop_loss : float
        A request whose loss falls below is done.
    seed : int
        For sampled contexts.
    batch_size : int
        So many requests are searched at once: less memory, the same values. (ROME searches one at a time.)
    """

    prefixes: ClassVar[Lengths] = ((10, 5),)

    steps: Count = 25
    lr: Positive = 0.5
    weight_decay: NotNegative = 0.5
    clamp_factor: Positive = 0.75
    kl_factor: NotNegative = 0.0625
    contexts: Sequence[str] | Literal["sampled"] = field(default_factory=lambda: [SLOT])
    stop_loss: NotNegative = 0.05
    seed: Seed = 0
    batch_size: Count = 64

    @classmethod
    def of(cls, lm: LM, previous: Any = None, known: Any = None, **given: Any) -> Self:
        """As of any method; contexts are checked, or sampled."""
        s = super().of(lm, previous, known, **given)
        return replace(s, contexts=contexts_of(lm, s, cls.prefixes))


@dataclass
class Values:
    """v* for each request, and how it was found."""

    v_star: Float[Tensor, "requests d_out"]
    v0: Float[Tensor, "requests d_out"]  # the value there before
    traces: list[dict[str, list[float]]]  # for each request: loss, nll, kl, decay, norm and its limit at each step
    said: list[bool]  # whether the model says the target before, each token the likeliest, those before it given


@torch.inference_mode(False)  # gradients on, whatever the caller has switched off
def find_plainly(lm: LM, request: Request, layer: int, place: Place, s: Search) -> Float[Tensor, " d_out"]:
    """v* of one request without contexts: in each step the whole model, forward and backward.

    Parameters
    ----------
    lm : LM
        Its weights are not touched.
    request : Request
    layer : int
        The block whose MLP output ("mlp") or own output ("block") δ is added to.
    place : {"mlp", "block"}
    s : Search
    """
    x, about = lm.encode(request), lm.encode(Request(KL_PROMPT, request.subject, request.target))
    batch = lm.batch([x.ids + x.target[:-1], about.ids])
    at = torch.tensor([0, 1]), torch.tensor([x.subject, about.subject])  # where δ is added
    predicting = torch.arange(len(x.ids) - 1, len(x.ids) - 1 + len(x.target))
    module = lm.down_projection(layer) if place == "mlp" else lm.blocks[layer]
    with torch.no_grad(), hooks.read({"v": module}) as seen:
        before = lm.model(**batch, use_cache=False).logits[at[0][1], at[1][1]].log_softmax(-1)
    v0 = seen["v"][0, x.subject].clone()
    delta = torch.zeros_like(v0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=s.lr)
    for step in range(s.steps):
        with hooks.replace(module, lambda output: output.index_put(at, delta.expand(2, -1), accumulate=True)):
            log_p = lm.model(**batch, use_cache=False).logits.log_softmax(-1)
        nll = -log_p[0, predicting, torch.tensor(x.target)].mean()
        now = log_p[1, about.subject]
        kl = (now.exp() * (now - before)).sum()
        loss = nll + s.kl_factor * kl + s.weight_decay * delta.norm() / v0.norm() ** 2
        if step == s.steps - 1 or loss < s.stop_loss:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        adam.step()
        with torch.no_grad():  # the clamp: ‖δ‖ ≤ clamp_factor · ‖v₀‖
            delta.mul_((s.clamp_factor * v0.norm() / delta.norm()).clamp(max=1))
    return v0 + delta.detach()


@torch.inference_mode(False)
def find(lm: LM, requests: Sequence[Request], layer: int, place: Place, s: Search, progress: bool = False) -> Values:
    """Optimise δ for each request; v* = v₀ + δ.

    Parameters
    ----------
    lm : LM
        Its weights are not touched.
    requests : list of Request
    layer, place, s
        As in ``find_plainly``, which is the same search for one request, and the one to read.
    progress : bool, default False
        Show a progress bar; a search that takes over two seconds has one in any case.

    Returns
    -------
    Values
    """
    parts = [
        _find(lm, requests[i : i + s.batch_size], layer, place, s, progress)
        for i in range(0, len(requests), s.batch_size)
    ]
    v_star, v0 = (torch.cat([getattr(part, name) for part in parts]) for name in ("v_star", "v0"))
    return Values(v_star, v0, [t for part in parts for t in part.traces], [x for part in parts for x in part.said])


def _find(lm: LM, requests: Sequence[Request], layer: int, place: Place, s: Search, progress: bool) -> Values:
    """The values of one batch."""
    terms: dict[str, Any] = {"weight_decay": s.weight_decay, "kl_factor": s.kl_factor, "contexts": s.contexts}
    objective = Objective(lm, requests, layer, place, **terms)
    v0, said = objective.v0, objective.said
    limit = s.clamp_factor * v0.norm(dim=1)
    delta = torch.zeros_like(v0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=s.lr)
    names = ("loss", "nll", "kl", "decay", "norm", "limit")
    traces: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in requests]
    active = torch.ones(len(v0), dtype=torch.bool, device=v0.device)  # the requests that go on
    held = torch.arange(len(v0), device=v0.device)  # those in the batch
    # Not asked for, a bar is shown only for a search that takes long, unless TQDM_DISABLE is set.
    shown: dict[str, Any] = {} if progress else {"delay": 2, "leave": False}
    for step in tqdm(range(s.steps), desc="v*", **shown):
        if 2 * active.sum() <= len(held):  # half are done: go on with a smaller batch
            held = active.nonzero().squeeze(1)
            objective = Objective(lm, [requests[i] for i in held], layer, place, **terms)
        parts = objective(delta[held])
        norms = {"norm": delta.detach().norm(dim=1)[held], "limit": limit[held]}
        table = torch.stack([(parts | norms)[name].detach() for name in names], 1)
        for i, row in zip(held.tolist(), table.tolist(), strict=True):
            for name, value in zip(names, row if active[i] else [], strict=False):
                traces[i][name].append(value)
        active[held] &= ~(parts["loss"].detach() < s.stop_loss)
        if step == s.steps - 1 or not active.any():
            break
        (delta.grad,) = torch.autograd.grad(parts["loss"][active[held]].sum(), delta)
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            delta *= (limit / delta.norm(dim=1)).clamp(max=1).unsqueeze(1)
            delta[~active] = before[~active]  # which Adam's momentum would carry on
    return Values(v0 + delta.detach(), v0, traces, said)


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
        prompts = [lm.encode(request, context=context) for request in requests for context in contexts]
        about = [lm.encode(Request(KL_PROMPT, request.subject, request.target)) for request in requests]
        rows = [(x.ids[: x.subject], x.ids[x.subject :] + x.target[:-1]) for x in prompts]
        single = [(x.ids[: x.subject], [x.ids[x.subject]]) for x in about]  # what follows the subject does not matter
        each = [rows + single] if self.contexts == 1 else [rows, single]
        self.passes = [Suffixes(lm, layer, place, some) for some in each]
        self.targets = Targets(lm, [x.target for x in prompts], [len(x.ids) - 1 - x.subject for x in prompts])
        self.v0 = wide(self.passes[0].value[: len(rows) : self.contexts])
        with torch.no_grad():  # the unedited model's answers: the target already? and what after the subject?
            targets, subjects = (lm.unembed(x) for x in self._picked([some.last for some in self.passes]))
            self._fold(torch.cat([targets, subjects]))
        self.reference = subjects.log_softmax(-1)
        self.said = self.targets.likeliest(targets)[:: self.contexts]

    def __call__(self, delta: Float[Tensor, "requests d"]) -> dict[str, Float[Tensor, " requests"]]:
        """loss, nll, kl and decay of each request (nats)."""
        targets, subjects = self._picked(self._run(delta))
        log_p = self.lm.unembed(torch.cat([targets, subjects])).log_softmax(-1)  # the head's matrix is read once
        said, edited = log_p.split([len(targets), len(subjects)])
        nll = self.targets.nll(said).to(delta).view(self.requests, self.contexts).mean(1)
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
        return self.targets.states(states[0]), about

    def _fold(self, before: Tensor) -> None:
        """Fold the KL prompts behind the prompts, where that is found to give the same logits."""
        padded = self.passes[0]
        by_distance = any(given.get("alibi") is not None for _, given in padded.calls)  # BLOOM's and Falcon's blocks
        if self.contexts == 1 and padded.base.shape[1] > 1 and not by_distance:
            self.passes = [padded.fold()]
            after = self.lm.unembed(torch.cat(self._picked(self._run(torch.zeros_like(self.v0)))))
            if not torch.allclose(after, before, rtol=1e-2, atol=1e-2):
                self.passes = [padded]


# ---- keys ---------------------------------------------------------------------------------------------


def keys_and_values(
    lm: LM, requests: Sequence[Request], layer: int, contexts: Sequence[str]
) -> tuple[Float[Tensor, "requests contexts d_k"], Float[Tensor, "requests contexts d_out"]]:
    """k and W k (with its bias, where there is one): what enters the down-projection of a layer, and what leaves it."""
    return at_subject(lm, requests, contexts, layer, lm.down_projection(layer))


@torch.no_grad()
def at_subject(
    lm: LM, requests: Sequence[Request], contexts: Sequence[str], layer: int, upper: nn.Module
) -> tuple[Float[Tensor, "requests contexts d_k"], Float[Tensor, "requests contexts d"]]:
    """The input of W and the output of ``upper``, at the subject of each request in each context (float32)."""
    rows = [lm.encode(request, context=context) for request in requests for context in contexts]
    keys: list[Tensor] = []
    above: list[Tensor] = []
    for start in range(0, len(rows), ROWS):
        chunk = rows[start : start + ROWS]
        batch = lm.batch([x.ids for x in chunk])
        with lm.evaluating(), ExitStack() as stack:  # the upper one is read last: there the model stops
            out = stack.enter_context(hooks.read({0: upper}, at="output", stop=True))
            into = stack.enter_context(hooks.read({0: lm.down_projection(layer)}, at="input"))
            lm.model(**batch, use_cache=False)
        at = (torch.arange(len(chunk)), torch.tensor([x.subject for x in chunk]))
        for kept, seen in ((keys, into), (above, out)):  # OPT's blocks flatten batch and tokens
            kept.append(seen[0].reshape(*batch["input_ids"].shape, -1)[at].float())
    k, h = (torch.cat(kept).unflatten(0, (len(requests), len(contexts))) for kept in (keys, above))
    return k, h


# ---- contexts: texts put before a prompt, so that a fact's key and value hold in more than one place -------


def contexts_of(lm: LM, s: Any, lengths: Lengths) -> list[str]:
    """The contexts that settings give, checked, or those that "sampled" stands for."""
    sampled = isinstance(s.contexts, str) and s.contexts == SAMPLED
    return sample(lm, s.seed, lengths) if sampled else as_contexts(s.contexts)


def sample(lm: LM, seed: int = 0, lengths: Lengths = ((5, 10), (10, 10))) -> list[str]:
    """``"{}"``, then prefixes that the model wrote, each a few tokens after one of ``STARTS`` and ended by a full stop.

    This is what ``contexts="sampled"`` stands for. The next token is drawn from the five likeliest, as in the authors'
    code. Written by the model as it is without the edits in force, so that an edit does not depend on those before it.

    Parameters
    ----------
    lm : LM
    seed : int
        The same seed gives the same prefixes.
    lengths : tuple of (tokens, count)
        How many prefixes of how many tokens.
    """
    prefixes: list[str] = []
    with lm.unedited():
        for tokens, count in lengths:
            starts = [STARTS[i % len(STARTS)] for i in range(count)]
            ends = lm.generate(starts, max_new_tokens=tokens, chat=False, temperature=1.0, top_k=5, seed=seed)
            prefixes += [start + end for start, end in zip(starts, ends, strict=True)]
    # A brace of the text would be taken for the slot.
    return [SLOT, *(f"{text.replace('{', ' ').replace('}', ' ')}. {SLOT}" for text in prefixes)]
