"""GRACE: an edit is a ball around a key, beside the weights (Hartvigsen et al. 2022, arXiv 2211.11031).

The codebook of one layer holds entries (k_i, v_i, ε_i, target): what enters W at the last token of an edited prompt,
what shall leave it, how far the entry reaches, and what the model says then. No weight changes. When the model runs,
each key k is looked up,

    i = argmin_i ‖k − k_i‖,      output = v_i  if ‖k − k_i‖ ≤ ε_i,  else W k,

and since what v_i changes at the prompt's last token is kept by attention, it holds for the whole answer. An edit with
key k finds its nearest entry i, at the distance d (algorithm 1 of the paper):

    far,  d > ε_i + ε                  a new entry with radius ε
    near, with the same target         ε_i grows to d, if it is less; the value answers for both prompts
    near, with another target          a new entry; where their balls would touch, both end at the border, d / 2

v_i is found by gradient descent on −log p(target), from W k on. That takes the blocks above the layer only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from .. import guards
from ..editor import Count, NotNegative, Positive, editor, said_before, short
from ..editor import Settings as Common
from ..edits import Edit, changing
from ..forward import Suffixes, Targets
from ..guards import Guard
from ..model import LM
from ..requests import Request, as_requests, check_distinct
from ..tokens import Encoded

ROUNDING = 0.01  # so much farther than d reaches a ball that grew, or rounding could leave its last prompt outside


class Codebook(Guard):
    """Entries in the order in which they were made; ``print`` any of the tensors.

    Attributes
    ----------
    keys : Tensor, (entries, d_k)
    values : Tensor, (entries, d_out)
    epsilon : Tensor, (entries,)
        Radii, Euclidean, in key space.
    targets : list of str
    requests : list of Request
        All that were edited, those of earlier edits first.
    owners : list of int
        For each of them the entry that answers it; -1 where a later edit of the same prompt took it over.
    """

    what = "codebook"

    def __init__(
        self,
        layer: int,
        keys: Float[Tensor, "entries d_k"],
        values: Float[Tensor, "entries d_out"],
        epsilon: Float[Tensor, " entries"],
        targets: Sequence[str],
        requests: Sequence[Request],
        owners: Sequence[int],
    ) -> None:
        super().__init__(layer)
        self.keys, self.values, self.epsilon = keys, values, epsilon
        self.targets, self.requests, self.owners = list(targets), list(requests), list(owners)
        self._squares = keys.square().sum(1)  # ‖k_i‖²: every lookup needs them, and keys never change

    def nearest(self, k: Float[Tensor, "n d_k"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Distance and number of the nearest entry of each key; of equally near ones the first."""
        # By one product; rounding may mix up entries that lie close together, so the best few are measured exactly.
        rank = self._squares - 2 * (k @ self.keys.T)
        few = rank.topk(min(4, len(self.keys)), largest=False).indices.sort(1).values
        distance, which = (k.unsqueeze(1) - self.keys[few]).norm(dim=-1).min(1)
        return distance, few.gather(1, which.unsqueeze(1)).squeeze(1)

    def follow(self, device: torch.device) -> None:
        if self.keys.device != device:
            parts = (self.keys, self.values, self.epsilon, self._squares)
            self.keys, self.values, self.epsilon, self._squares = (part.to(device) for part in parts)

    def change(self, keys: Tensor, output: Tensor) -> Tensor | None:
        k = keys.flatten(0, -2).float()
        square = k.square().sum(1)
        reach = self.epsilon.square() - self._squares  # ‖k − k_i‖² ≤ ε_i², less ‖k‖² on both sides
        slack = 1e-4 * (self._squares.max() + square)  # more than rounding can do
        maybe = (reach + 2 * (k @ self.keys.T)).amax(1) + slack >= square
        if not maybe.any():  # by far the most common case: one product and no copy
            return None
        distance, entry = self.nearest(k[maybe])
        inside = distance <= self.epsilon[entry]
        changed, rows = output.clone(), maybe.nonzero().squeeze(1)[inside]
        changed.view(len(k), -1)[rows] = self.values[entry[inside]].to(output.dtype)
        return changed

    def explain(self, lm: LM, prompts: Sequence[tuple[str, list[int]]]) -> list[dict[str, Any]]:
        """For each prompt: token, entry, target, distance, epsilon, decided.

        Every token is looked up. Shown is the last one inside a ball, or else the prompt's last.
        """
        rows = []
        looked = guards.keys(lm, self.layer, [ids for _, ids in prompts])
        self.follow(looked[0].device)
        for (text, ids), k in zip(prompts, looked, strict=True):
            distance, entry = self.nearest(k)
            inside = distance <= self.epsilon[entry]
            at = int(inside.nonzero()[-1]) if inside.any() else len(ids) - 1
            i = int(entry[at])
            row = {"prompt": text, "token": lm.tokenizer.decode([ids[at]]), "entry": i, "target": self.targets[i]}
            row |= {"distance": distance[at].item(), "epsilon": self.epsilon[i].item(), "decided": bool(inside[at])}
            rows.append(row)
        return rows

    def continues(self, earlier: Guard) -> bool:
        assert isinstance(earlier, Codebook)
        n = len(earlier.requests)
        return n < len(self.requests) and self.requests[:n] == earlier.requests

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values, "epsilon": self.epsilon}

    def about(self) -> dict[str, Any]:
        requests = [asdict(request) for request in self.requests]
        return {"layer": self.layer, "targets": self.targets, "requests": requests, "owners": self.owners}

    def __repr__(self) -> str:
        floats = sum(tensor.numel() for tensor in self.tensors().values())
        return f"<codebook of layer {self.layer}: {len(self.keys)} entries, {floats} numbers>"


