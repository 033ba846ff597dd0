"""What training needs: weights that change, all or low-rank ones beside those of the blocks, and what a pass reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .. import hooks
from ..model import LM
from ..tokens import EncodedRequest

HOW = ("all", "lora")


def names(lm: LM, how: str) -> list[str]:
    """The parameters that change: every one, or for "lora" each matrix in the blocks.

    Raises
    ------
    ValueError
        When ``how`` is neither.
    """
    if how not in HOW:
        raise ValueError(f"train must be 'all' or 'lora', not {how!r}")
    if how == "all":
        return [name for name, _ in lm.model.named_parameters()]
    blocks = lm.model.get_submodule(lm.layout.blocks).named_modules(prefix=lm.layout.blocks)
    return [f"{name}.weight" for name, module in blocks if isinstance(module, (nn.Linear, Conv1D))]


@contextmanager
def weights(lm: LM, names: Sequence[str], how: str, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """What the optimiser gets; after the block the named parameters hold the result, and all else is as it was.

    Gradients are on in the block, whatever the caller has switched off. When it ends by an exception, a low-rank
    change is dropped; a full one has to be put back by the caller (``edits.changing`` does).

    Parameters
    ----------
    lm : LM
    names : list of str
        Of the parameters that are to change.
    how : {"all", "lora"}
    rank, seed : int
        Of the low-rank matrices, and of their first values.
    """
    flags = {parameter: parameter.requires_grad for parameter in lm.model.parameters()}
    lm.model.requires_grad_(False)
    adapter = None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            if how == "all":
                for name in names:
                    lm.model.get_parameter(name).requires_grad_(True)
            else:
                adapter = _adapter(lm, names, rank, seed)
            yield [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
        if adapter is not None:
            adapter.merge_and_unload()
            adapter = None
    finally:
        if adapter is not None:
            adapter.unload()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _adapter(lm: LM, names: Sequence[str], rank: int, seed: int) -> Any:
    """peft's low-rank matrices beside each named one; they start at a change of zero."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise OSError("train='lora' needs the package peft: pip install peft, or train='all'") from error
    modules = [name.removesuffix(".weight") for name in names]
    fan = any(isinstance(lm.model.get_submodule(module), Conv1D) for module in modules)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, fan_in_fan_out=fan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(lm.model, config)
        except BaseException:  # KeyboardInterrupt too, between two matrices
            for module in modules:
                parent, _, name = module.rpartition(".")
                layer = lm.model.get_submodule(module)
                setattr(lm.model.get_submodule(parent), name, getattr(layer, "base_layer", layer))
            raise


@dataclass
class Rows:
    """Some prompts with what is said after them, as a model reads them."""

    logp: Float[Tensor, " n"]  # log π of each whole answer
    length: Float[Tensor, " n"]
    steps: Float[Tensor, "tokens vocabulary"]  # log-probabilities of each next token of all answers
    tokens: Int[Tensor, " tokens"]  # the answers themselves
    states: Float[Tensor, "tokens d"]  # what RMU's or LUNAR's block returns, from the subject's end on; else empty


def read(lm: LM, asked: Sequence[EncodedRequest], layer: int | None = None) -> Rows:
    """One pass over prompts and answers; gradients flow where they are switched on."""
    if not asked:
        return join([])
    watch = {"last": lm.blocks[-1]} | ({} if layer is None else {"state": lm.blocks[layer]})
    with lm.lock, hooks.read(watch) as seen, lm.prompts_end([len(x.ids) - 1 for x in asked]):
        lm.model.base_model(**lm.batch([x.ids + x.target[:-1] for x in asked]), use_cache=False)
    last = [h[len(x.ids) - 1 : len(x.ids) - 1 + len(x.target)] for h, x in zip(seen["last"], asked, strict=True)]
    steps = lm.unembed(torch.cat(last)).log_softmax(-1)
    tokens = torch.tensor([token for x in asked for token in x.target], device=steps.device)
    length = torch.tensor([len(x.target) for x in asked], device=steps.device)
    said = steps.gather(1, tokens.unsqueeze(1)).squeeze(1)
    logp = torch.stack([part.sum() for part in said.split(length.tolist())])
    states = steps.new_zeros(0)
    if layer is not None:
        rows = zip(seen["state"], asked, strict=True)
        states = torch.cat([h[x.subject : len(x.ids) - 1 + len(x.target)] for h, x in rows])
    return Rows(logp, length.to(logp.dtype), steps, tokens, states)


@torch.no_grad()
def check_head(lm: LM, asked: EncodedRequest) -> None:
    """Refuse a model whose logits ``read`` would not get right."""
    with hooks.read({"last": lm.blocks[-1]}) as seen:
        logits = lm.model(**lm.batch([asked.ids]), use_cache=False).logits
    lm.check_logits(seen["last"][:, -1], logits[:, -1])


def join(rows: Sequence[Rows]) -> Rows:
    """Several as one."""
    if not rows:
        return Rows(*[torch.zeros(0)] * 5)
    return Rows(*(torch.cat([getattr(row, field.name) for row in rows]) for field in fields(Rows)))
