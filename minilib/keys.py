"""Keys and states of requests: what flows through the model at the last token of each subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import hooks
from .lm import LM
from .requests import Request
from .suffixes import Place, double

ROWS = 64  # prompts run together


def keys_and_values(
    lm: LM, requests: Sequence[Request], layer: int, contexts: Sequence[str]
) -> tuple[Float[Tensor, "requests contexts d_k"], Float[Tensor, "requests contexts d_out"]]:
    """k and W k (with its bias, where there is one): what enters the down-projection of a layer, and what leaves it."""
    return _at_subject(lm, requests, contexts, layer, lm.down_projection(layer))


def keys_and_states(
    lm: LM, requests: Sequence[Request], layer: int, contexts: Sequence[str], last: int
) -> tuple[Float[Tensor, "requests contexts d_k"], Float[Tensor, "requests contexts d_out"]]:
    """k at a layer, and the hidden state that block ``last``, at or above it, returns: see ``where``."""
    upper = lm.blocks[last] if where(lm, [last]) == "block" else lm.down_projection(last)
    return _at_subject(lm, requests, contexts, layer, upper)


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


@torch.no_grad()
def _at_subject(
    lm: LM, requests: Sequence[Request], contexts: Sequence[str], layer: int, upper: nn.Module
) -> tuple[Tensor, Tensor]:
    """The input of W and the output of ``upper``, at the subject of each request in each context (float32)."""
    rows = [lm.encode_request(request, context) for request in requests for context in contexts]
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(rows), ROWS):
        chunk = rows[start : start + ROWS]
        batch = lm.batch([ids for ids, _ in chunk])
        with lm.evaluating(), ExitStack() as stack:  # the upper one is read last: there the model stops
            out = stack.enter_context(hooks.read({0: upper}, at="output", stop=True))
            into = stack.enter_context(hooks.read({0: lm.down_projection(layer)}, at="input"))
            lm.model(**batch, use_cache=False)
        at = (torch.arange(len(chunk)), torch.tensor([subject for _, subject in chunk]))
        shape = batch["input_ids"].shape
        # OPT's blocks flatten batch and tokens
        found.append((into[0].reshape(*shape, -1)[at].float(), out[0].reshape(*shape, -1)[at].float()))
    k, above = (torch.cat(x).unflatten(0, (len(requests), len(contexts))) for x in zip(*found, strict=True))
    return k, above
