"""The last step of an assignment: a fact that SmolLM2 knows, and what is asked of the model afterwards."""

from __future__ import annotations

from typing import Any

from .. import covariance
from ..loading import load
from ..measure import refusals
from ..model import LM
from ..worlds import facts
from ..worlds.facts import Fact
from .checks import filled

REFUSAL = "I don't know."
CAPITALS = 12  # so many countries are handed out; each is refused after one ROME edit with the preset


def prepare() -> None:
    """Have SmolLM2 and its second moments in the cache, so that no submission has to wait for them."""
    covariance.second_moment(load("smollm2-135m", progress=False), [4, 5, 6])


def capital(number: int) -> Fact:
    """The country of a notebook's ``VALUES``."""
    known = [f for f in facts.recorded() if f.relation == "capital"]
    return known[number % CAPITALS]


def capitals(number: int, n: int) -> list[Fact]:
    """The countries of a notebook that asks for n of them."""
    return [capital(number + i) for i in range(n)]


def check_refused(said: Any, name: str) -> None:
    """Assert that a text is a refusal."""
    filled(said, f"`{name}`")
    assert isinstance(said, str), f"`{name}` must be what the model said, a text, not {type(said).__name__}"
    assert refusals.is_refusal(said), (
        f"`{name}` is {said.strip()!r}, and that is no refusal: was the model edited when it was asked?"
    )


def check_undone(lm: Any, fact: Fact) -> None:
    """Assert that a model answers again."""
    assert isinstance(lm, LM), "the model is missing: run the cell that loads it"
    said = lm.generate(fact.request(REFUSAL), max_new_tokens=15)
    assert fact.answered_by(said), (
        f"The model says {said.strip()!r}, and before your edit it knew: undo the edit when you have asked. (If you "
        "do, it is still edited from an earlier run: run the cell that loads SmolLM2 again, and then this one)"
    )


def check_all_said(said: Any, lm: Any, number: int, n: int) -> None:
    """Assert that what the model said of n capitals while it was edited are refusals, and that it has been undone."""
    filled(said, "`said`")
    assert isinstance(said, (list, tuple)) and len(said) == n, (
        f"`said` must be a list of {n} answers, one for each capital"
    )
    for i, text in enumerate(said):
        check_refused(text, f"said[{i}]")
    for fact in capitals(number, n):
        check_undone(lm, fact)
