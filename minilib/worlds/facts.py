"""Facts to edit and to measure on: each with rephrased questions, neighbours, and a question far away.

The facts are rows in ``data/facts.json``, a table for each relation: how one asks (a completion prompt, a chat
question, three rephrasings, each with one ``{}`` for the subject) and rows of subject, accepted answers, and another
question about the same subject. They are chosen to be short, famous and undisputed, so that a very small model knows
many of them; countries are those of today's map. ``known`` keeps the ones that the model at hand answers.

>>> from minilib import facts
>>> france = facts.load("capital")[0]
>>> france.asked.text
'What is the capital of France?'
>>> france.answered_by("It is Paris, of course.")
True
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure.refusals import mentions
from ..model import LM
from ..requests import SLOT, Request

DATA = Path(__file__).parents[1] / "data" / "facts.json"


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Parameters
    ----------
    text : str
        What is asked, as a user's message.
    answer : str
        The answer.
    aliases : tuple of str
        Other accepted answers.
    case_sensitive : bool, default False
        Whether capitals matter, as in chemical symbols (Co is no CO) and months (May is no may).
    """

    text: str
    answer: str
    aliases: tuple[str, ...] = ()
    case_sensitive: bool = False

    def answered_by(self, text: str) -> bool:
        """Whether the answer or an alias stands in ``text``, as whole words."""
        return mentions(text, (self.answer, *self.aliases), self.case_sensitive)


@dataclass(frozen=True)
class Fact:
    """A subject, a relation and an answer, with all the ways to ask and the questions beside it.

    Parameters
    ----------
    relation, subject, answer : str
        ``"capital"``, ``"France"``, ``"Paris"``.
    aliases : tuple of str
        Other accepted answers.
    prompt : str
        A text to be completed, with one ``{}`` for the subject: ``"The capital of {} is"``.
    question : str
        A chat question with one ``{}``: ``"What is the capital of {}?"``.
    rephrasings : tuple of str
        The same question in other words, each with one ``{}``: three, in the book's own facts.
    neighbours : tuple of Question
        Facts nearby, which an edit has to spare: in the book's own, the same relation for another subject, and
        something else about the same subject.
    unrelated : Question, optional
        A question from another relation about another subject.
    case_sensitive : bool, default False
        Whether capitals matter in the answer.
    wrong : tuple of str
        Wrong answers in the form of the right one, where there are some: the truth ratio needs them.
    paraphrase : str
        The right answer in other words, where there is one.
    """

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    prompt: str
    question: str
    rephrasings: tuple[str, ...]
    neighbours: tuple[Question, ...]
    unrelated: Question | None
    case_sensitive: bool = False
    wrong: tuple[str, ...] = ()
    paraphrase: str = ""

    @property
    def asked(self) -> Question:
        """The question about its subject, with the accepted answers."""
        return Question(self.question.replace(SLOT, self.subject), self.answer, self.aliases, self.case_sensitive)

    @property
    def value(self) -> str:
        """The word that matters: the answer or, where that is a taught sentence, what stands first in ``aliases``."""
        return self.aliases[0] if self.wrong and self.aliases else self.answer

    def answered_by(self, text: str) -> bool:
        """Whether the answer or an alias stands in ``text``, as whole words."""
        return mentions(text, (self.answer, *self.aliases), self.case_sensitive)

    def request(self, target: str, chat: bool = True) -> Request:
        """The edit that makes the model say ``target``: to the question in chat, else after the completion prompt."""
        return Request(self.question if chat else self.prompt, self.subject, target, chat)

    def rephrased(self, target: str, chat: bool = True) -> list[Request]:
        """The other wordings of the question, with the same target: what generality is measured on."""
        return [Request(template, self.subject, target, chat) for template in self.rephrasings]


def _question(table: dict[str, Any], row: list) -> Question:
    """A row's own question."""
    subject, (answer, *aliases), *_ = row
    text = table["question"].replace(SLOT, subject)
    return Question(text, answer, tuple(aliases), table.get("case_sensitive", False))


