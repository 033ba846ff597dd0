"""Text that comes with the library, and prompts drawn from it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import facts
from .requests import Request

TEXTS = Path(__file__).parent / "data" / "text"
FACTS, ORDINARY = 128, 256  # irrelevant prompts, at most, that are drawn where none are given
SAMPLED = "sampled"


def sample_texts(name: str = "smollm2-135m") -> list[str]:
    """The text that comes with the library: sampled from the model itself, by ``benchmarks/sample_text.py``."""
    file = TEXTS / f"{name}.jsonl.gz"
    if not file.is_file():
        known = ", ".join(sorted(f.name.removesuffix(".jsonl.gz") for f in TEXTS.glob("*.jsonl.gz")))
        raise ValueError(f"name {name!r}: no sample text comes with the library for it, only for {known}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def of_model(lm: Any) -> list[str]:
    """The model's own sample text, or else SmolLM2's."""
    return sample_texts(lm.name if (TEXTS / f"{lm.name}.jsonl.gz").is_file() else "smollm2-135m")


def messages() -> list[str]:
    """What a user might say: messages written by SmolLM2 in the user's place, by ``benchmarks/sample_messages.py``."""
    found: list[str] = json.loads((TEXTS / "messages.json").read_text("utf8"))
    return found


def naming_none(found: Iterable[str], subjects: Iterable[str]) -> list[str]:
    """Those texts in which no subject is named, in any case of letters."""
    names = [subject.casefold() for subject in subjects]
    return [text for text in found if not any(name in text.casefold() for name in names)]


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
        and ordinary messages or beginnings of texts. "sampled": the latter alone. Those that name a subject of the
        requests are left out.
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
        asked = [f.request(f.answer, chat).text for f in facts.FACTS]
        ordinary = messages() if chat else [text for text in of_model(lm) if "<|" not in text]
        for every, most in ((ordinary, ORDINARY), ([] if given else asked, FACTS)):
            fit = naming_none(every, [request.subject for request in requests])
            order = torch.randperm(len(fit), generator=generator)[: most // len(kinds)]
            for row in (_row(lm, fit[i], chat) for i in order):
                if row and every is ordinary and not chat:  # a text that is no prompt is one up to anywhere
                    least, most_tokens = min(4, len(row)), min(24, len(row))
                    row = row[: int(torch.randint(least, most_tokens + 1, (1,), generator=generator))]
                found += [row] if row else []
    if not found:
        raise ValueError("irrelevant: every prompt that could be drawn names a subject of the requests; give a list")
    return found


def _row(lm: Any, text: str, chat: bool) -> list[int]:
    """Its tokens; none where the model does not know all of its words."""
    try:
        ids: list[int] = lm.encode(text, chat=chat, any_length=True).ids
    except ValueError:
        return []
    return ids
