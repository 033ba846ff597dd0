"""Side memories that are trained apart and merged: random masks, and TIES (Yadav et al. 2023, arXiv 2306.01708).

Each shard of edits trains only the entries of D under its own random mask. Where two shards trained the same entry,
TIES keeps the large changes (trim), takes the sign with the larger total (elect), and averages those that agree with
it (merge), so that opposite changes do not cancel into something that neither shard wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def split(items: Sequence[Any], shards: int) -> list[list[Any]]:
    """A list in parts of nearly equal length, in order."""
    edges = [round(i * len(items) / shards) for i in range(shards + 1)]
    return [list(items[a:b]) for a, b in zip(edges, edges[1:], strict=False)]


def draw_mask(shape: Sequence[int], ratio: float, generator: torch.Generator) -> Bool[Tensor, "d_out d_k"]:
    """A random mask in which a share ``ratio`` of all entries is true."""
    n = shape[0] * shape[1]
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=generator)[: max(1, round(ratio * n))]] = True
    return mask.view(shape)


def trim(D: Tensor, density: float) -> Tensor:
    """TIES, first step: keep the share ``density`` of entries that are largest in size, of those that are not zero."""
    kept = math.ceil(density * int((D != 0).sum()))
    if kept == 0:
        return torch.zeros_like(D)
    least = D.abs().flatten().topk(kept).values[-1]
    return torch.where(D.abs() >= least, D, 0)


def elect_sign(shards: Float[Tensor, " shards *shape"]) -> Float[Tensor, " *shape"]:
    """TIES, second step: for each entry the sign that has the larger total; where they balance, plus."""
    return torch.where(shards.sum(0) >= 0, 1.0, -1.0)


def disjoint_mean(shards: Float[Tensor, " shards *shape"], sign: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """TIES, third step: the mean of those that have the elected sign."""
    agree = shards * sign > 0
    return torch.where(agree, shards, 0).sum(0) / agree.sum(0).clamp(min=1)


def ties(shards: Float[Tensor, " shards *shape"], density: float) -> Float[Tensor, " *shape"]:
    """Merge the shards' D into one: trim, elect a sign for each entry, and average those that agree with it."""
    trimmed = torch.stack([trim(D, density) for D in shards])
    return disjoint_mean(trimmed, elect_sign(trimmed))
