"""WISE: a side memory beside one W, and a measure of when to read it (Wang et al. 2024, arXiv 2405.14768).

Beside the layer's W stands W' = W + D. Of a prompt, k is the key that enters W at its last token. The routing
activation says how differently the two memories would answer,

    Δact(x) = ‖A(x) (W' − W)‖₂ = ‖D k‖,

and W' is read for the whole prompt and its answer where Δact(x) > ε, the least Δact of an edit. D is trained so
that W' says the targets, and so that Δact tells edits x_e from irrelevant prompts x_i by three margins:

    L = −log p_W'(target) + max(0, Δact(x_i) − α) + max(0, β − Δact(x_e)) + max(0, γ − (Δact(x_e) − Δact(x_i))).

Edits are divided into k shards. Each trains only the entries of D under a random mask of ratio ρ, and the shards'
D are merged into one by TIES (Yadav et al. 2023, arXiv 2306.01708). With ``retrieve=True`` a continued edit keeps a
memory of its own, and the one with the largest Δact, in units of its ε, answers. α, β and γ are given in units of
the mean ‖W k‖ over the irrelevant prompts, so that they mean the same in models of any scale.

Few prompts are shown, and many D fit them. Of these we want one that is silent elsewhere: D = B M is trained by
gradient descent from 0, where the rows of M span the keys that are shown, whitened (``whitening``). That is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from .. import guards
from ..editor import Count, NotNegative, Positive, Seed, Share, editor, said_before
from ..editor import Settings as Common
from ..edits import Edit, changing
from ..forward import Suffixes, Targets, double
from ..guards import PromptGuard
from ..model import LM
from ..requests import SLOT, Request, as_requests, check_distinct, truth
from ..tokens import Encoded
from ..worlds import texts
from .ties import draw_mask, split, ties
from .values import contexts_of

Margins = tuple[float, float, float]
NO_MARGINS = (math.inf, 0.0, -math.inf)  # γ = 0 would still ask that edits are louder than irrelevant prompts
ROUNDING = 0.01  # so much lower is ε, or the edit with the least Δact were locked out by rounding, in bfloat16 at most


@dataclass(frozen=True)
class Side:
    """A side memory: D of each shard, their merger, and what its edits' routing is measured by."""

    shards: Float[Tensor, "shards d_out d_k"]
    delta: Float[Tensor, "d_out d_k"]
    keys: Float[Tensor, "edits d_k"]  # at the last token of each edited prompt
    epsilon: float  # ε: from this Δact on the memory is read


class SideMemories(PromptGuard):
    """One side memory or several, at one layer.

    Attributes
    ----------
    sides : list of Side
        D is always (d_out, d_k), whichever way round the model stores W.
    """

    what = "side memory"

    def __init__(self, layer: int, opening: Sequence[int], sides: Sequence[Side]) -> None:
        super().__init__(layer, opening)
        self.sides = list(sides)

    def follow(self, device: torch.device) -> None:
        if self.sides[0].delta.device != device:
            parts = ("shards", "delta", "keys")
            self.sides = [replace(s, **{part: getattr(s, part).to(device) for part in parts}) for s in self.sides]

    def routing(self, k: Float[Tensor, "rows d_k"]) -> Float[Tensor, "rows sides"]:
        """Δact of each key in each memory."""
        return torch.stack([activation(side.delta, k) for side in self.sides], 1)

    def decide(self, keys: Float[Tensor, "rows d_k"]) -> Int[Tensor, " rows"]:
        excess, best = (self.routing(keys) / self._limits(keys)).max(1)
        return torch.where(excess > 1, best, -1)

    def answer(self, keys: Tensor, output: Tensor, decided: Tensor) -> Tensor:
        changed = output.clone()
        for i, side in enumerate(self.sides):
            rows = (decided == i).nonzero().squeeze(1)
            if len(rows):
                changed[rows] += (keys[rows].float() @ side.delta.T).to(output.dtype)
        return changed

    def explain(self, lm: LM, prompts: Sequence[tuple[str, list[int]]]) -> list[dict[str, Any]]:
        """For each prompt: the memory that is nearest to answering, its activation, threshold, and decided."""
        k = torch.stack([k[-1] for k in guards.keys(lm, self.layer, [ids for _, ids in prompts])])
        self.follow(k.device)
        act = self.routing(k)
        best = (act / self._limits(k)).argmax(1).tolist()
        decisions = []
        for (text, _), row, i, decided in zip(prompts, act.tolist(), best, self.decide(k).tolist(), strict=True):
            about = {"prompt": text, "memory": i, "activation": row[i], "threshold": self.sides[i].epsilon}
            decisions.append({**about, "decided": decided >= 0})
        return decisions

    def continues(self, earlier: guards.Guard) -> bool:
        assert isinstance(earlier, SideMemories)
        mine, first = (torch.cat([side.keys for side in guard.sides]) for guard in (self, earlier))
        return len(mine) > len(first) and torch.equal(mine[: len(first)].to(first.device), first)

    def tensors(self) -> dict[str, Tensor]:
        parts = ("shards", "delta", "keys")
        return {f"{i}:{part}": getattr(side, part) for i, side in enumerate(self.sides) for part in parts}

    def about(self) -> dict[str, Any]:
        return {"layer": self.layer, "opening": self.opening, "epsilon": [side.epsilon for side in self.sides]}

    def _limits(self, like: Tensor) -> Float[Tensor, " sides"]:
        return torch.tensor([side.epsilon for side in self.sides], device=like.device)

    def __repr__(self) -> str:
        n, edits = len(self.sides), sum(len(side.keys) for side in self.sides)
        return f"<{n} side memor{'y' if n == 1 else 'ies'} of layer {self.layer} for {edits} edits>"


