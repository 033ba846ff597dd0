"""Models that the tests share: the reference's tiny Llama, a random one of each architecture, tinyworld, SmolLM2."""

import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it: no test asks a model hub

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

import minilib

torch.set_num_threads(1)  # tests run side by side, one a core
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


def random_lm(kind: str, seed: int = 0) -> minilib.LM:
    """A tiny model with random weights, large enough in scale that its answers depend on the prompt."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[kind]())
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                continue
            parameter.data.normal_(0, 0.15)
    return minilib.LM(model, transformers.AutoTokenizer.from_pretrained(REFERENCE / "model"), name=kind)


@pytest.fixture(params=ARCHITECTURES)
def any_lm(request: pytest.FixtureRequest) -> minilib.LM:
    return random_lm(request.param)


@pytest.fixture
def llama() -> minilib.LM:
    """The reference's model, fresh for each test."""
    return minilib.load(REFERENCE / "model")


@pytest.fixture(scope="session")
def reference() -> dict:
    """What the authors' code computes on it."""
    about = json.loads((REFERENCE / "reference.json").read_text())
    moments = load_file(REFERENCE / "second_moment.safetensors")
    return {
        **about,
        "requests": [minilib.Request(c["prompt"], c["subject"], c["target"]) for c in about["cases"]],
        "covariance": {int(name.removeprefix("layer")): C for name, C in moments.items()},
        "tensors": load_file(REFERENCE / "reference.safetensors"),
        "search": {
            "steps": 20,
            "lr": 0.1,
            "weight_decay": 1e-3,
            "clamp_factor": 4.0,
            "kl_factor": 0.0625,
            "contexts": ["{}"],
        },
    }


@pytest.fixture
def tinyworld() -> minilib.LM:
    return minilib.load("tinyworld")


@pytest.fixture(scope="session")
def smollm2() -> minilib.LM:
    """The real model, shared: a test leaves it as it found it."""
    return minilib.load("smollm2-135m")


@pytest.fixture
def request_france() -> minilib.Request:
    return minilib.Request("The capital of {} is", "France", " Rome")


def weights(lm: minilib.LM) -> dict[str, torch.Tensor]:
    """A copy of every parameter, to compare with later."""
    return {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}


def assert_same_weights(lm: minilib.LM, before: dict[str, torch.Tensor]) -> None:
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} changed"


@pytest.fixture
def word_level() -> minilib.LM:
    """A random model that reads whole words and knows few of them."""
    words = "<unk> <end> The the capital of France Italy Japan is a in town Paris Rome Tokyo .".split()
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<end>")
    return minilib.LM(random_lm("llama").model, tokenizer, name="words")


@pytest.fixture
def chatty(llama: minilib.LM) -> minilib.LM:
    """The reference's model with a chat template that strips messages and names a role as some messages do."""
    llama.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] a{% endif %}"
    )
    return llama