@dataclass(frozen=True)
class Settings(Common):
    """GRACE's settings; the defaults are those of the authors' code.

    Parameters
    ----------
    layer : int, default the middle one
        The block whose W is watched.
    epsilon : float
        ε, the radius of a new entry: a Euclidean distance in the space of keys. In bfloat16 rounding alone moves a key
        by some percent of its length: edit a model in the precision that it will run in.
    steps : int
        Updates of a value, at most.
    lr : float
        Adam's learning rate, in the units of the residual stream.
    stop_loss : float
        An entry is done when −log p(target) / (number of its tokens) of each of its prompts is below.
    """

    PRESETS = {
        "llama-30x576": {"layer": 22, "epsilon": 1.0, "lr": 0.5},  # SmolLM2-135M
        "llama-6x96": {"layer": 1, "epsilon": 3.0, "lr": 0.5},  # tinyworld
    }

    layer: int = 0
    epsilon: Positive = 1.0
    steps: Count = 100
    lr: Positive = 1.0
    stop_loss: NotNegative = 0.01


@editor(Settings)
def edit(
    lm: LM,
    requests: Request | Sequence[Request],
    *,
    previous: Edit | None = None,
    progress: bool = False,
    **settings: Any,
) -> Edit:
    """Put an entry into the codebook for each request, or let an entry near it grow.

    Parameters
    ----------
    lm : LM
        Its weights stay as they are.
    requests : Request or list of Request
        Taken in their order; one prompt may not stand in it twice. In chat the model learns to stop after the target.
    previous : Edit, optional
        A GRACE edit in force on this layer, the latest there: its codebook is continued.
    progress : bool, default False
        Show a progress bar.
    **settings
        Those of ``grace.Settings``. An omitted one comes from the model's preset, or else from the authors' code;
        ``edit.settings`` says what was used.

    Returns
    -------
    Edit
        ``edit.guard`` is the codebook; ``edit.deltas`` is empty.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or a GRACE edit lies on this layer and is not ``previous``. The model is left as
        it was.
    """
    requests = as_requests(requests)
    check_distinct(requests)
    s = Settings.of(lm, previous, **settings)
    book = guards.continued(lm, Codebook, s.layer, previous)
    encoded = lm.encode(requests, ended=True)
    with changing(lm, []):
        unedited = Suffixes(lm, s.layer, "mlp", cut(encoded))
        k, v0 = unedited.keys[:, 0].float(), unedited.mlp[:, 0].float()
        if book is not None:
            book.follow(k.device)
        new, actions = place(book, s.layer, k, v0, requests, s.epsilon)
        traces, notes = train(lm, new, len(requests), s, progress)
        distance, entry = new.nearest(k)  # a ball grows or is cut for the sake of one, and later keys lie between
        wrong = (distance > new.epsilon[entry]) | (entry != torch.tensor(new.owners[-len(k) :], device=k.device))
        lost = [request.text for request, yes in zip(requests, wrong.tolist(), strict=True) if yes]
        lost += [] if book is None else cut_off(lm, book, new)
        notes += [f"{text!r} is not answered by its own entry, other keys are nearer: lower epsilon" for text in lost]
        used = s.used() | {"actions": actions}
        return Edit(lm, "grace", requests, used, {}, traces=traces, notes=notes, guard=new, previous=previous)


