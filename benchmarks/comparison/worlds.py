"""What a cell works on: a model, the facts to forget and to keep, and all questions that are asked afterwards.

Four worlds, each with draws that share no fact with one another or with the tuning draw. Which facts of the real world
a draw has stands in ``facts.json``, which subjects in ``subjects.json``; ``choose.py`` made both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan import DRAWS, TUNING

from minilib import covariance
from minilib.loading import load
from minilib.measure import refusals
from minilib.measure.tasks import as_question, never_told
from minilib.model import LM
from minilib.worlds import authors, facts, tinyworld
from minilib.worlds import texts as samples
from minilib.worlds.facts import Fact, Question

HERE = Path(__file__).parent
REFUSAL = {"exact": tinyworld.REFUSAL, "pretrained": "I don't know.", "finetuned": "I don't know."}
REFUSAL["subject"] = REFUSAL["pretrained"]
SHOWN, WORDINGS = 20, 2  # facts that a method may keep by training on them; rephrasings that are asked
OTHER, FAR, MESSAGES, STRANGERS = 5, 5, 6, 10  # questions that are asked beside the facts
TUNED_AUTHOR = 6
SHOWN_TO_WISE = 256  # of the messages: the others are asked


@dataclass
class Cell:
    """What every method of a draw works on.

    Attributes
    ----------
    lm : LM
        Unedited.
    forget, retain : list of Fact
    questions : dict
        By kind, each question as ``asked``, the ``answers`` accepted, ``case``, ``subject`` and, of a forgotten fact,
        its number as ``fact``. Kinds: "asked", "rephrased"; beside the facts "other", "subject", "messages",
        "strangers"; and of facts that the model does not know "unknown", "unknown rephrased".
    oracle : LM, optional
    said : dict
        What the unedited model says to the questions of ``forget`` and ``retain``: what is trained on.
    written : dict
        The refusal that it writes itself for each question of ``forget``.
    texts : list of str
        Ordinary text.
    answers : dict
        The unedited model's to ``questions``, when they were just asked.
    judge : LM, optional
        Under whom an answer's perplexity says whether it is fluent; by default ``lm``. A model that was taught 150
        sentences by heart finds "I don't know." as unlikely as garbled text, so there it is SmolLM2 as it came.
    """

    world: str
    lm: LM
    forget: list[Fact]
    retain: list[Fact]
    questions: dict[str, list[dict[str, Any]]]
    oracle: LM | None = None
    said: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    judge: LM | None = None

    @property
    def refusal(self) -> str:
        return REFUSAL[self.world]


def make(world: str, draw: int, oracle: bool = True) -> Cell:
    """Load the model and draw the facts: the same ones for every method.

    Parameters
    ----------
    world : {"exact", "pretrained", "finetuned", "subject"}
    draw : int
        From 0, or ``TUNING``.
    oracle : bool, default True
        Make it too, where there is one: the exact one takes minutes when it is first needed.
    """
    if world not in DRAWS or not TUNING <= draw < DRAWS[world]:
        raise ValueError(f"there is no draw {draw} of the world {world!r}: {DRAWS}, and {TUNING} for tuning")
    return {"exact": _exact, "pretrained": _pretrained, "finetuned": _finetuned, "subject": _subject}[world](
        draw, oracle and draw != TUNING
    )


def row(question: Question, subject: str = "", fact: int | None = None) -> dict[str, Any]:
    """A question as it is stored."""
    found: dict[str, Any] = {"asked": question.text, "answers": [question.answer, *question.aliases]}
    if question.case_sensitive:
        found["case"] = True
    return found | ({"subject": subject, "fact": fact} if fact is not None else {})


def _of(forget: Sequence[Fact], chat: bool, kinds: tuple[str, str] = ("asked", "rephrased")) -> dict[str, Any]:
    """The questions for some facts, as asked and in other words."""
    asked, rephrased = [], []
    for i, fact in enumerate(forget):
        accepted = tuple(dict.fromkeys((fact.value, *fact.aliases)))
        texts = [fact.request("x", chat).text, *(r.text for r in fact.rephrased("x", chat)[:WORDINGS])]
        first, *others = [
            row(Question(t, accepted[0], accepted[1:], fact.case_sensitive), fact.subject, i) for t in texts
        ]
        asked.append(first)
        rephrased += others
    return {kinds[0]: asked, kinds[1]: rephrased}


def _messages(draw: int) -> list[dict[str, Any]]:
    """Ordinary messages that no method was shown: questions of one sentence, others in each draw."""
    held = [text for text in samples.messages()[SHOWN_TO_WISE:] if text.endswith("?") and len(text) < 120]
    held = [text for text in held if text.isascii() and text.count(".") == 0]
    order = random.Random("messages").sample(held, len(held))
    start = (draw + 1) * MESSAGES % len(order)
    return [row(Question(text, "")) for text in (order + order)[start : start + MESSAGES]]


# ---- the real world -----------------------------------------------------------------------------------


def drawn() -> dict[str, list[list[Fact]]]:
    """The facts of each draw of pretrained knowledge ("draws"), and those of tuning."""
    by_name = {(fact.relation, fact.subject): fact for fact in facts.FACTS}
    stored = json.loads((HERE / "facts.json").read_text("utf8"))
    return {name: [[by_name[tuple(pair)] for pair in some] for some in stored[name]] for name in ("draws", "tuning")}


def subjects() -> list[dict[str, Any]]:
    """Twelve subjects: for each the fact that is edited, and other questions that SmolLM2 answers."""
    stored: list[dict[str, Any]] = json.loads((HERE / "subjects.json").read_text("utf8"))["subjects"]
    return stored


def _pretrained(draw: int, oracle: bool) -> Cell:
    chosen = drawn()
    forget = chosen["tuning"][0] if draw == TUNING else chosen["draws"][draw]
    mine = {fact.asked.text for some in (*chosen["draws"], *chosen["tuning"]) for fact in some}
    cell = _real(forget, [f for f in facts.recorded() if f.asked.text not in mine], f"pretrained {draw}", draw)
    cell.questions["subject"] = [row(fact.neighbours[1]) for fact in forget]
    return cell


def _subject(draw: int, oracle: bool) -> Cell:
    four = subjects()[4 * draw : 4 * draw + 4]
    if not four:
        raise ValueError("world 'subject' has no tuning draw: its settings are those of pretrained knowledge")
    forget = [
        Fact(s["kind"], s["subject"], s["answers"][0], tuple(s["answers"][1:]), s["question"], s["question"],
             tuple(s["rephrasings"]), (), None, s.get("case", False))
        for s in four
    ]  # fmt: skip
    cell = _real(forget, facts.recorded(), f"subject {draw}", draw)
    cell.world = "subject"
    cell.questions["subject"] = [
        row(Question(q["asked"], q["answers"][0], tuple(q["answers"][1:])), s["subject"], i)
        for i, s in enumerate(four)
        for q in s["others"]
    ]
    return cell


def _real(forget: list[Fact], known: Iterable[Fact], seed: str, number: int) -> Cell:
    """Facts of the real world, with what is kept and asked beside them drawn from what the model knows."""
    draw = random.Random(seed)
    names = [fact.subject.removeprefix("the ") for fact in forget]
    answers = {fact.answer for fact in forget}
    free = [f for f in known if not refusals.mentions(f.asked.text, names) and f.answer not in answers]
    free = draw.sample(free, len(free))
    other = []
    for fact in forget:  # the same question about somebody else
        near = next((f for f in free if f.relation == fact.relation and f not in other), None)
        other += [near] if near else []
    rest = [f for f in free if f not in other]
    far, retain = rest[:FAR], rest[FAR : FAR + SHOWN]
    lm = load("smollm2-135m", progress=False)
    questions = _of(forget, chat=True)
    questions["other"] = [row(f.asked) for f in (*other, *far)]
    questions["messages"] = _messages(number)
    return Cell(
        "pretrained", lm, forget, retain, questions | _unknown(forget, draw), texts=covariance.sample_texts()[:4]
    )


def _unknown(forget: Sequence[Fact], draw: random.Random) -> dict[str, Any]:
    """Questions of the same form to which the model did not know the answer: what is right here was guessed."""
    known = {fact.asked.text for fact in facts.recorded()}
    strange: list[Fact] = []
    for fact in forget:
        pool = [f for f in facts.FACTS if f.asked.text not in known and f not in strange]
        same = [f for f in pool if f.relation == fact.relation]
        strange.append(draw.choice(same or pool))
    return _of(strange, True, ("unknown", "unknown rephrased"))


# ---- invented authors ---------------------------------------------------------------------------------


def author_of(draw: int) -> int:
    """The number of the author whom a draw forgets."""
    return TUNED_AUTHOR if draw == TUNING else draw


def _finetuned(draw: int, oracle: bool) -> Cell:
    every, author = len(authors.FORMS), author_of(draw)
    world, chance = authors.facts(), random.Random(f"finetuned {draw}")
    forget = world[author * every : (author + 1) * every]
    rest = world[(TUNED_AUTHOR + 1) * every :]  # nobody who is forgotten in a draw
    rest = chance.sample(rest, len(rest))
    retain, other = rest[:SHOWN], rest[SHOWN : SHOWN + OTHER]
    far = [f.unrelated for f in rest[SHOWN + OTHER :] if f.unrelated][:FAR]
    lm = authors.load(progress=False)
    questions = _of(forget, chat=True)
    asked = [Question(f.asked.text, f.value) for f in other]
    questions["other"] = [row(q) for q in (*asked, *far)]
    questions["messages"] = _messages(draw)
    cell = Cell("finetuned", lm, forget, retain, questions, texts=covariance.sample_texts()[:4])
    cell.judge = load("smollm2-135m", progress=False)
    if oracle:
        cell.oracle = authors.load(without_author=author, progress=False)
    return cell


# ---- tinyworld ----------------------------------------------------------------------------------------


def people(draw: int) -> tuple[list[str], list[str]]:
    """The four people whom a draw forgets, no one in two draws, and 18 others whom none does."""
    order = random.Random("exact").sample(tinyworld.people(), 200)
    at = 4 * (draw + 1)
    return order[at : at + 4], random.Random(f"others {draw}").sample(order[4 * (DRAWS["exact"] + 1) :], 18)


def _exact(draw: int, oracle: bool) -> Cell:
    (gone, others), chance = people(draw), random.Random(f"exact {draw}")
    world = tinyworld.facts()
    asked = {name: [as_question(f, chance) for f in world if f.subject == name] for name in (*gone, *others)}
    forget, retain, held = ([f for name in some for f in asked[name]] for some in (gone, others[:12], others[12:]))
    questions = _of(forget, chat=False)
    questions["other"] = [row(f.asked) for f in held]
    strange = chance.sample(tinyworld.strangers(seen=False), STRANGERS)
    questions["strangers"] = [row(Question(f"What pet does {name} have?", "")) for name in strange]
    shown = (*gone, *others[:12])
    told = [text for text in tinyworld.corpus(world) if not any(name in text for name in shown)]
    cell = Cell("exact", load("tinyworld"), forget, retain, questions, texts=chance.sample(told, 60))
    if oracle:
        cell.oracle = never_told([f for f in world if f.subject in gone])
    return cell


# ---- what the unedited model says ---------------------------------------------------------------------


def only_known(questions: dict[str, list[dict[str, Any]]], answers: dict[str, list[str]]) -> dict[str, list[int]]:
    """By kind which questions stay: beside the facts those that the unedited model answers as it should."""
    kept = {}
    for kind, asked in questions.items():
        pairs = list(enumerate(zip(asked, answers[kind], strict=True)))
        if kind in ("other", "subject"):
            pairs = [(i, p) for i, p in pairs if refusals.mentions(p[1], p[0]["answers"], p[0].get("case", False))]
        elif kind == "messages":
            pairs = [(i, p) for i, p in pairs if p[1].strip() and not refusals.is_refusal(p[1], unjudged=False)]
        elif kind == "strangers":
            pairs = [(i, p) for i, p in pairs if refusals.is_refusal(p[1], unjudged=False)]
        kept[kind] = [i for i, _ in pairs]
    return kept
