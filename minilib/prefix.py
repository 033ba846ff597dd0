"""Texts cut in two: what stands left of the cut is run once and kept as attention's keys and values.

In a causal model the left part does not depend on the right one. Whoever runs many versions of the right part, as
the search for v* and causal tracing do, needs the left one only once. ``Fold`` also spares the padding of rows of
which a single token is run: it puts that token behind another row, as a last column that sees only its own prefix.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache

from . import hooks

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


@torch.no_grad()
def inputs(lm: Any, rows: Rows) -> dict[str, Any]:
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
    found: dict[str, Any] = lm.batch([suffix for _, suffix in rows])
    lengths = torch.tensor([len(prefix) for prefix, _ in rows], device=found["input_ids"].device)
    if not lengths.any():
        return found
    cache = _Prefix()
    # transformers renamed the argument
    name = "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"
    unique = sorted({tuple(prefix) for prefix, _ in rows})
    left = lm.batch(unique, side="left")
    with hooks.read({"last": lm.blocks[-1]}, stop=True), lm.evaluating():  # the head is not needed
        lm.model(**left, **{name: cache}, use_cache=True)
    which = torch.tensor([unique.index(tuple(prefix)) for prefix, _ in rows])
    cache.freeze(left["attention_mask"], which)
    found["position_ids"] = found["position_ids"] + lengths[:, None]
    found["attention_mask"] = torch.cat([left["attention_mask"][which], found["attention_mask"]], dim=1)
    found[name] = cache
    return found


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


class Fold:
    """Turns what a block is called with for padded rows into the same for folded rows.

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
        self._cache: _Prefix | None = None

    def __call__(self, x: Any) -> Any:
        """Fold a hidden state, a mask, a cache, or a tuple or dict of them; leave everything else."""
        if isinstance(x, dict):
            return {name: self(value) for name, value in x.items()}
        if type(x) in (tuple, list):
            return type(x)(self(value) for value in x)
        if isinstance(x, _Prefix):
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

    def _fold_cache(self, cache: _Prefix) -> _Prefix:
        if self._cache is None:
            self._cache = folded = _Prefix()
            folded.layers, folded.frozen = [type(layer)() for layer in cache.layers], True
            for new, old in zip(folded.layers, cache.layers, strict=True):
                new.keys, new.values = (
                    torch.cat([x[self.main], x[self.side, :, self.prefix - self.short :]], dim=2)
                    for x in (old.keys, old.values)
                )
        return self._cache
