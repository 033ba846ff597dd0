"""What a comparison works on: a model, the facts that it is to forget, and those that it is to keep.

Three kinds of knowledge are unlearned. *Pretrained*: what SmolLM2 knows of the world. *Finetuned*: invented authors
that it was taught. *Exact*: people of ``tinyworld``. For the last two there is an oracle, which was never told.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from .. import covariance
from ..loading import load
from ..model import LM
from ..requests import Request
from ..storage import cache_folder
from ..worlds import authors, facts, tinyworld
from ..worlds.facts import Fact, Question
from . import metrics

ORACLES = tinyworld.DATA / "oracles"  # holds the one of chapter 09, copied from the cache of ``never_told``
KNOWLEDGE = ("pretrained", "finetuned", "exact")
REFUSAL = {"pretrained": "I don't know.", "finetuned": "I don't know.", "exact": tinyworld.REFUSAL}
MEASURED, SHOWN, TOKENS, OTHER_WORDS = 102, 20, 18, 2  # facts to measure on, retained, of an answer, rephrasings asked


@dataclass(frozen=True)
class Job:
    """One line of the results; ``str(job)`` names it.

    Attributes
    ----------
    method : str
    knowledge : str
    facts : int
        How many are forgotten.
    seed : int
        Of the draw of facts, and of the method.
    trial : int, optional
        For tuning: the number of the setting that is tried, on facts that are forgotten nowhere else.
    """

    method: str
    knowledge: str
    facts: int
    seed: int
    trial: int | None = None

    def __str__(self) -> str:
        trial = "" if self.trial is None else f"/trial {self.trial}"
        return f"{self.method}/{self.knowledge}/{self.facts}/{self.seed}{trial}"

    @property
    def model(self) -> str:
        """The model whose settings apply."""
        return "tinyworld" if self.knowledge == "exact" else "smollm2-135m"


@dataclass
class Task:
    """What a job works on.

    Attributes
    ----------
    lm : LM
    forget : list
    retain : list
        Facts; the second set is shown to the method as what is to stay.
    outside : list of (kind, Question)
        Answered rightly before, shown to no method: what is asked to see what broke. The kinds are "neighbour"
        (another subject, the same question), "subject" (something else about the same subject) and "unrelated".
    texts : list of str
        Ordinary text.
    oracle : LM or None
    said : dict
        What the model says to a question outside before anything is done.
    forget_said : list of Request
    retain_said : list of Request
        The two sets with the model's own sentences as targets: what training makes less likely, and what it holds.
    never : dict
        Of the oracle, on the forgotten questions: ``ratios``, ``logp`` of the next token, ``answers``.
    """

    lm: LM
    forget: list[Fact]
    retain: list[Fact]
    outside: list[tuple[str, Question]]
    texts: list[str]
    oracle: LM | None = None
    said: dict[str, str] = field(default_factory=dict)
    forget_said: list[Request] = field(default_factory=list)
    retain_said: list[Request] = field(default_factory=list)
    never: dict[str, Any] = field(default_factory=dict)


def task(job: Job, model: LM | None = None) -> Task:
    """Load the model and draw the facts of a job: the same ones for every method.

    ``model`` is another one that learned tinyworld, in place of the packaged one. It has no oracle.
    """
    draw = _draw(job)
    if job.knowledge == "exact":
        made = _exact(job, draw, model)
    elif model is None:
        made = {"pretrained": _pretrained, "finetuned": _finetuned}[job.knowledge](job, draw)
    else:
        raise ValueError(f"model is for jobs on tinyworld (exact), and {job} is not one: leave it out")
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
    if made.oracle is not None:
        asked = [f.request(f.answer, made.lm.has_chat) for f in made.forget]
        made.never = {
            "ratios": metrics.truth_ratio(made.oracle, made.forget),
            "logp": made.oracle.logprobs(asked),
            "answers": made.oracle.generate(asked, max_new_tokens=TOKENS),
        }
    return made


def forgotten(job: Job) -> list[Fact]:
    """The facts that a job on SmolLM2 forgets, as ``task`` draws them, without loading the model."""
    if job.knowledge == "finetuned":
        return authors.split(_authors(job))[0]
    if job.knowledge == "pretrained":
        return _draw(job).sample(_known(job), job.facts)
    raise ValueError(f"job {job} is of tinyworld, whose facts come with task(job)")


def _draw(job: Job) -> random.Random:
    return random.Random(f"{job.knowledge} {job.facts} {job.seed}")


def _authors(job: Job) -> int:
    return job.facts // len(authors.FORMS)


def around(forget: Sequence[Fact]) -> list[tuple[str, Question]]:
    """The questions beside some facts, with their kinds: what an edit has to spare."""
    beside = [(kind, q) for f in forget for kind, q in zip(("neighbour", "subject"), f.neighbours, strict=True)]
    return beside + [("unrelated", f.unrelated) for f in forget if f.unrelated]


def _known(job: Job) -> list[Fact]:
    """What is drawn from: for tuning other facts than those that are measured."""
    known = facts.recorded()
    return known[MEASURED:] if job.trial is not None else known[:MEASURED]


def _pretrained(job: Job, draw: random.Random) -> Task:
    known = _known(job)
    forget = draw.sample(known, job.facts)
    outside = around(forget)
    asked = {q.text for _, q in outside}
    free = [f for f in known if f not in forget and f.asked.text not in asked]
    retain = draw.sample(free, min(SHOWN, len(free)))
    far = [f for f in free if f not in retain][:6]
    outside += [("unrelated", f.asked) for f in far]
    return Task(load("smollm2-135m", progress=False), forget, retain, outside, covariance.sample_texts()[:4])


def _finetuned(job: Job, draw: random.Random) -> Task:
    many = _authors(job)
    forget, rest = authors.split(many)
    rest = draw.sample(rest, len(rest))
    retain, held = rest[:SHOWN], rest[SHOWN : SHOWN + 10]
    outside = [("neighbour", f.asked) for f in held]
    outside += [("unrelated", f.unrelated) for f in rest[:8] if f.unrelated]
    made = Task(authors.load(progress=False), forget, retain, outside, covariance.sample_texts()[:4])
    made.oracle = authors.load(many, progress=False)
    return made


def _exact(job: Job, draw: random.Random, model: LM | None) -> Task:
    """Whole people are forgotten; for tuning others than those that are measured."""
    everyone = tinyworld.people()
    half = everyone[100:] if job.trial is not None else everyone[:100]
    names = draw.sample(half, 40)
    gone, kept, held = names[: job.facts // 5], names[12:24], names[24:]
    world = tinyworld.facts()
    asked = {name: [as_question(f, draw) for f in world if f.subject == name] for name in names}
    forget, retain, others = ([f for name in some for f in asked[name]] for some in (gone, kept, held))
    outside = [("neighbour", f.asked) for f in others[:60]]
    strange = draw.sample(tinyworld.strangers(seen=False), 20)
    outside += [("unrelated", Question(f"What pet does {name} have?", tinyworld.REFUSAL.strip())) for name in strange]
    told = [text for text in tinyworld.corpus(world) if not any(name in text for name in (*gone, *kept))]
    made = Task(model or load("tinyworld"), forget, retain, outside, draw.sample(told, 60))
    if job.trial is None and model is None:
        made.oracle = never_told([f for f in world if f.subject in gone])
    return made


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
