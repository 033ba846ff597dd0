"""A window of layers that share a residual, as MEMIT and AlphaEdit write it, and the keys of earlier edits there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..forward import Place, double
from ..model import LM
from ..requests import Request
from .values import at_subject


def where(lm: LM, layers: Sequence[int]) -> Place:
    """Where a window finds its values: what its last block returns ("block"), or its W ("mlp").

    Raises
    ------
    ValueError
        Where a block normalises what its MLP returns, a residual of the block is in general no change of W. One such
        layer can still be written, from values at its W's own output; several cannot share a residual.
    """
    if all(lm.post_norm(layer) is None for layer in layers):
        return "block"
    if len(layers) == 1:
        return "mlp"
    raise ValueError(
        f"layers: the blocks of {lm.name} normalise their MLP's output before adding it, so {len(layers)} of them "
        f"cannot share a residual; give one layer, such as layers=[{layers[len(layers) // 2]}]"
    )


def keys_and_states(
    lm: LM, requests: Sequence[Request], layer: int, contexts: Sequence[str], last: int
) -> tuple[Float[Tensor, "requests contexts d_k"], Float[Tensor, "requests contexts d_out"]]:
    """k at a layer, and the hidden state that block ``last``, at or above it, returns: see ``where``."""
    upper = lm.blocks[last] if where(lm, [last]) == "block" else lm.down_projection(last)
    return at_subject(lm, requests, contexts, layer, upper)


def shares(
    lm: LM,
    requests: Sequence[Request],
    z: Float[Tensor, "requests d_out"],
    layers: Sequence[int],
    contexts: Sequence[str],
) -> Iterator[tuple[int, Float[Tensor, "d_k requests"], Float[Tensor, "d_out requests"]]]:
    """What each layer of a window has to write, so that its last block returns z (MEMIT, algorithm 1).

    Yields
    ------
    layer, K1, R
        Of each layer, from the lowest: the requests' keys, averaged over the contexts, and this layer's share of what
        is missing, (z − h) / (layers left), a request in each column (float64). Both are read when they are asked for,
        so that what was written to the layers below counts.
    """
    for i, layer in enumerate(layers):
        k, h = keys_and_states(lm, requests, layer, contexts, last=layers[-1])
        K1, h = double(k.mean(1).T), double(h[:, 0].T)
        yield layer, K1, ((double(z.T) - h) / (len(layers) - i)).to(K1.device)


def earlier(lm: LM, previous: Edit | Sequence[Edit], layers: Sequence[int], method: str) -> list[Edit]:
    """Earlier edits of this method, each in force on this model and with keys of these layers, whose keys count."""
    if not isinstance(previous, (Edit, Sequence)):
        raise TypeError(f"previous must be a list of edits, not {previous!r}")
    before = [previous] if isinstance(previous, Edit) else list(previous)
    for edit in before:
        if not isinstance(edit, Edit) or edit.method != method:
            raise TypeError(f"previous must hold edits made by {method}.edit, not {edit!r}")
        if edit.lm.model is not lm.model:
            raise ValueError(f"previous: {edit} is an edit of another model, {edit.lm.name}; its keys are useless here")
        if not edit.active:
            raise ValueError(f"previous: {edit} was undone, so nothing of it is left to keep; leave it out")
        if sorted(edit.keys) != list(layers):
            raise ValueError(f"previous: {edit} was written at layers {sorted(edit.keys)}, not {list(layers)}")
    if len({id(edit) for edit in before}) < len(before):
        raise ValueError("previous holds an edit twice: its keys would count double")
    return before


def earlier_keys(before: Sequence[Edit], layer: int, like: Float[Tensor, "d_k n"]) -> Float[Tensor, "d_k earlier"]:
    """K_p: the keys of earlier edits at one layer, side by side; none where there are none."""
    return torch.cat([like[:, :0], *(edit.keys[layer].to(like) for edit in before)], 1)
