"""Which weights are trained: all of them, or low-rank matrices beside those of the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .lm import LM

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
        return get_peft_model(lm.model, config)
