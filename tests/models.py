"""The tiny models of the tests: a random one of each architecture, and what compares weights."""

import copy
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import transformers

import minilib

REFERENCE = Path(__file__).parent / "reference" / "tiny-llama"

_SMALL = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": 600, "n_positions": 256, "n_embd": 32, "n_layer": 4, "n_head": 4}

ARCHITECTURES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED, head_dim=8),
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**_GROUPED, head_dim=8, final_logit_softcapping=5.0),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GROUPED, head_dim=8),
    "olmo2": lambda: transformers.Olmo2Config(**_GROUPED),
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "gptj": lambda: transformers.GPTJConfig(**_GPT2, rotary_dim=4),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SMALL),
    "phi": lambda: transformers.PhiConfig(**_SMALL),
    "phi3": lambda: transformers.Phi3Config(**_GROUPED, pad_token_id=0),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=600, hidden_size=32, ffn_dim=64, num_hidden_layers=4, num_attention_heads=4, word_embed_proj_dim=32
    ),
}


def random_lm(kind: str | Callable[[], transformers.PretrainedConfig], seed: int = 0) -> minilib.LM:
    """A tiny model with random weights, large enough in scale that its answers depend on the prompt."""
    return copy.deepcopy(_random_lm(kind, seed))


@functools.cache
def _random_lm(kind: str | Callable[[], transformers.PretrainedConfig], seed: int) -> minilib.LM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            (ARCHITECTURES[kind] if isinstance(kind, str) else kind)()
        )
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                continue
            parameter.data.normal_(0, 0.15)
    return minilib.LM(model, transformers.AutoTokenizer.from_pretrained(REFERENCE / "model"), name=str(kind))


def weights(lm: minilib.LM) -> dict[str, torch.Tensor]:
    """A copy of every parameter, to compare with later."""
    return {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}


def assert_same_weights(lm: minilib.LM, before: dict[str, torch.Tensor]) -> None:
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} changed"


def benchmark_script(name: str) -> ModuleType:
    """A script of ``benchmarks/`` as a module, whatever it imports from beside it included."""
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
