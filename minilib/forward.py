"""Running only what depends on a change: from its first token on, and from its layer upwards.

Who searches a value or trains a side memory runs the model again and again, with one layer changed. In a causal model
nothing to the left of the first changed token depends on that, and nothing below the layer: ``inputs`` keeps the left
part as attention's keys and values, and ``Suffixes`` runs the blocks above the layer only, on the tokens from there on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from . import hooks
from .model import LM

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]  # prefix and suffix of each
Place = Literal["mlp", "block"]


@torch.no_grad()
def inputs(lm: LM, rows: Rows) -> dict[str, Any]:
    """What a model is called with to run the suffix of each row, its prefix being kept.

    Parameters
    ----------
    lm : LM
    rows : list of (prefix, suffix)
        Token lists; a prefix may be empty. Equal prefixes are run once.

    Returns
    -------
    dict
        Keywords for ``lm.model``, to be called with ``use_cache=False``; suffixes are padded on the right. The
        same inputs can be run again and again.
    """
    given: dict[str, Any] = lm.batch([suffix for _, suffix in rows])
    lengths = torch.tensor([len(prefix) for prefix, _ in rows], device=given["input_ids"].device)
    if not lengths.any():
        return given
    cache = _Prefix()
    # transformers renamed the argument
    name = "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"
    unique = sorted({tuple(prefix) for prefix, _ in rows})
    left = lm.batch(unique, side="left")
    with lm.evaluating(), hooks.read({"last": lm.blocks[-1]}, stop=True):  # the head is not needed
        lm.model(**left, **{name: cache}, use_cache=True)
    which = torch.tensor([unique.index(tuple(prefix)) for prefix, _ in rows])
    cache.freeze(left["attention_mask"], which)
    given["position_ids"] = given["position_ids"] + lengths[:, None]
    given["attention_mask"] = torch.cat([left["attention_mask"][which], given["attention_mask"]], dim=1)
    given[name] = cache
    return given


class _Prefix(DynamicCache):
    """Keys and values that are read in every run, and never added to."""

    frozen = False

    def freeze(self, mask: Tensor, which: Tensor) -> None:
        """From here on ``update`` keeps nothing. Row i gets prefix ``which[i]``; padding is cleared (it may be NaN)."""
        padding = mask[:, None, :, None] == 0
        for layer in self.layers:
            layer.keys, layer.values = (
                x.masked_fill(padding.to(x.device), 0)[which] for x in (layer.keys, layer.values)
            )
        self.frozen = True

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], dim=-2), torch.cat([layer.values, value_states], dim=-2)


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

    def __init__(self, lm: LM, layer: int, place: Place, rows: Sequence[tuple[list[int], list[int]]]) -> None:
        self.lm, self.layer, self.place = lm, layer, place
        given = inputs(lm, rows)
        ends = {"value": lm.down_projection(layer), "block": lm.blocks[layer], "last": lm.blocks[-1]}
        # Of the logits, the first token's are enough for the check.
        first_only = hooks.replace(lm.head, lambda hidden: hidden[:, :1], at="input")
        entries = {"block": lm.blocks[layer], "key": lm.down_projection(layer)}
        with torch.no_grad(), hooks.calls(lm.blocks[layer:]) as self.calls, hooks.read(ends) as seen, first_only:
            with hooks.read(entries, at="input") as into:
                logits = lm.model(**given, use_cache=False).logits
        if len(self.calls) != lm.n_layers - layer:
            raise ValueError(f"{type(lm.model).__name__} does not run each of its blocks once, as an edit of one needs")
        self.base, self.last = seen["block"], seen["last"]  # (rows, suffix, d): without δ
        self.mlp = seen["value"].reshape(self.base.shape)  # OPT's blocks flatten rows and tokens
        self.keys = into["key"].reshape(*self.base.shape[:2], -1)
        self.value = (self.mlp if place == "mlp" else self.base)[:, 0]  # what δ is added to
        every = torch.arange(len(rows), device=self.base.device)
        self.at = every, torch.zeros_like(every)  # row and column of each first token
        self.left = given["attention_mask"][:, : -self.base.shape[1]].bool()  # which tokens of the prefix are real
        self._check(into["block"], logits)

    def fold(self) -> Suffixes:
        """The same with the one token of each row of the second half behind its row of the first: without padding."""
        new, width = copy.copy(self), self.base.shape[1]
        main, side = self.at[0].cpu().chunk(2)  # which index tensors on any device
        fold = Fold(main, side, width, self.left)
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

    def __init__(self, lm: LM, targets: Sequence[list[int]], first: Sequence[int]) -> None:
        asked = [
            (r, first[r] + j, t, 1 / len(target)) for r, target in enumerate(targets) for j, t in enumerate(target)
        ]
        self.lm, self.rows = lm, len(targets)
        self.row, self.column, self.token, self.weight = (torch.tensor(x) for x in zip(*asked, strict=True))

    def states(self, last: Float[Tensor, "rows suffix d"]) -> Float[Tensor, "tokens d"]:
        """Of the last block's output, those from which the targets' tokens are predicted."""
        return last[self.row, self.column]

    def nll(self, log_p: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " rows"]:
        """−log p(target) / (number of its tokens) of each row, given the predictions at ``states`` (nats)."""
        row, token, weight = (x.to(log_p.device) for x in (self.row, self.token, self.weight))
        said = log_p.gather(1, token.unsqueeze(1)).squeeze(1)
        return log_p.new_zeros(self.rows).index_add(0, row, -weight * said)

    def nll_from(self, last: Float[Tensor, "rows suffix d"]) -> Float[Tensor, " rows"]:
        """The same from the last block's output."""
        return self.nll(self.lm.unembed(self.states(last)).log_softmax(-1))

    @torch.no_grad()
    def likeliest(self, logits: Float[Tensor, "tokens vocabulary"]) -> list[bool]:
        """Whether each token of each target is the likeliest, given the predictions at ``states``."""
        right = logits.argmax(-1).cpu() == self.token
        return [bool(right[self.row == r].all()) for r in range(self.rows)]

    def said(self, last: Float[Tensor, "rows suffix d"]) -> list[bool]:
        """The same from the last block's output."""
        return self.likeliest(self.lm.unembed(self.states(last)))


