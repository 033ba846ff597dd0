"""Text that comes with the library, and prompts drawn from it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import facts, guards
from .requests import SLOT, Request

TEXTS = Path(__file__).parent / "data" / "text"
IRRELEVANT = 128  # prompts, at most, that are drawn where none are given
SAMPLED = "sampled"


def sample_texts(name: str = "smollm2-135m") -> list[str]:
    """The text that comes with the library: sampled from the model itself, by ``benchmarks/sample_text.py``."""
    file = TEXTS / f"{name}.jsonl.gz"
    if not file.is_file():
        known = ", ".join(sorted(f.name.removesuffix(".jsonl.gz") for f in TEXTS.glob("*.jsonl.gz")))
        raise ValueError(f"name {name!r}: no sample text comes with the library for it, only for {known}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def irrelevant(
    lm: Any, requests: Sequence[Request], given: Sequence[str | Request] | str | None, seed: int
) -> list[list[int]]:
    """Prompts that an edit has to leave alone, as tokens.

    Parameters
    ----------
    lm : LM
    requests : list of Request
        The edit's; what is drawn has their format, chat message or plain text.
    given : list of str or Request, "sampled", or None
        Prompts; strings are chat messages where the first request is one. None: the library's facts, asked or begun,
        those aside that name a subject of the requests. "sampled": from the sample text.
    seed : int
        Of the drawing.
    """
    if given is not None and given != SAMPLED:
        if isinstance(given, (str, Request)) or not isinstance(given, Sequence):
            raise TypeError(f'irrelevant must be a list of prompts or "sampled", not {given!r}')
        if not given:
            raise ValueError("irrelevant is empty: give prompts that the memory has to leave alone, or leave it out")
        return [lm.encode(prompt, chat=requests[0].chat).ids for prompt in given]
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = []
    kinds = {request.chat for request in requests}
    for chat in sorted(kinds):
        every = _sampled(lm, chat, generator) if given == SAMPLED else _questions(lm, chat, requests)
        if not every:
            raise ValueError(f"irrelevant: nothing can be drawn for chat={chat}; give a list of prompts")
        found += [every[i] for i in torch.randperm(len(every), generator=generator)[: IRRELEVANT // len(kinds)]]
    return found


def _questions(lm: Any, chat: bool, requests: Sequence[Request]) -> list[list[int]]:
    """The library's own facts, asked or begun, those aside that name a subject of the requests."""
    subjects = [request.subject.casefold() for request in requests]
    texts = [(f.question if chat else f.prompt).replace(SLOT, f.subject) for f in facts.FACTS]
    return [lm.encode(t, chat=chat).ids for t in texts if not any(s in t.casefold() for s in subjects)]


def _sampled(lm: Any, chat: bool, generator: torch.Generator) -> list[list[int]]:
    """The sample text: its chats up to where the answer begins, or the first words of its texts."""
    opening, found = guards.opening(lm), []
    for text in sample_texts():
        ids = lm.encode(text, any_length=True).ids
        if not chat:
            found.append(ids[: int(torch.randint(4, 25, (1,), generator=generator))])
        elif n := len(opening):
            at = next((i for i in range(len(ids) - n + 1) if ids[i : i + n] == opening), None)
            found += [] if at is None else [ids[: at + n]]
    return found
