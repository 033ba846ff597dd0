"""Models that the tests share: the reference's tiny Llama, a random one of each architecture, tinyworld, SmolLM2.

torch, transformers and minilib take seconds to import, and are imported where they are used: the process that only
hands out tests reads this file too, and so do those that look at pages.
"""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it: no test asks a model hub

import hypothesis
import pytest

if TYPE_CHECKING:
    import minilib

# The first call of a test loads what others share: a limit on its time would fail at random.
hypothesis.settings.register_profile("book", deadline=None)
hypothesis.settings.load_profile("book")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_lm" in metafunc.fixturenames:
        from models import ARCHITECTURES

        metafunc.parametrize("any_lm", ARCHITECTURES, indirect=True)


@pytest.fixture
def any_lm(request: pytest.FixtureRequest) -> minilib.LM:
    from models import random_lm

    return random_lm(request.param)


@pytest.fixture(scope="session")
def loaded() -> Callable[[str | Path], minilib.LM]:
    """Models by name, each read from its files once: a copy of one takes a fifth of the time."""
    import minilib

    return functools.cache(minilib.load)


@pytest.fixture
def llama(loaded: Callable[[str | Path], minilib.LM]) -> minilib.LM:
    """The reference's model, fresh for each test."""
    from models import REFERENCE

    return copy.deepcopy(loaded(REFERENCE / "model"))


@pytest.fixture(scope="session")
def reference() -> dict:
    """What the authors' code computes on it."""
    from models import REFERENCE
    from safetensors.torch import load_file

    import minilib

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


@pytest.fixture(scope="session")
def brief(reference: dict) -> dict:
    """The first steps of the reference's search, for tests of what holds wherever a search ends."""
    return {**reference["search"], "steps": 3}


@pytest.fixture
def tinyworld(loaded: Callable[[str | Path], minilib.LM]) -> minilib.LM:
    return copy.deepcopy(loaded("tinyworld"))


@pytest.fixture(scope="session")
def moments(loaded: Callable[[str | Path], minilib.LM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the second moments that tinyworld's presets ask for: computing them takes a second."""
    from minilib import covariance

    cache = tmp_path_factory.mktemp("moments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILIB_CACHE", str(cache))
        covariance.second_moment(loaded("tinyworld"), 0)
    return cache


@pytest.fixture(scope="session")
def smollm2() -> minilib.LM:
    """The real model, shared: a test leaves it as it found it."""
    import minilib

    return minilib.load("smollm2-135m")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the real model is slow, and whatever is slow is long."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # tests run side by side, one a core
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
        if item.get_closest_marker("slow"):
            item.add_marker("long")


def pytest_collection_finish() -> None:
    """What is imported by now stays, so no collection of garbage has to look through it: each took half a second."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_real_model_without_its_mark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("slow") is None and "downloads" not in request.node.path.stem:
        message = f"{request.node.name} loads a real model: mark it with pytest.mark.slow"
        if "minilib.loading" in sys.modules:
            monkeypatch.setattr(sys.modules["minilib.loading"], "fetch", lambda *_: pytest.fail(message))


@pytest.fixture
def request_france() -> minilib.Request:
    import minilib

    return minilib.Request("The capital of {} is", "France", " Rome")


@pytest.fixture
def word_level() -> minilib.LM:
    """A random model that reads whole words and knows few of them."""
    import tokenizers
    import transformers
    from models import random_lm

    import minilib

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
