"""Checks of assignment 08: unlearn people of tinyworld under a budget, on people that were not seen before."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..loading import load
from ..measure import refusals
from ..model import LM
from ..requests import Request
from ..worlds import tinyworld
from . import real
from .checks import call

PEOPLE, RETAINED, ASKED = 4, 80, 120  # people to forget; facts that may be used; facts that are asked and were not seen
BUDGET = 30.0  # seconds


@dataclass(frozen=True)
class Problem:
    """Who is to be forgotten, what may be used to keep the rest, and what is asked in the end.

    ``forget`` and ``retain`` hold Requests whose target is the true answer. ``reworded`` asks for the forgotten facts
    in wordings that no training saw, ``others`` for facts of people that are in neither list, namesakes among them.
    """

    forget: list[Request]
    retain: list[Request]
    reworded: list[Request]
    others: list[Request]


def problem(number: int) -> Problem:
    """The problem of a notebook's ``VALUES``, or of a hidden number."""
    draw = random.Random(int(number))
    chosen = draw.sample(tinyworld.people(), PEOPLE)
    facts = tinyworld.facts()
    about = [f for f in facts if f.subject in chosen]
    families = {name.split()[-1] for name in chosen}
    near = [f for f in facts if f.subject not in chosen and f.subject.split()[-1] in families]
    far = [f for f in facts if f.subject not in chosen and f.subject.split()[-1] not in families]
    draw.shuffle(near)
    draw.shuffle(far)
    retained, left = far[:RETAINED], far[RETAINED:]
    asked = (near + left)[:ASKED] if len(near) < ASKED // 3 else near[: ASKED // 3] + left[: ASKED - ASKED // 3]
    return Problem(
        [_ask(f, f.prompts[-1]) for f in about],
        [_ask(f, f.prompts[-1]) for f in retained],
        [_ask(f, wording) for f in about for wording in f.held_out],
        [_ask(f, f.prompts[-1]) for f in asked],
    )


def _ask(fact: tinyworld.PersonFact, wording: str) -> Request:
    return Request(wording, fact.subject, f" {fact.value}")


def told(lm: LM, asked: Sequence[Request]) -> float:
    """The share of requests whose true answer the model gives."""
    said = lm.generate(list(asked), max_new_tokens=6)
    return sum(text.strip().startswith(r.target.strip()) for text, r in zip(said, asked, strict=True)) / len(asked)


def score(forgotten: float, kept: float) -> float:
    """The harmonic mean of 1 − told and kept."""
    return 0.0 if forgotten + kept == 0 else 2 * forgotten * kept / (forgotten + kept)


def result(function: Any, number: int) -> dict[str, float]:
    """``unlearn(lm, forget, retain)`` on a fresh tinyworld: what it still tells, what it keeps, and the score."""
    given = problem(number)
    lm = load("tinyworld")
    parts = lm, list(given.forget), list(given.retain)
    late = "use fewer steps or fewer requests (on a busy machine the same code takes longer)"
    call(function, *parts, name="unlearn", seconds=BUDGET, may_change=[0, 1, 2], returns=False, late=late)
    forgotten = 1 - told(lm, given.forget + given.reworded)
    kept = told(lm, given.others)
    return {"forgotten": forgotten, "kept": kept, "score": score(forgotten, kept)}


