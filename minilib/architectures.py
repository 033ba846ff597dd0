"""Which models can be edited: where an architecture keeps its MLP memories, and what is refused, in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Layout(NamedTuple):
    """Names in the module tree: from the model to its blocks, from a block to its MLP's last projection."""

    blocks: str
    down_projection: str
    norm: str


LAYOUTS = (
    Layout("model.layers", "mlp.down_proj", "model.norm"),  # Llama, Mistral, Qwen, SmolLM, Gemma, OLMo, Phi-3
    Layout("model.language_model.layers", "mlp.down_proj", "model.language_model.norm"),  # Gemma 3 with images
    Layout("transformer.h", "mlp.c_proj", "transformer.ln_f"),  # GPT-2 (weights transposed)
    Layout("transformer.h", "mlp.fc_out", "transformer.ln_f"),  # GPT-J
    Layout("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),  # GPT-NeoX, Pythia
    Layout("model.layers", "mlp.fc2", "model.final_layernorm"),  # Phi
    Layout("model.decoder.layers", "fc2", "model.decoder.final_layer_norm"),  # OPT
    Layout("model.layers", "mlp.c_proj", "model.norm"),  # StarCoder2
    Layout("model.layers", "mlp.dense_4h_to_h", "model.final_layernorm"),  # Persimmon
    Layout("model.layers", "fc2", "model.layer_norm"),  # XGLM
    Layout("biogpt.layers", "fc2", "biogpt.layer_norm"),  # BioGPT
    Layout("gpt_neox_japanese.layers", "mlp.dense_4h_to_h", "gpt_neox_japanese.final_layer_norm"),
    Layout("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),  # Falcon, BLOOM
    Layout("transformer.blocks", "ffn.down_proj", "transformer.norm_f"),  # MPT
)
ALIBI = ("bloom", "mpt")  # see how far apart two tokens are, and need no positions


def check_pair(model: Any, tokenizer: Any) -> None:
    if any(kind.__module__.startswith("peft.") for kind in type(model).__mro__):
        raise ValueError(
            f"model is a {type(model).__name__}, wrapped by PEFT: merge its adapter into the weights first, "
            "minilib.LM(model.merge_and_unload(), tokenizer)"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model must be a transformers model, not {type(model).__name__}")
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise TypeError(f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("tokenizer must be a fast one, since subjects are found from its offsets: use_fast=True")


def find_layout(model: nn.Module, given: Layout | None) -> Layout:
    """The first layout whose every name is in the module tree."""
    for layout in LAYOUTS if given is None else (Layout(*given),):
        blocks = submodule(model, layout.blocks)
        if (
            isinstance(blocks, nn.ModuleList)
            and len(blocks)
            and all(submodule(block, layout.down_projection) is not None for block in blocks)
            and (given is None or submodule(model, layout.norm) is not None)
        ):
            return layout
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        raise ValueError(
            f"{type(model).__name__} is a mixture of experts, in which every token is sent through a few of many MLPs, "
            "and minilib edits models that have one MLP in each block: use a dense model"
        )
    tried = "; ".join(f"{x.blocks}.N.{x.down_projection}" for x in LAYOUTS)
    if given is not None:
        tried = f"{given[0]}.N.{given[1]} with the norm {given[2]}"
    raise ValueError(
        f"{type(model).__name__} has its MLP memories at none of {tried}: pass the names by hand, "
        "minilib.LM(model, tokenizer, layout=minilib.Layout(blocks=…, down_projection=…, norm=…))"
    )


def check_passes(model: Any, blocks: Sequence[nn.Module]) -> None:
    """Prompts are padded, and cut in two whose first part is kept: refuse a model that cannot be run like that."""
    known, name = inspect.signature(model.forward).parameters, type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ValueError(
            f"{name} has layers that keep a running state (as linear attention and Mamba do), and minilib edits "
            "models that keep nothing of earlier tokens but attention's keys and values"
        )
    if not {"cache", "past_key_values"} & set(known):
        raise ValueError(f"{name} takes no cache, in which minilib keeps what stands before a subject")
    if "position_ids" not in known and model.config.get_text_config().model_type not in ALIBI:
        raise ValueError(f"{name} takes no position_ids, so padding would shift the tokens of a prompt")
    if len(kinds := sorted({type(block).__name__ for block in blocks})) > 1:
        raise ValueError(f"{name} has blocks of several kinds ({', '.join(kinds)}), and some may be left out of a pass")


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def check_memory(module: nn.Module, name: str) -> None:
    """An edit needs a plain floating-point matrix, of 16 bits at least."""
    if hasattr(module, "base_layer"):
        raise ValueError(
            f"{name} has an adapter beside it ({type(module).__module__.partition('.')[0]}): load the model by "
            "peft.AutoPeftModelForCausalLM and merge the adapter first, minilib.LM(model.merge_and_unload(), tokenizer)"
        )
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2 and weight.itemsize > 1
    if not plain or not isinstance(module, (nn.Linear, Conv1D)) or type(module).__module__.startswith("bitsandbytes"):
        raise ValueError(
            f"{name} is a {type(module).__name__} of {getattr(weight, 'dtype', 'no weight')}, not a plain "
            "floating-point matrix of 16 bits or more: a quantised model cannot be edited; load it with "
            "dtype=torch.float32 or torch.bfloat16"
        )


def closing_tokens(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts behind every text, such as one that ends it."""
    plain, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    more = len(full) - len(plain)
    return next((more - i for i in range(more + 1) if full[i : i + len(plain)] == plain), 0)
