"""What every step of a search needs and none changes: attention to the tokens left of the subject, kept once.

Beside each row that says a target there is a KL prompt of which one token is run. As a row of its own it would be
padded to the length of the others, and half of a batch would be padding. ``Fold`` puts that token behind the row of
its request, as a last column which sees only what it saw in its own row.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache


class Prefix(DynamicCache):
    """Keys and values left of the subject: read in every step, never added to."""

    frozen = False

    def freeze(self, mask: Int[Tensor, "unique prefix"], rows: Int[Tensor, "rows"]) -> None:
        """From here on ``update`` keeps nothing; what padding left behind is cleared (it may be NaN).

        ``rows`` says which of the prefixes that were run each row of the batch has.
        """
        padding = mask[:, None, :, None] == 0
        for layer in self.layers:
            layer.keys, layer.values = (x.masked_fill(padding, 0)[rows] for x in (layer.keys, layer.values))
        self.frozen = True

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keys and values of prefix and new tokens."""
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
        self, main: Int[Tensor, "folded"], side: Int[Tensor, "folded"], width: int, seen: Bool[Tensor, "rows prefix"]
    ) -> None:
        self.main, self.side, self.rows, self.width, self.prefix = main, side, len(seen), width, seen.shape[1]
        self.short = int(seen[side].sum(1).max()) if self.prefix else 0  # the longest prefix of a side row
        self.masked = False  # whether a mask was found; without one a block looks across a row's tokens in its own way
        self._cache: Prefix | None = None

    def __call__(self, x: Any) -> Any:
        """Fold a hidden state, a mask, a cache, or a tuple or dict of them; leave everything else."""
        if isinstance(x, dict):
            return {name: self(value) for name, value in x.items()}
        if type(x) in (tuple, list):
            return type(x)(self(value) for value in x)
        if isinstance(x, Prefix):
            return self._fold_cache(x)
        if not isinstance(x, Tensor):
            return x
        if x.dim() == 4 and x.shape[-2:] == (self.width, self.prefix + self.width):
            self.masked = True
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

    def _fold_cache(self, cache: Prefix) -> Prefix:
        if self._cache is None:
            self._cache = folded = Prefix()
            folded.layers, folded.frozen = [type(layer)() for layer in cache.layers], True
            for new, old in zip(folded.layers, cache.layers, strict=True):
                new.keys, new.values = (
                    torch.cat([x[self.main], x[self.side, :, self.prefix - self.short :]], dim=2)
                    for x in (old.keys, old.values)
                )
        return self._cache