def cut_off(lm: LM, book: Codebook, new: Codebook) -> list[str]:
    """The texts of earlier requests whose key lies outside its ball, now that a split has made the ball smaller."""
    smaller = (new.epsilon[: len(book.epsilon)] < book.epsilon).tolist()
    asked = [r for r, owner in zip(book.requests, book.owners, strict=True) if owner >= 0 and smaller[owner]]
    if not asked:
        return []
    keys = torch.stack([k[-1] for k in guards.keys(lm, new.layer, [x.ids for x in lm.encode(asked)])])
    distance, entry = new.nearest(keys)
    outside = (distance > new.epsilon[entry]).tolist()
    return [request.text for request, yes in zip(asked, outside, strict=True) if yes]


def place(
    book: Codebook | None,
    layer: int,
    k: Float[Tensor, "requests d_k"],
    v0: Float[Tensor, "requests d_out"],
    requests: Sequence[Request],
    epsilon: float,
) -> tuple[Codebook, list[str]]:
    """The codebook's arithmetic: for each key in turn a new entry, a larger radius, or a border between two.

    Parameters
    ----------
    book : Codebook or None
        The one that is continued; it is left as it is.
    layer : int
    k, v0 : Tensor
        The requests' keys, and what W returns for them: the value of a new entry until it is trained.
    requests : list of Request
        Their targets are compared as they are: equal texts have equal tokens.
    epsilon : float
        The radius of a new entry.

    Returns
    -------
    Codebook
    list of str
        What was done for each key: "add", "grow", "split", or "replace" where an entry with this very key had
        another target and is given the new one.
    """
    keys: list[Tensor] = [] if book is None else list(book.keys)
    values: list[Tensor] = [] if book is None else list(book.values)
    radii, names, owners = ([], [], []) if book is None else (book.epsilon.tolist(), [*book.targets], [*book.owners])
    done: list[str] = []
    for key, value, request in zip(k, v0, requests, strict=True):
        target = request.target
        distances = (torch.stack(keys) - key).norm(dim=1) if keys else key.new_empty(0)
        i = int(distances.argmin()) if keys else -1
        d = distances[i].item() if keys else float("inf")
        near = bool(keys) and d <= radii[i] + epsilon
        same = bool(keys) and d <= 1e-4 * key.norm().item()  # the same prompt: nearer than rounding can tell
        if near and names[i] == target:
            radii[i] = max(radii[i], d * (1 + ROUNDING))
            done.append("grow")
        elif same:
            names[i], values[i] = target, value
            owners = [-1 if owner == i else owner for owner in owners]
            done.append("replace")
        else:
            what, radius = "add", epsilon
            if near:
                what, radius = "split", min(epsilon, d / 2)
                radii[i] = min(radii[i], d / 2)
            keys.append(key)
            values.append(value)
            radii.append(radius)
            names.append(target)
            done.append(what)
            i = len(keys) - 1
        owners.append(i)
    tensors = torch.stack(keys), torch.stack(values), torch.tensor(radii, device=k.device)
    everyone = [*([] if book is None else book.requests), *requests]
    return Codebook(layer, *tensors, names, everyone, owners), done


