"""Texts cut in two: what stands left of the cut is run once and kept as attention's keys and values.

In a causal model the left part does not depend on the right one. Whoever runs many versions of the right part, as
the search for v* and causal tracing do, needs the left one only once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
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
    lengths = torch.tensor([len(prefix) for prefix, _ in rows], device=lm.device)
    if not lengths.any():
        return found
    cache = _Prefix()
    # transformers renamed the argument
    name = "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"
    unique = sorted({tuple(prefix) for prefix, _ in rows})
    left = lm.batch(unique, side="left")
    with hooks.read({"last": lm.blocks[-1]}, stop=True):  # the head is not needed
        lm.model(**left, **{name: cache}, use_cache=True)
    which = torch.tensor([unique.index(tuple(prefix)) for prefix, _ in rows], device=lm.device)
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
            layer.keys, layer.values = (x.masked_fill(padding, 0)[which] for x in (layer.keys, layer.values))
        self.frozen = True

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], dim=-2), torch.cat([layer.values, value_states], dim=-2)
