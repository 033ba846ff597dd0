"""Contexts: texts put before a prompt, so that a fact's key and value hold in more than one place.

A context is a template with one ``{}`` for the prompt; ``["{}"]`` is the plain prompt alone. The authors of
ROME let the model itself begin some sentences and put those before the prompt: ``contexts="sampled"``.
"""

from __future__ import annotations

from collections.abc import Iterable

from .lm import LM
from .requests import SLOT, as_contexts

SAMPLED = "sampled"
STARTS = ("The", "Therefore", "Because", "I", "You")
Lengths = tuple[tuple[int, int], ...]  # (tokens of a prefix, how many prefixes), ...


def resolve(lm: LM, contexts: str | Iterable[str], seed: int, lengths: Lengths) -> list[str]:
    """The templates that ``contexts`` stands for.

    Parameters
    ----------
    lm : LM
    contexts : "sampled" or list of str
        ``"sampled"`` is the plain prompt and prefixes that the unedited model writes; a list is checked.
    seed : int
        Of the sampling: the same seed gives the same prefixes.
    lengths : tuple of (tokens, count)
        How many prefixes of how many tokens.

    Returns
    -------
    list of str
    """
    if contexts == SAMPLED:
        return sample(lm, seed, lengths)
    if isinstance(contexts, str):
        raise TypeError(f'contexts must be "sampled" or a list of templates, not one string; write [{contexts!r}]')
    return as_contexts(contexts)


def sample(lm: LM, seed: int = 0, lengths: Lengths = ((5, 10), (10, 10))) -> list[str]:
    """``"{}"``, then prefixes that the model wrote, each a few tokens after one of ``STARTS`` and ended by a full stop.

    The next token is drawn from the five likeliest, as in the authors' code. Written by the model as it is without
    the edits in force, so that an edit does not depend on those before it.
    """
    prefixes: list[str] = []
    with lm.unedited():
        for tokens, count in lengths:
            starts = [STARTS[i % len(STARTS)] for i in range(count)]
            ends = lm.generate(starts, max_new_tokens=tokens, chat=False, temperature=1.0, top_k=5, seed=seed)
            prefixes += [start + end for start, end in zip(starts, ends, strict=True)]
    # A brace of the text would be taken for the slot.
    return [SLOT, *(f"{text.replace('{', ' ').replace('}', ' ')}. {SLOT}" for text in prefixes)]
