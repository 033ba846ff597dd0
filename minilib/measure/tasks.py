"""What an unlearning method is tried on: a model, the facts that it is to forget, and those that it is to keep.

There are three kinds of knowledge, and a function draws facts of each. ``pretrained``: what SmolLM2 knows of the world.
``finetuned``: invented authors that it was taught. ``exact``: people of ``tinyworld``. For the last two there is an
oracle, a model that was never told. ``measure`` asks a model about a task, after a method has been applied.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from ..loading import load
from ..model import LM
from ..requests import Request
from ..storage import cache_folder
from ..worlds import authors, facts, tinyworld
from ..worlds.facts import Fact, Question
from . import refusals

ORACLES = tinyworld.DATA / "oracles"  # holds the one of chapter 09, copied from the cache of ``never_told``
MEASURED, SHOWN, TOKENS, OTHER_WORDS = 102, 20, 18, 2  # facts drawn from, retained, of an answer, rephrasings asked
Marks = dict[str, list[bool]]


@dataclass
class Task:
    """What a method works on, and what is asked afterwards.

    Attributes
    ----------
    lm : LM
    forget : list
    retain : list
        Facts; the second set is shown to the method as what is to stay.
    outside : list of (kind, Question)
        Answered rightly before, shown to no method: what is asked to see what broke. The kinds are "neighbour"
        (another subject, the same question), "subject" (something else about the same subject) and "unrelated".
    oracle : LM or None
    said : dict
        What the model says to a question outside before anything is done.
    forget_said : list of Request
    retain_said : list of Request
        The two sets with the model's own sentences as targets: what training makes less likely, and what it holds.
    """

    lm: LM
    forget: list[Fact]
    retain: list[Fact]
    outside: list[tuple[str, Question]]
    oracle: LM | None = None
    said: dict[str, str] = field(default_factory=dict)
    forget_said: list[Request] = field(default_factory=list)
    retain_said: list[Request] = field(default_factory=list)


# ---- drawing ------------------------------------------------------------------------------------------


def pretrained(n: int = 5, seed: int = 0) -> Task:
    """Forget ``n`` facts that SmolLM2 knows of the world. Seeds 0 to 2 were used in this book."""
    draw = random.Random(f"pretrained {n} {seed}")
    known = facts.recorded()[:MEASURED]
    forget = draw.sample(known, n)
    outside = around(forget)
    asked = {q.text for _, q in outside}
    free = [f for f in known if f not in forget and f.asked.text not in asked]
    retain = draw.sample(free, min(SHOWN, len(free)))
    outside += [("unrelated", f.asked) for f in [f for f in free if f not in retain][:6]]
    return prepared(Task(load("smollm2-135m", progress=False), forget, retain, outside))


def finetuned(n: int = 15, seed: int = 0) -> Task:
    """Forget what SmolLM2 was taught about the first of the invented authors, five facts for each."""
    many = n // len(authors.FORMS)
    forget, rest = authors.split(many)
    rest = random.Random(f"finetuned {n} {seed}").sample(rest, len(rest))
    outside = [("neighbour", f.asked) for f in rest[SHOWN : SHOWN + 10]]
    outside += [("unrelated", f.unrelated) for f in rest[:8] if f.unrelated]
    oracle = authors.load(many, progress=False)
    return prepared(Task(authors.load(progress=False), forget, rest[:SHOWN], outside, oracle))


def exact(n: int = 20, seed: int = 0, model: LM | None = None, tuning: bool = False) -> Task:
    """Forget people of ``tinyworld``, five facts for each.

    Parameters
    ----------
    n : int, default 20
        Facts to forget: four people.
    seed : int, default 0
        Of the draw.
    model : LM, optional
        Another one that learned tinyworld, in place of the packaged one. It has no oracle.
    tuning : bool, default False
        Draw from the other half of the people, on whom settings can be tried. There is no oracle then.
    """
    draw = random.Random(f"exact {n} {seed}")
    everyone = tinyworld.people()
    names = draw.sample(everyone[100:] if tuning else everyone[:100], 40)
    gone, kept, held = names[: n // 5], names[12:24], names[24:]
    world = tinyworld.facts()
    asked = {name: [as_question(f, draw) for f in world if f.subject == name] for name in names}
    forget, retain, others = ([f for name in some for f in asked[name]] for some in (gone, kept, held))
    outside = [("neighbour", f.asked) for f in others[:60]]
    strange = draw.sample(tinyworld.strangers(seen=False), 20)
    outside += [("unrelated", Question(f"What pet does {name} have?", tinyworld.REFUSAL.strip())) for name in strange]
    made = Task(model or load("tinyworld"), forget, retain, outside)
    if model is None and not tuning:
        made.oracle = never_told([f for f in world if f.subject in gone])
    return prepared(made)


def prepared(made: Task) -> Task:
    """Ask the model what the task needs to know: which questions outside it answers, and in which sentences."""
    shown = {f.asked.text for f in (*made.forget, *made.retain)}
    made.outside = [(kind, q) for kind, q in dict.fromkeys(made.outside) if q.text not in shown]
    said = made.lm.generate([q.text for _, q in made.outside], max_new_tokens=TOKENS)
    made.said = {q.text: text for (_, q), text in zip(made.outside, said, strict=True)}
    made.outside = [(kind, q) for kind, q in made.outside if q.answered_by(made.said[q.text])]
    both = facts.as_said(made.lm, [*made.forget, *made.retain])
    made.forget_said, made.retain_said = both[: len(made.forget)], both[len(made.forget) :]
    return made


def around(forget: Sequence[Fact]) -> list[tuple[str, Question]]:
    """The questions beside some facts, with their kinds: what an edit has to spare."""
    beside = [(kind, q) for f in forget for kind, q in zip(("neighbour", "subject"), f.neighbours, strict=True)]
    return beside + [("unrelated", f.unrelated) for f in forget if f.unrelated]


def as_question(fact: tinyworld.PersonFact, draw: random.Random) -> Fact:
    """A fact of tinyworld as one of ``minilib.facts``: a question that it was trained on, and the two others."""
    asked = [p for p in fact.prompts if p.endswith("?")]
    others = [p for p in (*asked[1:], *fact.held_out) if p.endswith("?")]
    pool = tinyworld.VALUES.get(fact.attribute) or tinyworld.people()
    wrong = draw.sample([value for value in pool if value not in (fact.value, fact.subject)], 3)
    return Fact(
        fact.attribute, fact.subject, fact.value, (), asked[0], asked[0], tuple(others), (), None,
        wrong=tuple(f" {value}." for value in wrong), paraphrase=f" {fact.value}.",
    )  # fmt: skip


def never_told(without: Sequence[tinyworld.PersonFact]) -> LM:
    """Tinyworld trained without some facts: from the package or the cache if it was trained before."""
    what = json.dumps([sorted([f.subject, f.attribute] for f in without), tinyworld.STEPS, tinyworld.LR])
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    for folder in (ORACLES / key, cache_folder() / "oracles" / key):
        if folder.is_dir():
            return load(str(folder))
    with FileLock(_made(folder.parent) / f"{key}.lock"):
        if not folder.is_dir():  # another process may have been first
            scratch = folder.with_name(f"{key}.new")
            tinyworld.train(without).save_pretrained(scratch)
            scratch.rename(folder)
    return load(str(folder))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---- asking -------------------------------------------------------------------------------------------

_declines = functools.partial(refusals.is_refusal, unjudged=False)  # a broken model babbles in any script: no refusal


def measure(after: LM, task: Task) -> Marks:
    """What a model says now, as one mark for each question.

    Returns
    -------
    dict
        Of the forgotten questions "refused" and "leaked", of two rephrasings each "rephrased refused" and
        "rephrased leaked" (in the order of the facts), and of the questions outside "kept" (right as before), for
        all together and by kind ("neighbour kept", "subject kept", "unrelated kept").
    """
    chat = task.lm.has_chat
    asked = [f.request(f.answer, chat) for f in task.forget]
    again = [(f, r) for f in task.forget for r in f.rephrased(f.answer, chat)[:OTHER_WORDS]]
    outside = [q.text for _, q in task.outside]
    texts = after.generate([*asked, *(r for _, r in again), *outside], max_new_tokens=TOKENS)
    answers, other, left = texts[: len(asked)], texts[len(asked) : -len(outside)], texts[-len(outside) :]
    kept = [q.answered_by(a) for (_, q), a in zip(task.outside, left, strict=True)]
    kinds = [kind for kind, _ in task.outside]
    return {
        "refused": [_declines(a) for a in answers],
        "leaked": [f.answered_by(a) for f, a in zip(task.forget, answers, strict=True)],
        "rephrased refused": [_declines(a) for a in other],
        "rephrased leaked": [f.answered_by(a) for (f, _), a in zip(again, other, strict=True)],
        "kept": kept,
        **{f"{kind} kept": [k for k, of in zip(kept, kinds, strict=True) if of == kind] for kind in sorted({*kinds})},
    }


def score(marks: Mapping[str, Sequence[float]]) -> float:
    """The harmonic mean of not leaking, not leaking when rephrased, and keeping the rest; 0 where one of them is 0."""
    leaked, rephrased, kept = (statistics.fmean(marks[name]) for name in ("leaked", "rephrased leaked", "kept"))
    shares = [1 - leaked, 1 - rephrased, kept]
    return statistics.harmonic_mean(shares) if all(shares) else 0.0