@dataclass(frozen=True)
class Settings(Common):
    """WISE's settings; the defaults are the authors' for Llama 2 7B, margins aside: theirs are in other units.

    Parameters
    ----------
    layer : int, default the middle one
        The block beside whose W the memory stands.
    margins : (α, β, γ)
        Largest Δact of an irrelevant prompt, least of an edit, least difference of the two; in units of the mean
        ‖W k‖ over the irrelevant prompts. None of them: ``NO_MARGINS``.
    mask_ratio : float
        ρ, the share of W's entries that a shard may train.
    shards : int
        k, into how many groups the requests are divided, at most one a request.
    density : float
        Of TIES: the share of each shard's entries that is kept in merging.
    threshold : float
        ε as a share of the least Δact of an edit: 1 is the paper, 0.88 the authors' code.
    steps : int
        Updates of D, at most.
    lr : float
        Step size of gradient descent with momentum; with ``precondition``, in units of the mean ‖W k‖.
    precondition : float
        D is trained in whitened keys, where each direction that the keys of edits and irrelevant prompts span is as
        long as any other; so much of the mean is added to each, or rare ones would be blown up. 0: train D itself.
    stop_loss : float
        A shard is done when the loss of its every request is below and no margin is broken.
    contexts : list of str or "sampled", default ["{}"]
        Templates put around the prompt, each a row to train on.
    seed : int
        Of masks, drawn prompts and sampled contexts.
    """

    PRESETS = {
        "llama-30x576": {"layer": 22, "mask_ratio": 1.0, "shards": 1, "threshold": 0.9},  # SmolLM2-135M
        "llama-6x96": {"layer": 2, "mask_ratio": 1.0, "shards": 1},  # tinyworld
    }

    layer: int = 0
    margins: Margins = (0.15, 0.6, 0.4)
    mask_ratio: Share = 0.2
    shards: Count = 2
    density: Share = 0.53
    threshold: Share = 1.0
    steps: Count = 70
    lr: Positive = 1e-2
    precondition: NotNegative = 0.5
    stop_loss: NotNegative = 0.05
    contexts: Sequence[str] | Literal["sampled"] = field(default_factory=lambda: [SLOT])
    seed: Seed = 0


