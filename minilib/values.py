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
on the tokens from the subject on. All requests are one batch; each stops on its own. ``prefix.py`` says how
the KL prompt, of which one token is run, shares a row with the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from . import hooks
from .lm import LM
from .prefix import Fold, Prefix
from .requests import SLOT, Request

Place = Literal["mlp", "block"]
KL_PROMPT = "{} is a"


@dataclass
class Values:
    """v* for each request, and how it was found."""

    v_star: Float[Tensor, "requests d_out"]
    v0: Float[Tensor, "requests d_out"]  # the value there before
    traces: list[dict[str, list[float]]]  # for each request: loss, nll, kl, decay and norm at each step


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

    Returns
    -------
    Values
        The weights of the model are not touched.
    """
    terms: dict[str, Any] = {"weight_decay": weight_decay, "kl_factor": kl_factor, "contexts": contexts}
    objective = Objective(lm, requests, layer, place, **terms)
    v0 = objective.v0
    deltas = [torch.zeros_like(v, requires_grad=True) for v in v0]
    optimisers = [torch.optim.Adam([delta], lr=lr) for delta in deltas]
    names = ("loss", "nll", "kl", "decay", "norm")
    traces: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in requests]
    held = active = list(range(len(requests)))  # the requests in the batch, and those of them that go on
    for step in tqdm(range(steps), desc="v*", disable=not progress):
        if 2 * len(active) <= len(held):  # half are done: go on with a smaller batch
            held = active
            objective = Objective(lm, [requests[i] for i in held], layer, place, **terms)
        parts = objective(torch.stack([deltas[i] for i in held]))
        for i in active:
            for name, value in parts.items():
                traces[i][name].append(value[held.index(i)].item())
            traces[i]["norm"].append(deltas[i].norm().item())
        active = [i for i in active if not traces[i]["loss"][-1] < stop_loss]
        if step == steps - 1 or not active:
            break
        loss = parts["loss"][[held.index(i) for i in active]].sum()
        wanted = [deltas[i] for i in active]
        for i, gradient in zip(active, torch.autograd.grad(loss, wanted), strict=True):
            deltas[i].grad = gradient
            optimisers[i].step()
            limit = clamp_factor * v0[i].norm()
            with torch.no_grad():
                if (norm := deltas[i].norm()) > limit:
                    deltas[i] *= limit / norm
    delta = torch.stack([d.detach() for d in deltas])
    return Values(v0 + delta, v0, traces)


class Objective:
    """The loss as a function of δ, with all that does not depend on δ computed once.

    Each request has one row a context (prompt and target) and one row for the KL prompt. A row is cut at the
    subject's last token: what is left of it is the prefix, kept as attention's keys and values; the rest, the
    suffix, starts with the subject's last token and is run anew in each step, from the edited layer upwards.
    After the first pass the KL prompt's one token becomes a last column of its request's rows.
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
        self.lm, self.requests, self.layer, self.place = lm, list(requests), layer, place
        self.weight_decay, self.kl_factor = weight_decay, kl_factor
        self.rows_each = len(contexts) + 1
        prefixes: list[list[int]] = []
        suffixes: list[list[int]] = []
        asked: list[tuple[int, int, int, int, float]] = []  # row, column, token to predict, request, weight
        for i, request in enumerate(requests):
            target = lm.encode_target(request.target)
            for context in contexts:
                ids, subject = lm.encode_request(request, context)
                lm.check_length([(ids, target)])
                first = len(ids) - 1 - subject  # the column that predicts the target's first token
                weight = 1 / (len(target) * len(contexts))
                asked += [(len(suffixes), first + j, token, i, weight) for j, token in enumerate(target)]
                prefixes.append(ids[:subject])
                suffixes.append(ids[subject:] + target[:-1])
            ids, subject = lm.encode_request(Request(KL_PROMPT, request.subject, request.target))
            prefixes.append(ids[:subject])
            suffixes.append([ids[subject]])  # read at the subject: what follows it does not matter
        self.row, self.column, self.token, self.owner, self.weight = (
            torch.tensor(x, device=lm.device) for x in zip(*asked, strict=True)
        )
        # δ enters, and each KL row is read, in a row's first column.
        rows = torch.arange(len(suffixes), device=lm.device)
        self.kl_row, self.kl_column = rows[self.rows_each - 1 :: self.rows_each], 0
        self.places, self.request_of_place = (rows, torch.zeros_like(rows)), rows // self.rows_each
        self._run_once(prefixes, suffixes)

    @torch.no_grad()
    def _run_once(self, prefixes: list[list[int]], suffixes: list[list[int]]) -> None:
        """One pass over the unedited model: it leaves all that every step needs."""
        lm, layer = self.lm, self.layer
        right = lm.batch(suffixes)
        lengths = torch.tensor([len(p) for p in prefixes], device=lm.device)
        right["position_ids"] = right["position_ids"] + lengths[:, None]
        seen = torch.zeros(len(prefixes), 0, dtype=torch.long, device=lm.device)
        if lengths.any():
            cache, unique = Prefix(), sorted({*map(tuple, prefixes)})  # those of one template are run once
            # transformers renamed the argument
            name = "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"
            left = lm.batch(unique, side="left")
            with hooks.read({"last": lm.blocks[-1]}, stop=True):  # the head is not needed
                lm.model(**left, **{name: cache}, use_cache=True)
            which = torch.tensor([unique.index(tuple(p)) for p in prefixes], device=lm.device)
            cache.freeze(left["attention_mask"], which)
            seen = left["attention_mask"][which]
            right["attention_mask"] = torch.cat([seen, right["attention_mask"]], dim=1)
            right[name] = cache
        calls: list[tuple[tuple, dict[str, Any]]] = []  # how the model calls its blocks, from `layer` on
        hooked = [
            block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
            for block in lm.blocks[layer:]
        ]
        try:
            ends = {"value": lm.down_projection(layer), "block": lm.blocks[layer], "last": lm.blocks[-1]}
            with hooks.read(ends) as states:
                logits = lm.model(**right, use_cache=False).logits
        finally:
            for handle in hooked:
                handle.remove()
        self.base = states["block"]  # (rows, suffix, d): the block's output without δ
        self.value = states["value"].reshape(self.base.shape)[:, 0]  # (rows, d): the MLP's output at the subject
        self.calls = [(args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}) for args, kwargs in calls]
        self.v0 = _wide((self.value if self.place == "mlp" else self.base[:, 0])[:: self.rows_each])
        self._check(calls[0], logits, states["last"])
        self.reference = self._log_softmax(states["last"])[1]
        self._fold(seen.bool(), states["last"])

    def _check(self, call: tuple[tuple, dict], logits: Tensor, last: Tensor) -> None:
        """That δ enters the block, and the head reads it, as this module believes; some architectures rescale."""
        lm, kind = self.lm, type(self.lm.model).__name__
        head, _ = self._logits(last)
        if not torch.allclose(head, _wide(logits[self.row, self.column]), rtol=1e-2, atol=1e-2):
            raise ValueError(f"{kind} turns its last hidden state into logits in a way that minilib does not know")
        if self.place == "mlp":
            probe = torch.randn(self.base.shape[-1], generator=torch.Generator().manual_seed(0)).to(self.base)
            probe = probe * self.value.norm() / len(self.value) ** 0.5 / probe.norm()
            with hooks.replace(lm.down_projection(self.layer), lambda v: v + probe):
                block = lm.blocks[self.layer](*call[0], **call[1])
            block = block[0] if isinstance(block, tuple) else block
            if not torch.allclose(block[:, 0], self._enter(probe.expand_as(self.value))[:, 0], rtol=1e-2, atol=1e-2):
                raise ValueError(f"{kind} adds its MLP's output to the residual stream in a way minilib does not know")

    def _fold(self, seen: Tensor, last: Tensor) -> None:
        """Rows without the padding of the KL prompts, where they are found to give the same."""
        if (width := self.base.shape[1]) == 1:  # there is no padding
            return
        padded, before = vars(self).copy(), self._log_softmax(last)
        rows = torch.arange(len(self.base), device=seen.device)
        main = rows[(rows + 1) % self.rows_each > 0]
        side = main - main % self.rows_each + self.rows_each - 1  # the KL row of each one's request
        both, new, fold = torch.cat([main, side]), rows[: len(main)], Fold(main, side, width, seen)
        self.base, self.calls = fold(self.base), fold(self.calls)
        self.row = self.row - self.row // self.rows_each
        self.kl_row, self.kl_column = new[:: self.rows_each - 1], width
        self.places = new.repeat(2), ((both + 1) % self.rows_each == 0) * width
        self.value, self.request_of_place = self.value[both], self.request_of_place[both]
        pairs = zip(self._log_softmax(self._rise(self.base)), before, strict=True) if fold.masked else ()
        if not fold.masked or not all(torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in pairs):
            vars(self).update(padded)

    def _enter(self, delta: Float[Tensor, "places d"]) -> Float[Tensor, "rows suffix d"]:
        """The block's output with δ at each place of a subject's last token."""
        delta, norm = delta.to(self.base.dtype), self.lm.post_norm(self.layer)
        if self.place == "mlp" and norm is not None:
            delta = norm(self.value + delta) - norm(self.value)
        return self.base.index_put(self.places, delta, accumulate=True)

    def _rise(self, hidden: Float[Tensor, "rows suffix d"]) -> Float[Tensor, "rows suffix d"]:
        """Through the blocks above the layer."""
        for block, (args, kwargs) in zip(self.lm.blocks[self.layer + 1 :], self.calls[1:], strict=True):
            output = block(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits where a target's token is predicted, and at the subject of each KL prompt."""
        asked = torch.cat([hidden[self.row, self.column], hidden[self.kl_row, self.kl_column]])
        return self.lm.unembed(asked).split([len(self.row), len(self.kl_row)])

    def _log_softmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        target, kl = self._logits(hidden)
        return target.log_softmax(-1), kl.log_softmax(-1)

    def __call__(self, delta: Float[Tensor, "requests d"]) -> dict[str, Float[Tensor, "requests"]]:
        """loss, nll, kl and decay of each request (nats)."""
        target, edited = self._log_softmax(self._rise(self._enter(delta[self.request_of_place])))
        said = target.gather(1, self.token.unsqueeze(1)).squeeze(1)
        nll = delta.new_zeros(len(delta)).index_add(0, self.owner, -(self.weight * said).to(delta.dtype))
        kl = self.kl_factor * (edited.exp() * (edited - self.reference)).sum(-1)
        decay = self.weight_decay * delta.norm(dim=1) / self.v0.norm(dim=1) ** 2
        return {"loss": nll + kl + decay, "nll": nll, "kl": kl, "decay": decay}


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: losses are not summed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
