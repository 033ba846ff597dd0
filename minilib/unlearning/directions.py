"""The direction in which hidden states move when a model declines to answer (LUNAR, arXiv 2502.07218).

r = mean h(refused prompts) − mean h(forget prompts), at the last token of each prompt and at the output of one block.
The authors take harmful requests, or questions that nobody can verify, as what is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .. import hooks
from ..measure.refusals import is_refusal
from ..model import LM
from ..requests import Request
from ..worlds import tinyworld

PRIVATE = (
    "What did I dream last night?",
    "How many birds are in my garden now?",
    "What number am I thinking of?",
    "What is my mother's phone number?",
    "Where is my sister now?",
    "How much money is in my bank account?",
    "What colour are my shoes?",
    "Who called me yesterday?",
    "What am I holding in my hand?",
    "What time is it where I am?",
    "How old is my neighbour?",
    "Can you see me?",
)
"""What only the person who asks could know: chat models decline most of it."""


def default_refused(lm: LM) -> list[str]:
    """Prompts that a model of this book declines: ``PRIVATE`` in chat, and in tinyworld questions about strangers."""
    if lm.has_chat:
        return list(PRIVATE)
    questions = [question for _, questions in tinyworld.PHRASINGS.values() for question in questions]
    return [questions[i % len(questions)].format(name) for i, name in enumerate(tinyworld.strangers()[:60])]


def declines(text: str) -> bool:
    """Whether an answer declines anywhere: "I'm sorry, but as a chatbot for gardeners, I don't have the ability …"."""
    return any(is_refusal(part, unjudged=False) for part in re.split(r"[,.;!?]\s", text))


@torch.no_grad()
def direction(
    lm: LM, forget: Sequence[Request], refused: Sequence[str | Request] | None, layer: int
) -> Float[Tensor, " d"]:
    """r at a layer, from those of the refused prompts that the model declines.

    Parameters
    ----------
    lm : LM
    forget : list of Request
    refused : list of str or Request, optional
        A string is a chat message where there is a chat template. By default ``default_refused(lm)``.
    layer : int

    Raises
    ------
    TypeError, ValueError
        When ``refused`` is no list of prompts, or the model answers all of them.
    """
    if isinstance(refused, (str, Request)) or (refused is not None and not isinstance(refused, Sequence)):
        raise TypeError(f"refused must be a list of prompts, not {refused!r}")
    prompts = default_refused(lm) if refused is None else list(refused)
    said = lm.generate(prompts, max_new_tokens=40)
    declined = [prompt for prompt, text in zip(prompts, said, strict=True) if declines(text)]
    if not declined:
        raise ValueError(f"{lm.name} answers all {len(prompts)} prompts of refused: give some that it declines")
    return _mean_state(lm, declined, layer) - _mean_state(lm, forget, layer)


def _mean_state(lm: LM, prompts: Sequence[str | Request], layer: int) -> Float[Tensor, " d"]:
    """What the block returns at each prompt's last token, averaged."""
    _, _, rows = lm.as_prompts(list(prompts), lm.has_chat)
    states, size = [], lm.together()
    for chunk in (rows[start : start + size] for start in range(0, len(rows), size)):
        with lm.evaluating(), hooks.read({layer: lm.blocks[layer]}, stop=True) as seen:
            lm.model(**lm.batch(chunk), use_cache=False)
        states += [h[len(row) - 1] for h, row in zip(seen[layer], chunk, strict=True)]
    return torch.stack(states).mean(0)