@torch.inference_mode(False)
def train(
    lm: LM, book: Codebook, new: int, s: Settings, progress: bool = False
) -> tuple[list[dict[str, list[float]]], list[str]]:
    """Train the values of the entries that the last ``new`` requests belong to, in place.

    Entries do not touch each other, so they are trained together. The requests of one entry are taken in order: the
    value is trained on the first, then on the first and second, and so on, as one edit after another would.

    Returns
    -------
    list of dict
        For each new request, the list ``loss`` at each step (nats a token).
    list of str
        Notes: targets that were said before, and those that are not said now.
    """
    requests, old = book.requests, len(book.requests) - new
    touched = dict.fromkeys(book.owners[old:])
    members = {e: [i for i, owner in enumerate(book.owners) if owner == e] for e in touched}
    traces: list[dict[str, list[float]]] = [{"loss": []} for _ in range(new)]
    notes: list[str] = []
    turns = {e: [i for i in rows if i >= old] for e, rows in members.items()}
    for turn in range(max(map(len, turns.values()), default=0)):
        now = {e: rows[turn] for e, rows in turns.items() if turn < len(rows)}  # each entry's request in this turn
        rows = [(n, i) for n, e in enumerate(now) for i in members[e] if i <= now[e]]
        encoded = lm.encode([requests[i] for _, i in rows], ended=True)
        upper = Suffixes(lm, book.layer, "mlp", cut(encoded))
        targets = Targets(lm, [x.target for x in encoded], [0] * len(rows))
        where = book.values.device
        entry, which = (torch.tensor(x, device=where) for x in ([n for n, _ in rows], list(now)))
        v = book.values[which].clone().requires_grad_()
        optimiser = torch.optim.Adam([v], lr=s.lr)
        active = torch.ones(len(now), dtype=torch.bool, device=where)
        for step in tqdm(range(s.steps + 1), desc="values", disable=not progress):
            last = upper(v[entry] - upper.mlp[:, 0])  # v in the place of W k
            nll = targets.nll_from(last).to(where)
            if not torch.isfinite(nll).all():
                raise ValueError(f"the loss is not finite at step {step}: lower lr")
            worst = v.new_zeros(len(now)).scatter_reduce(0, entry, nll.detach(), "amax")
            for n, i in enumerate(now.values()):
                if active[n]:
                    traces[i - old]["loss"].append(nll[rows.index((n, i))].item())
            active &= worst >= s.stop_loss
            if step == s.steps or not active.any():
                break
            (gradient,) = torch.autograd.grad(nll[active[entry]].sum(), v)
            kept, v.grad = v.detach().clone(), gradient
            optimiser.step()
            with torch.no_grad():
                v[~active] = kept[~active]
        book.values[which] = v.detach()
        for (_, i), before, after in zip(rows, targets.said(upper.last), targets.said(last), strict=True):
            request = requests[i]
            notes += said_before([request], [before and i in now.values()])
            notes += [] if after else [f"{request.text!r} is not answered {short(request.target)!r} yet: raise steps"]
    return traces, notes


def codebook(lm: LM, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codebook:
    """The codebook that ``Codebook.about`` and ``Codebook.tensors`` describe."""
    keys, values, epsilon = (tensors[name] for name in ("keys", "values", "epsilon"))
    layer, n = lm.check_layer(saved["layer"]), len(saved["targets"])
    d_out, d_k = lm.memory(layer).shape
    shapes = [tuple(x.shape) for x in (keys, values, epsilon)]
    if shapes != [(n, d_k), (n, d_out), (n,)] or not all(x.isfinite().all() for x in (keys, values, epsilon)):
        raise ValueError(f"entries of shapes {shapes} do not fit, or are not finite")
    requests = [Request(**request) for request in saved["requests"]]
    return Codebook(layer, keys, values, epsilon, saved["targets"], requests, [int(x) for x in saved["owners"]])


def cut(encoded: Sequence[Encoded]) -> list[tuple[list[int], list[int]]]:
    """Prompts and targets, cut before the prompt's last token: GRACE acts on the first token of what is right of it."""
    return [(x.ids[:-1], [x.ids[-1], *x.target[:-1]]) for x in encoded]
