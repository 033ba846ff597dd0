"""Running the blocks above a layer again and again, with something added to what the layer's MLP returns.

Whoever trains a value or a side memory changes one layer. What lies below it does not change, nor what stands left
of the tokens that are changed. ``Suffixes`` runs the whole model once, keeps all that later steps need, and from then
on runs only the blocks above the layer, only on the tokens from the first changed one on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import hooks, prefix

Place = Literal["mlp", "block"]


class Suffixes:
    """Rows of tokens from the first changed one on, ready to be run above a layer with δ at that token, or at all.

    Parameters
    ----------
    lm : LM
    layer : int
        The block that δ is added to.
    place : {"mlp", "block"}
        Whether δ joins the output of the block's MLP or of the block.
    rows : list of (prefix, suffix)
        Token lists; the suffix starts with the first changed token.

    Attributes
    ----------
    keys, mlp, base, last : Tensor, (rows, suffix, d)
        Unedited: what enters the layer's down-projection, what leaves it, what the block returns and the last block.
    """

    folded = False

    def __init__(self, lm: Any, layer: int, place: Place, rows: Sequence[tuple[list[int], list[int]]]) -> None:
        self.lm, self.layer, self.place = lm, layer, place
        inputs = prefix.inputs(lm, rows)
        ends = {"value": lm.down_projection(layer), "block": lm.blocks[layer], "last": lm.blocks[-1]}
        # Of the logits, the first token's are enough for the check.
        first_only = hooks.replace(lm.head, lambda hidden: hidden[:, :1], at="input")
        entries = {"block": lm.blocks[layer], "key": lm.down_projection(layer)}
        with torch.no_grad(), hooks.calls(lm.blocks[layer:]) as self.calls, hooks.read(ends) as seen, first_only:
            with hooks.read(entries, at="input") as into:
                logits = lm.model(**inputs, use_cache=False).logits
        if len(self.calls) != lm.n_layers - layer:
            raise ValueError(f"{type(lm.model).__name__} does not run each of its blocks once, as an edit of one needs")
        self.base, self.last = seen["block"], seen["last"]  # (rows, suffix, d): without δ
        self.mlp = seen["value"].reshape(self.base.shape)  # OPT's blocks flatten rows and tokens
        self.keys = into["key"].reshape(*self.base.shape[:2], -1)
        self.value = (self.mlp if place == "mlp" else self.base)[:, 0]  # what δ is added to
        every = torch.arange(len(rows), device=self.base.device)
        self.at = every, torch.zeros_like(every)  # row and column of each first token
        self.left = inputs["attention_mask"][:, : -self.base.shape[1]].bool()  # which tokens of the prefix are real
        self._check(into["block"], logits)

    def fold(self) -> Suffixes:
        """The same with the one token of each row of the second half behind its row of the first: without padding."""
        new, width = copy.copy(self), self.base.shape[1]
        main, side = self.at[0].cpu().chunk(2)  # which index tensors on any device
        fold = prefix.Fold(main, side, width, self.left)
        new.base, new.calls, new.folded = fold(self.base), fold(self.calls), True
        column = self.at[1].cpu()
        at = torch.cat([main, main]), torch.cat([column[main], column[side] + width])
        new.at = at[0].to(self.base.device), at[1].to(self.base.device)
        return new

    def __call__(self, delta: Tensor) -> Float[Tensor, "rows suffix d"]:
        """The last block's output with δ at each row's first token, (rows, d), or at all tokens, (rows, suffix, d)."""
        hidden = self._enter(delta, self.place)
        for block, (args, kwargs) in zip(self.lm.blocks[self.layer + 1 :], self.calls[1:], strict=True):
            hidden = hooks.first(block(hidden, *args, **kwargs))
        return hidden

    def _enter(self, delta: Tensor, place: Place) -> Float[Tensor, "rows suffix d"]:
        """The edited block's output with δ."""
        delta, everywhere = delta.to(self.base.dtype), delta.dim() == 3
        norm = self.lm.post_norm(self.layer)
        if place == "mlp" and norm is not None:
            mlp = self.mlp if everywhere else self.mlp[:, 0]
            delta = norm(mlp + delta) - norm(mlp)
        return self.base + delta if everywhere else self.base.index_put(self.at, delta, accumulate=True)

    @torch.no_grad()
    def _check(self, entering: Tensor, logits: Tensor) -> None:
        """That δ enters the block, and the head reads it, as this module believes; some architectures rescale."""
        lm, kind = self.lm, type(self.lm.model).__name__
        lm.check_logits(self.last[:, 0], logits[:, 0])
        probe = torch.randn(self.base.shape[-1], generator=torch.Generator().manual_seed(0)).to(self.base)
        probe = probe * self.mlp[:, 0].norm() / len(self.mlp) ** 0.5 / probe.norm()
        with hooks.replace(lm.down_projection(self.layer), lambda v: v + probe):
            args, kwargs = self.calls[0]
            block = hooks.first(lm.blocks[self.layer](entering, *args, **kwargs))
        expected = self._enter(probe.expand(len(self.mlp), -1), "mlp")
        # Each sum rounds by its own size, in half precision visibly.
        size = (block.abs() + self.base.abs() + self.mlp.abs())[:, 0]
        tolerance = max(1e-2, 8 * torch.finfo(block.dtype).eps)
        if not ((block - expected).abs()[:, 0] <= tolerance * (1 + size)).all():
            raise ValueError(f"{kind} adds its MLP's output to the residual stream in a way minilib does not know")


class Targets:
    """What rows shall say: each target's tokens, and the column of the row that predicts its first.

    Parameters
    ----------
    lm : LM
    targets : list of list of int
    first : list of int
    """

    def __init__(self, lm: Any, targets: Sequence[list[int]], first: Sequence[int]) -> None:
        asked = [
            (r, first[r] + j, t, 1 / len(target)) for r, target in enumerate(targets) for j, t in enumerate(target)
        ]
        self.lm, self.rows = lm, len(targets)
        self.row, self.column, self.token, self.weight = (torch.tensor(x) for x in zip(*asked, strict=True))

    def nll(self, last: Float[Tensor, "rows suffix d"]) -> Float[Tensor, " rows"]:
        """−log p(target) / (number of its tokens) from the last block's output (nats)."""
        log_p = self.lm.unembed(last[self.row, self.column]).log_softmax(-1)
        row, token, weight = (x.to(log_p.device) for x in (self.row, self.token, self.weight))
        said = log_p.gather(1, token.unsqueeze(1)).squeeze(1)
        return log_p.new_zeros(self.rows).index_add(0, row, -weight * said)

    @torch.no_grad()
    def said(self, last: Float[Tensor, "rows suffix d"]) -> list[bool]:
        """Whether each token of each target is the likeliest, the earlier ones given."""
        right = self.lm.unembed(last[self.row, self.column]).argmax(-1).cpu() == self.token
        return [bool(right[self.row == r].all()) for r in range(self.rows)]


def double(x: Tensor) -> Tensor:
    """In float64; on the CPU, where the device has none (Apple's GPUs)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def wide(x: Tensor) -> Tensor:
    """In float32 at least: losses are not summed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