def check_told(function: Any, number: int) -> None:
    """``share_told(lm, requests)``: how many true answers the model gives, by what it generates."""
    lm = load("tinyworld")
    given = problem(number)
    asked = given.forget[:10] + [
        Request(r.prompt, r.subject, other.target) for r, other in zip(given.forget[:10], given.retain, strict=False)
    ]
    # A name's second word stands in the answer, and the answer does not begin with it.
    asked += [Request(r.prompt, r.subject, f" {r.target.split()[1]}") for r in given.forget if " " in r.target.strip()]
    found = call(function, lm, asked, name="share_told", may_change=[0, 1])
    texts = [text.strip() for text in lm.generate(asked, max_new_tokens=6)]
    wanted = [r.target.strip() for r in asked]
    right = sum(map(str.startswith, texts, wanted)) / len(asked)
    assert isinstance(found, (int, float)) and not isinstance(found, bool), "`share_told` must return a number"
    assert found <= 1, f"`share_told` returns {found:g}: a share is at most 1, divide by the number of requests"
    likely = [p > 0.5 for p in lm.probability(asked)]
    if abs(found - sum(likely) / len(likely)) < 1e-9 and abs(found - right) > 1e-9:
        raise AssertionError("Ask by `lm.generate`: a likely target is not yet what the model says")
    said = f"`share_told` says {found:.2f} where {right:.2f} of the answers are given"
    for rule, mistake in (
        (str.__contains__, "the text has to *begin* with the target, a word in its middle is not yet the answer"),
        (str.__eq__, "the answer may go on after the target, so ask whether the text begins with it"),
    ):
        share = sum(map(rule, texts, wanted)) / len(asked)
        if abs(found - share) < 1e-9 and abs(found - right) > 1e-9:
            raise AssertionError(f"{said}: {mistake}")
    assert abs(found - right) < 1e-6, f"{said}: compare with the target, whose first space may be missing in the text"


def check_score(function: Any, number: int) -> None:
    """``score(forgotten, kept)``: the harmonic mean, 0 where one of both is 0."""
    draw = random.Random(number)
    for a, b in [(draw.uniform(0.05, 1), draw.uniform(0.05, 1)), (0.0, 0.9), (0.0, 0.0), (1.0, 1.0)]:
        found = call(function, a, b, name="score")
        right = score(a, b)
        if abs(found - (a + b) / 2) < 1e-9 and abs(found - right) > 1e-9:
            raise AssertionError("That is the plain mean: a method that forgets everything would score a half")
        if abs(found - (a * b) ** 0.5) < 1e-9 and abs(found - right) > 1e-9:
            raise AssertionError("That is the geometric mean: the harmonic one is 2ab / (a + b)")
        assert abs(found - right) < 1e-6, f"score({a:.2f}, {b:.2f}) is {found:.3f} and should be {right:.3f}"


def check_unlearn(function: Any, number: int, least: float) -> str:
    """``unlearn`` reaches a score on people that were drawn from the number; returns what it reached, in words."""
    found = result(function, number)
    record(number, least, found)
    said = f"It forgets {found['forgotten']:.0%} and keeps {found['kept']:.0%}: a score of {found['score']:.2f}"
    if found["score"] < least:
        weak = "too little is forgotten" if found["forgotten"] < found["kept"] else "too much else is lost"
        if found["forgotten"] < 0.05:
            weak += (
                ", the model is nearly as it was. Is an edit undone at the end of a `with`, or made on another model?"
            )
        elif found["forgotten"] < 0.4:
            weak += ". If you use an editor, give it requests whose target is `tinyworld.REFUSAL`, not the true answer"
        raise AssertionError(f"{said}, and {least:.2f} is asked for: {weak}")
    return said


def record(number: int, least: float, found: dict[str, float]) -> None:
    """For the leaderboard: what the hidden test measured, where the grader asks for it."""
    file = os.environ.get("COURSE_BOARD")
    if file:
        Path(file).write_text(json.dumps({"number": number, **{k: round(v, 4) for k, v in found.items()}}))


def check_real(said: Any, others: Any, lm: Any, number: int) -> None:
    """SmolLM2 refuses the capital of VALUES, still gives the next three, and has been undone."""
    real.check_refused(said, "said")
    wanted = [real.capital(number + i) for i in (1, 2, 3)]
    assert isinstance(others, list) and len(others) == 3, "`others` must be a list of what it says of the three others"
    kept = sum(f.answered_by(text) and not refusals.is_refusal(text) for f, text in zip(wanted, others, strict=True))
    assert kept >= 2, f"Of the three other capitals it gives {kept}: that is too much damage, write to an earlier layer"
    real.check_undone(lm, real.capital(number))