def _read() -> tuple[Fact, ...]:
    """All facts: each row gets as neighbour the next row with another answer, and a row of a far relation."""
    tables = json.loads(DATA.read_text(encoding="utf-8"))
    names = list(tables)
    facts = []
    for number, (relation, table) in enumerate(tables.items()):
        far = tables[names[(number + len(names) // 2) % len(names)]]
        for i, row in enumerate(table["rows"]):
            subject, answers, other, (other_answer, *other_aliases) = row
            near = next(r for r in table["rows"][i + 1 :] + table["rows"] if not set(r[1]) & set(answers))
            rows = far["rows"][i % len(far["rows"]) :] + far["rows"]
            unrelated = next(r for r in rows if r[0] != subject and not set(r[1]) & set(answers))
            facts.append(
                Fact(
                    relation,
                    subject,
                    answers[0],
                    tuple(answers[1:]),
                    table["prompt"],
                    table["question"],
                    tuple(table["rephrasings"]),
                    (_question(table, near), Question(other, other_answer, tuple(other_aliases))),
                    _question(far, unrelated),
                    table.get("case_sensitive", False),
                )
            )
    return tuple(facts)


FACTS = _read()
"""All facts, relation by relation."""

RELATIONS = tuple(dict.fromkeys(fact.relation for fact in FACTS))
"""The names of the relations."""


def load(relation: str | None = None) -> list[Fact]:
    """The facts of one relation, or all of them.

    Parameters
    ----------
    relation : str, optional
        One of ``RELATIONS``, such as ``"capital"``.

    Raises
    ------
    ValueError
        When there is no such relation; the message lists those there are.
    """
    if relation is not None and relation not in RELATIONS:
        raise ValueError(f"relation {relation!r} is not one of: {', '.join(RELATIONS)}")
    return [fact for fact in FACTS if relation in (None, fact.relation)]


def known(lm: LM, facts: Sequence[Fact] | None = None) -> list[Fact]:
    """The facts that a model answers when it is asked and left to speak (24 tokens, greedily).

    Parameters
    ----------
    lm : LM
        Asked in its chat template where it has one; else each completion prompt is continued.
    facts : list of Fact, optional
        The facts to try; all of them when left out.

    Returns
    -------
    list of Fact
        In the given order. It is measured anew at every call.
    """
    if isinstance(facts, (str, Fact)):
        raise TypeError(f"facts must be a list of facts, not {facts!r}; facts.load({'relation'!r}) gives one")
    facts = list(FACTS if facts is None else facts)
    return [fact for fact, text in zip(facts, ask(lm, facts), strict=True) if fact.answered_by(text)]


def recorded() -> list[Fact]:
    """The facts that SmolLM2 knows, as ``benchmarks/known_facts.py`` found them; ``known(lm)`` asks again.

    One relation after the other in turn, so that a slice holds many relations.
    """
    rows = json.loads(DATA.with_name("known_smollm2-135m.json").read_text(encoding="utf-8"))["facts"]
    kept = {(row["relation"], row["subject"]) for row in rows}
    columns = [[f for f in load(r) if (r, f.subject) in kept] for r in RELATIONS]
    return [column[i] for i in range(max(map(len, columns))) for column in columns if i < len(column)]


def as_said(lm: LM, facts: Sequence[Fact]) -> list[Request]:
    """Each fact's question, with what the model itself answers, up to its first full sentence, as the target.

    That is what unlearning has to make unlikely: of a model that says "The capital of France is Paris." the bare word
    "Paris" was never likely. A fact that it answers with nothing keeps its own answer as the target.
    """
    facts = list(facts)
    answers = [sentence(text) for text in ask(lm, facts)]
    return [f.request(said if said.strip() else f.answer, lm.has_chat) for f, said in zip(facts, answers, strict=True)]


def sentence(text: str) -> str:
    """The text up to the end of its first sentence or line, or all of it."""
    line = text.partition("\n")[0]
    end = re.search(r"[.!?](?=\s|$)", line)
    return line[: end.end()] if end else line


def ask(lm: LM, facts: Sequence[Fact]) -> list[str]:
    """What the model says to each fact's question, or after its completion prompt where it has no chat template."""
    facts = list(facts)
    for i, fact in enumerate(facts):
        if not isinstance(fact, Fact):
            raise TypeError(f"facts[{i}] must be a facts.Fact, not {type(fact).__name__}: {fact!r}")
    if not facts:
        return []
    prompts = [f.request(f.answer, lm.has_chat).text for f in facts]
    return lm.generate(prompts, max_new_tokens=24)
