"""Text that comes with the library, and prompts drawn from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch

from ..covariance import TEXTS, of_model
from ..model import LM
from ..requests import Request
from . import facts

FACTS, ORDINARY = 128, 256  # irrelevant prompts, at most, that are drawn where none are given
SAMPLED = "sampled"


def messages() -> list[str]:
    """What a user might say: messages written by SmolLM2 in the user's place, by ``benchmarks/sample_messages.py``."""
    texts: list[str] = json.loads((TEXTS / "messages.json").read_text("utf8"))
    return texts


def naming_none(texts: Iterable[str], subjects: Iterable[str]) -> list[str]:
    """Those texts in which no subject is named, in any case of letters."""
    names = [subject.casefold() for subject in subjects]
    return [text for text in texts if not any(name in text.casefold() for name in names)]


def irrelevant(
    lm: LM, requests: Sequence[Request], given: Sequence[str | Request] | str | None, seed: int
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
    if given is not None and not (isinstance(given, str) and given == SAMPLED):
        if isinstance(given, (str, Request)) or not isinstance(given, Sequence):
            raise TypeError(f'irrelevant must be a list of prompts or "sampled", not {given!r}')
        if not given:
            raise ValueError("irrelevant is empty: give prompts that the memory has to leave alone, or leave it out")
        return lm.as_prompts(list(given), requests[0].chat)[2]
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = []
    kinds = {request.chat for request in requests}
    for chat in sorted(kinds):
        asked = [f.request(f.answer, chat).text for f in facts.FACTS]
        ordinary = messages() if chat else [text for text in of_model(lm) if "<|" not in text]
        for every, most in ((ordinary, ORDINARY), ([] if given else asked, FACTS)):
            fit = naming_none(every, [request.subject for request in requests])
            order = torch.randperm(len(fit), generator=generator)[: most // len(kinds)]
            for row in (tokens_of(lm, fit[i], chat) for i in order):
                if row and every is ordinary and not chat:  # a text that is no prompt is one up to anywhere
                    least, most_tokens = min(4, len(row)), min(24, len(row))
                    row = row[: int(torch.randint(least, most_tokens + 1, (1,), generator=generator))]
                prompts += [row] if row else []
    if not prompts:
        raise ValueError("irrelevant: every prompt that could be drawn names a subject of the requests; give a list")
    return prompts


def tokens_of(lm: LM, text: str, chat: bool) -> list[int]:
    """Its tokens; none where the model does not know all of its words."""
    try:
        ids: list[int] = lm.encode(text, chat=chat, any_length=True).ids
    except ValueError:
        return []
    return ids
