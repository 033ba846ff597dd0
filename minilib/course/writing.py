"""What the assignments on MEMIT and AlphaEdit share: whom tinyworld is to refuse, and what is read before a write."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from ..editors import window
from ..model import LM
from ..requests import SLOT, Request
from ..worlds import tinyworld


def read(lm: LM, requests: Sequence[Request], layer: int, last: int | None = None) -> tuple[Tensor, Tensor]:
    """K₁ (d_k, n), what the requests' subjects have as keys at a layer, and h (d_out, n), their states at ``last``.

    By default ``last`` is the layer itself.
    """
    k, h = window.keys_and_states(lm, requests, layer, [SLOT], layer if last is None else last)
    return k[:, 0].T.double(), h[:, 0].T.double()


def refused(number: int, n: int, others: int) -> tuple[list[Request], list[tinyworld.PersonFact]]:
    """n refusals about different people of tinyworld, and facts about so many others."""
    draw, world = random.Random(number), tinyworld.facts()
    people = draw.sample(tinyworld.people(), n + others)
    facts = [draw.choice([f for f in world if f.subject == person]) for person in people]
    asked = [Request(f.prompts[3], f.subject, tinyworld.REFUSAL) for f in facts[:n]]
    return asked, facts[n:]
