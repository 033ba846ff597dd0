"""An edit on disk: as a file of its own, or as a LoRA adapter that other programs read.

ROME's, MEMIT's and AlphaEdit's change of a matrix is a product of two thin ones, Δ = left · right. LoRA (Hu et al.
2021, arXiv 2106.09685) adds B A · alpha / r to a matrix: with B = left, A = right and alpha = r that is the edit.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .storage import whole

FORMAT, FILE = 2, "edit.safetensors"
WEIGHTS = "adapter_model.safetensors"  # the name that PEFT looks for


def save(edit: Any, folder: str | Path) -> None:
    """Write an edit as one file; see ``Edit.save``."""
    folder, fingerprint = Path(folder), edit.lm.fingerprint
    tensors: dict[str, Tensor] = {} if edit.guard is None else edit.guard.tensors()
    for name, delta in edit.deltas.items():
        factors = edit.factors.get(name, ())
        if factors and sum(f.numel() for f in factors) < delta.numel():
            tensors |= {f"{name}:{side}": f for side, f in zip(("left", "right"), factors, strict=True)}
        else:
            tensors[f"{name}:delta"] = delta
    tensors |= {f"{layer}:keys": keys for layer, keys in edit.keys.items()}
    about = {
        "format": FORMAT,
        "method": edit.method,
        "model": edit.lm.name,
        "fingerprint": fingerprint,
        "requests": [dataclasses.asdict(request) for request in edit.requests],
        "settings": edit.settings,
        "notes": edit.notes,
        "traces": edit.traces,
        "guard": None if edit.guard is None else edit.guard.about(),
    }
    metadata = {"edit": json.dumps(about, ensure_ascii=False)}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with whole(folder / FILE) as scratch:
            save_file({n: tensor.detach().cpu().contiguous() for n, tensor in tensors.items()}, scratch, metadata)
    except SafetensorError as error:
        raise OSError(f"folder {str(folder)!r} cannot be written: {error}") from error


def save_as_lora(edit: Any, folder: str | Path) -> None:
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