def double(x: Tensor) -> Tensor:
    """In float64; on the CPU, where the device has none (Apple's GPUs)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def wide(x: Tensor) -> Tensor:
    """In float32 at least: losses are not summed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Fold:
    """Turns what a block is called with for padded rows into the same for folded rows.

    The search for v* runs, beside each prompt, one token of another text, for the KL term. As rows of one batch they
    would all be as long as the longest: as a last column that sees only its own prefix, the token costs one column
    and no row. A search for one chat request takes a quarter less time that way, with the same numbers.

    Parameters
    ----------
    main, side : Tensor of int
        For each folded row, the row that it continues, and the row whose first token becomes its last column.
    width : int
        Tokens of a padded row; a folded one has one more.
    seen : Tensor of bool, (rows, prefix)
        Which tokens of the prefix are no padding.
    """

    def __init__(
        self, main: Int[Tensor, " folded"], side: Int[Tensor, " folded"], width: int, seen: Bool[Tensor, "rows prefix"]
    ) -> None:
        self.main, self.side, self.rows, self.width, self.prefix = main, side, len(seen), width, seen.shape[1]
        self.short = int(seen[side].sum(1).max()) if self.prefix else 0  # the longest prefix of a side row
        self._cache: Any = None

    def __call__(self, x: Any) -> Any:
        """Fold a hidden state, a mask, a cache, or a tuple or dict of them; leave everything else."""
        if isinstance(x, dict):
            return {name: self(value) for name, value in x.items()}
        if type(x) in (tuple, list):
            return type(x)(self(value) for value in x)
        if isinstance(x, DynamicCache):
            return self._fold_cache(x)
        if not isinstance(x, Tensor):
            return x
        if x.dim() == 4 and x.shape[-2:] == (self.width, self.prefix + self.width):
            return self._fold_mask(x.expand(self.rows, -1, -1, -1))
        if x.shape[:2] == (self.rows, self.width):
            return torch.cat([x[self.main], x[self.side, :1]], dim=1)
        return x

    def _fold_mask(self, mask: Tensor) -> Tensor:
        """(rows, heads, width, prefix + width), of bool or to be added, to two prefixes and one more column."""
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        sizes = [self.prefix, self.width]
        left, right = mask[self.main].split(sizes, dim=-1)
        side_left, side_right = mask[self.side, :, :1].split(sizes, dim=-1)
        side_left, side_right = side_left[..., self.prefix - self.short :], side_right[..., :1]

        def hide(x: Tensor, height: int) -> Tensor:
            return x.new_full((*x.shape[:2], height, x.shape[-1]), blocked)

        above = torch.cat([left, hide(side_left, self.width), right, hide(side_right, self.width)], dim=-1)
        below = torch.cat([hide(left, 1), side_left, hide(right, 1), side_right], dim=-1)
        return torch.cat([above, below], dim=-2)

    def _fold_cache(self, cache: Any) -> Any:
        if self._cache is None:
            self._cache = folded = type(cache)()
            folded.layers, folded.frozen = [type(layer)() for layer in cache.layers], True
            for new, old in zip(folded.layers, cache.layers, strict=True):
                new.keys, new.values = (
                    torch.cat([x[self.main], x[self.side, :, self.prefix - self.short :]], dim=2)
                    for x in (old.keys, old.values)
                )
        return self._cache
