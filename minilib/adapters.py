"""An edit of low rank as a LoRA adapter in PEFT's format, which serving engines and transformers read.

ROME's, MEMIT's and AlphaEdit's change of a matrix is a product of two thin ones, Δ = left · right. LoRA (Hu et al.
2021, arXiv 2106.09685) adds B A · alpha / r to a matrix: with B = left, A = right and alpha = r that is the edit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from .storage import whole

WEIGHTS = "adapter_model.safetensors"  # the name that PEFT looks for


def save(edit: Any, folder: str | Path) -> None:
    """Write an edit's thin factors as a PEFT adapter; see ``Edit.save_as_lora``."""
    thick = [name for name in edit.sizes() if name not in edit.factors]
    if thick or not edit.factors:
        what = f"the change of {thick[0]} is not of low rank" if thick else "it changed no weights"
        raise ValueError(f"{edit} cannot be an adapter: {what}; edit.save(folder) keeps it, minilib.load_edit reads it")
    from peft import LoraConfig  # takes a second to import

    folder = Path(folder)
    ranks: dict[str, int] = {}
    tensors: dict[str, Any] = {}
    transposed = edit.lm.transposed(0)  # as (d_k, d_out): then left belongs to the keys
    for name, (left, right) in edit.factors.items():
        module, A, B = name.removesuffix(".weight"), right, left
        if transposed:
            A, B = left.T, right.T
        ranks[module] = A.shape[0]
        key = f"base_model.model.{module}.lora_{{}}.weight"
        tensors |= {key.format("A"): A, key.format("B"): B}
    config = LoraConfig(
        base_model_name_or_path=edit.lm.name,
        target_modules=sorted(ranks),
        r=1,
        lora_alpha=1,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / WEIGHTS) as scratch:
        save_file({name: x.detach().float().cpu().contiguous() for name, x in tensors.items()}, scratch)
    config.save_pretrained(str(folder))
