"""What a model says next: generation by transformers, with this library's checks and its own settings alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
import transformers

from . import tokens
from .requests import Request, whole


def generate(
    lm: Any,
    prompts: str | Request | Sequence[str | Request],
    max_new_tokens: int,
    chat: bool | None,
    batch_size: int | None,
    temperature: float,
    top_k: int,
    seed: int | None,
) -> Any:
    """See ``LM.generate``."""
    max_new_tokens = whole(max_new_tokens, "max_new_tokens")
    batch_size = lm.together(batch_size)
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature must be a number, not {temperature!r}")
    if temperature and not 1e-6 <= temperature < math.inf:  # logits divided by less would overflow
        raise ValueError(f"temperature must be 0 (greedy) or above 1e-6 and finite, not {temperature!r}")
    top_k = whole(top_k, "top_k", least=0)
    seed = None if seed is None else whole(seed, "seed", least=0)
    single, _, rows = tokens.as_prompts(lm, prompts, lm.has_chat if chat is None else chat)
    longest = max(map(len, rows))
    if longest + max_new_tokens > lm.context_length:
        raise ValueError(
            f"prompt and max_new_tokens make {longest} + {max_new_tokens} tokens and {lm.name} reads "
            f"{lm.context_length}: shorten the prompt or lower max_new_tokens"
        )
    stops, pad = lm.stops(), lm.tokenizer.pad_token_id
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": float(temperature), "top_k": top_k, "top_p": 1.0}
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=(stops or [0])[0] if pad is None else pad,
        **sampling,
    )
    texts: list[str] = []
    with torch.no_grad(), _seeded(seed, lm.device), _only(lm.model, config), lm.evaluating():
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            batch = lm.batch(chunk, side="left")
            batch.pop("position_ids")  # generate makes its own
            output = lm.model.generate(**batch, generation_config=config)
            width = batch["input_ids"].shape[1]
            for row, ids in zip(chunk, output, strict=True):
                new = ids[width:].tolist()
                end = next((i for i, token in enumerate(new) if token in stops), len(new))
                texts.append(_continuation(lm.tokenizer, row, new[:end]))
    return texts[0] if single else texts


@contextmanager
def _only(model: Any, config: transformers.GenerationConfig) -> Iterator[None]:
    """Without the model's own generation settings, which transformers would mix in: greedy is greedy."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def _continuation(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text that ``new`` adds: decoded with its prompt, since some tokenizers drop a first space."""
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, both = tokenizer.decode(prompt, **how), tokenizer.decode(prompt + new, **how)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(new, **how)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Sampling from a seed of its own; the global random state is put back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