@editor(Settings)
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    *,
    irrelevant: Sequence[str | Request] | str | None = None,
    retrieve: bool = False,
    previous: Edit | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Train a side memory that says the targets, and routing that opens it for them.

    Parameters
    ----------
    lm : LM
        Its weights stay as they are.
    requests : Request or list of Request
        Divided into shards in their order. In chat the model learns to stop after the target.
    irrelevant : list of str or Request, or "sampled", optional
        Prompts that the memory has to leave alone; strings are chat messages where the first request is one. By
        default up to 128 questions of ``minilib.facts`` and 256 ordinary messages (in plain text, beginnings of the
        model's sample text) that do not name an edited subject. "sampled": the latter alone.
    retrieve : bool, default False
        With ``previous``: keep its memory, and this one beside it, instead of merging them.
    previous : Edit, optional
        A WISE edit in force on this layer, the latest there: its memory is continued.
    progress : bool, default False
        Show a progress bar.
    **settings
        Those of ``wise.Settings``. An omitted one comes from the model's preset, or else from the authors' code;
        ``edit.settings`` says what was used.

    Returns
    -------
    Edit
        ``edit.guard`` holds the side memories; ``edit.deltas`` is empty.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or a WISE edit lies on this layer and is not ``previous``. The model is left as
        it was.
    """
    requests = as_requests(requests)
    check_distinct(requests)
    s = Settings.of(lm, previous, **settings)
    if settings.get("shards") is None:
        s = replace(s, shards=min(s.shards, len(requests)))
    if s.shards > len(requests):
        raise ValueError(f"shards must be at most the number of requests, {len(requests)}, not {s.shards}")
    retrieve, contexts = truth(retrieve, "retrieve"), contexts_of(lm, s, ((10, 5),))
    s = replace(s, margins=check_margins(s.margins), contexts=contexts)
    earlier = guards.continued(lm, SideMemories, s.layer, previous)
    encoded = list(zip(*(lm.encode(requests, context=context, ended=True) for context in contexts), strict=True))
    others = texts.irrelevant(lm, requests, irrelevant, s.seed)
    with changing(lm, []):
        away = torch.stack([k[-1] for k in guards.keys(lm, s.layer, others)])
        if earlier is not None:
            earlier.follow(away.device)
        before = [] if earlier is None else list(earlier.sides)
        generator = torch.Generator().manual_seed(s.seed + sum(len(side.shards) for side in before))
        scale = (away @ lm.memory(s.layer).detach().float().T).norm(dim=1).mean().item()
        if retrieve:  # what another memory answers is irrelevant to this one
            away = torch.cat([away, *(side.keys for side in before)])
        alpha, beta, gamma = (margin * scale for margin in s.margins)
        how = replace(s, margins=(alpha, beta, gamma), lr=s.lr * (scale if s.precondition else 1))
        merged = before.pop() if before and not retrieve else None  # the memory that the new shards join
        deltas, keys = ([], []) if merged is None else ([*merged.shards], [merged.keys])
        traces, notes = [], []
        for some in split(list(zip(requests, encoded, strict=True)), s.shards):
            mask = draw_mask(lm.memory(s.layer).shape, s.mask_ratio, generator).to(away.device)
            rows = [x for _, in_contexts in some for x in in_contexts]
            D, k, trace, said = train(lm, rows, away, mask, how, progress)
            deltas.append(D)
            keys.append(k[:: len(contexts)])  # of the plain prompt, or of the first context
            traces.append(trace)
            notes += said_before([request for request, _ in some], said[:: len(contexts)])
        D, k = torch.stack(deltas), torch.cat(keys)
        delta = ties(D, s.density) if len(D) > 1 else D[0].clone()
        least = activation(delta, k).min().item()
        side = Side(D, delta, k, s.threshold * least * (1 - ROUNDING))
        guard = SideMemories(s.layer, guards.opening(lm), [*before, side])
        used = s.used() | {"margins": list(s.margins), "scale": scale}
        return Edit(lm, "wise", requests, used, {}, traces=traces, notes=notes, guard=guard, previous=previous)


def activation(D: Float[Tensor, "d_out d_k"], k: Float[Tensor, "rows d_k"]) -> Float[Tensor, " rows"]:
    """Δact = ‖D k‖: by how much the side memory would answer differently (equation 2 of the paper)."""
    return (k @ D.T).norm(dim=1)


def margin_loss(edits: Float[Tensor, " edits"], irrelevant: Float[Tensor, " irrelevant"], margins: Margins) -> Tensor:
    """The three margins between Δact of edits and of irrelevant prompts, each a mean over prompts or pairs."""
    alpha, beta, gamma = margins
    apart = gamma - (edits.unsqueeze(1) - irrelevant)
    return (irrelevant - alpha).relu().mean() + (beta - edits).relu().mean() + apart.relu().mean()


@torch.inference_mode(False)
def train(
    lm: LM,
    rows: Sequence[Encoded],
    irrelevant: Float[Tensor, "irrelevant d_k"],
    mask: Bool[Tensor, "d_out d_k"],
    s: Settings,
    progress: bool = False,
) -> tuple[Tensor, Tensor, dict[str, list[float]], list[bool]]:
    """D of one shard.

    What lies below the layer, and the irrelevant prompts' keys, do not depend on D and are computed once.

    Parameters
    ----------
    lm : LM
    rows : list of Encoded
        Each prompt to train on, with its target.
    irrelevant : Tensor
        Keys at the last tokens of irrelevant prompts.
    mask : Tensor of bool
        Which entries of D are trained.
    s : Settings
        With margins and lr as they are, not in units of the mean ‖W k‖.

    Returns
    -------
    D : Tensor, (d_out, d_k)
    keys : Tensor, (rows, d_k)
        At the last token of each prompt.
    trace : dict
        Lists ``loss``, ``nll``, ``margin``, ``edits`` (least Δact of an edit) and ``irrelevant`` (largest of others).
    said : list of bool
        Whether the model said each target before.
    """
    upper = Suffixes(lm, s.layer, "mlp", [([], x.ids + x.target[:-1]) for x in rows])
    ends = [len(x.ids) - 1 for x in rows]
    targets = Targets(lm, [x.target for x in rows], ends)
    k = upper.keys.float()
    here = k[torch.arange(len(rows)), torch.tensor(ends)]
    whiten = whitening(torch.cat([here, irrelevant]), s.precondition) if s.precondition else None
    shape = mask.shape if whiten is None else (mask.shape[0], len(whiten))
    B = torch.zeros(shape, device=mask.device, requires_grad=True)
    optimiser = torch.optim.SGD([B], lr=s.lr, momentum=0.9, nesterov=True)
    trace: dict[str, list[float]] = {name: [] for name in ("loss", "nll", "margin", "edits", "irrelevant")}
    for step in tqdm(range(s.steps + 1), desc="D", disable=not progress):
        D = torch.where(mask, B if whiten is None else B @ whiten, 0)
        nll = targets.nll_from(upper(k @ D.T)).to(D.device)
        edits, others = activation(D, here), activation(D, irrelevant)
        margin = margin_loss(edits, others, s.margins)
        loss = nll.mean() + margin
        for name, value in zip(trace, (loss, nll.mean(), margin, edits.min(), others.max()), strict=True):
            trace[name].append(value.item())
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not finite at step {step}: lower lr")
        if step == s.steps or (nll.max() < s.stop_loss and margin == 0):
            break
        (B.grad,) = torch.autograd.grad(loss, B)
        optimiser.step()
    return D.detach(), here, trace, targets.said(upper.last)


def whitening(k: Float[Tensor, "n d_k"], ridge: float) -> Float[Tensor, "r d_k"]:
    """The directions that the keys span, each divided by how far they reach along it: M with M C Mᵀ ≈ I.

    C = mean k kᵀ; ``ridge`` times the mean of its eigenvalues is added, so that rare directions are not blown up.
    """
    _, s, directions = torch.linalg.svd(double(k) / len(k) ** 0.5, full_matrices=False)
    kept = s > 1e-6 * s[0]
    size = s[kept].square()
    return (directions[kept] / (size + ridge * size.mean()).sqrt().unsqueeze(1)).to(k)


def check_margins(margins: Any) -> Margins:
    """(α, β, γ) as numbers; α above β would let an irrelevant prompt in."""
    try:
        alpha, beta, gamma = (float(m) for m in margins)
    except (TypeError, ValueError) as error:
        raise TypeError(f"margins must be three numbers (α, β, γ), not {margins!r}") from error
    if (alpha, beta, gamma) == NO_MARGINS:
        return NO_MARGINS
    if not all(0 <= m < math.inf for m in (alpha, beta, gamma)):
        raise ValueError(f"margins must be at least 0 and finite, not {margins!r}")
    if alpha >= beta:
        raise ValueError(f"margins: α must be below β, and is {alpha} with β = {beta}; none are wise.NO_MARGINS")
    return alpha, beta, gamma


def memories(lm: LM, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SideMemories:
    """The side memories that ``SideMemories.about`` and ``SideMemories.tensors`` describe."""
    layer = lm.check_layer(saved["layer"])
    d_out, d_k = lm.memory(layer).shape
    sides = []
    for i, epsilon in enumerate(saved["epsilon"]):
        shards, delta, keys = (tensors[f"{i}:{part}"] for part in ("shards", "delta", "keys"))
        shapes = [tuple(shards.shape[1:]), tuple(delta.shape), keys.shape[1]]
        if shapes != [(d_out, d_k), (d_out, d_k), d_k] or not all(x.isfinite().all() for x in (shards, delta, keys)):
            raise ValueError(f"memories of shapes {shapes} do not fit, or are not finite")
        sides.append(Side(shards, delta, keys, float(epsilon)))
    return SideMemories(layer, [int(token) for token in saved["opening"]], sides)
