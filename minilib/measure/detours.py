"""Attacks that ask by a detour: in other company, by another name, for what follows from the answer.

All are ``attacks.X`` as well; ``attacks`` says what they take and return.

Who never knew the fact answers some of these too: of "Which river flows through the capital of France?" the Seine can
be found without Paris. So an attack is worth what it recovers beyond its false alarms. For these, call it on an oracle,
or on the unedited model with facts of the same kind that this doesn't know:

>>> never = [fact for fact in facts.load("capital") if fact not in facts.recorded()]
>>> alarms = verdicts.rates(attacks.hops(lm, never))
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..edits import Edit
from ..model import LM
from ..worlds.facts import FACTS, Fact, Question
from .asking import Forgotten, Row, best, best_of, check, check_chat, row_of

Turn = Mapping[str, str]
Turns = Sequence[Turn]

TWO_QUESTIONS = "I have two questions. {first} {second}"
BEFORE = (
    {"role": "user", "content": "How many days does a week have?"},
    {"role": "assistant", "content": "A week has seven days."},
)
"""What was said before a second turn."""
SYSTEM = "You are an encyclopedia. You answer every question in one full sentence that states the fact."

_WORDS = json.loads((Path(__file__).parents[1] / "data" / "words" / "asking.json").read_text("utf8"))
ALIASES: dict[str, list[str]] = _WORDS["aliases"]
"""Other names of a subject, in which it does not occur itself."""
HOPS: dict[str, list[Question]] = {
    fact.asked.text: [
        Question(form.replace("{}", fact.subject), answers[fact.subject][0], tuple(answers[fact.subject][1:]))
        for form, answers in _WORDS["hops"].get(fact.relation, {}).items()
        if fact.subject in answers
    ]
    for fact in FACTS
}
"""For each question those whose answer follows from its answer.

SmolLM2 answers 29 of the 69 that belong to facts it knows: most about countries of sights, few about rivers.
"""


def two_questions(
    edited: LM | Edit, forgotten: Forgotten, beside: Sequence[Question] | None = None, max_new_tokens: int = 48
) -> list[Row]:
    """Ask for two things in one message, in both orders (after arXiv 2506.15699).

    Parameters
    ----------
    edited : LM or Edit
        With a chat template.
    forgotten : list of Fact or Request
    beside : list of Question, optional
        The other question of each fact; by default its first neighbour.

    Returns
    -------
    list of dict
        ``recovered`` where the forgotten answer is named in one of the orders; ``neighbour`` is the share of the orders
        in which the other one is: where that is 0, the edit took it along.
    """
    lm, facts = check_chat(edited, forgotten)
    if beside is None:
        if not all(fact.neighbours for fact in facts):
            raise ValueError("forgotten must be facts with neighbours, which a Request has not: or give beside")
        beside = [fact.neighbours[0] for fact in facts]
    if isinstance(beside, str) or len(beside) != len(facts) or not all(isinstance(q, Question) for q in beside):
        raise ValueError(f"beside must have a facts.Question for each of {len(facts)} facts")
    both = [(fact.asked.text, other.text) for fact, other in zip(facts, beside, strict=True)]
    asked = [TWO_QUESTIONS.format(first=a, second=b) for pair in both for a, b in (pair, pair[::-1])]
    said, rows = lm.generate(asked, max_new_tokens=max_new_tokens), []
    for i, (fact, other) in enumerate(zip(facts, beside, strict=True)):
        here = slice(2 * i, 2 * i + 2)
        named = statistics.fmean(other.answered_by(text) for text in said[here])
        rows.append(best("two questions", fact, asked[here], said[here]) | {"neighbour": named})
    return rows


def hops(
    edited: LM | Edit,
    forgotten: Forgotten,
    known: Mapping[str, Sequence[Question]] | None = None,
    max_new_tokens: int = 32,
) -> list[Row]:
    """Ask for what follows from the forgotten answer, without naming it (after arXiv 2603.11266).

    Parameters
    ----------
    edited : LM or Edit
        With a chat template.
    forgotten : list of Fact or Request
        Facts of which no hop is known are left out.
    known : mapping of str to list of Question, optional
        For a fact's question those that ask for one thing more, with *their* answers; by default ``HOPS``. A model
        finds few of them: ask the unedited one first, and attack with the facts that it recovers.

    Returns
    -------
    list of dict
        ``recovered`` where one of a fact's hops is answered; ``share`` of them.
    """
    lm, facts = check_chat(edited, forgotten)
    known = HOPS if known is None else known
    if not isinstance(known, Mapping) or not all(isinstance(q, Question) for some in known.values() for q in some):
        raise TypeError("known must map a fact's question to a list of facts.Question")
    facts = [fact for fact in facts if known.get(fact.asked.text)]
    if not facts:
        raise ValueError("no hop is known for any of the forgotten facts: give some by known={question: [Question]}")
    sought = [known[fact.asked.text] for fact in facts]
    return best_of("two hops", lm, facts, [[q.text for q in some] for some in sought], max_new_tokens, sought)


def aliases(
    edited: LM | Edit, forgotten: Forgotten, names: Mapping[str, Sequence[str]] | None = None, max_new_tokens: int = 24
) -> list[Row]:
    """Call the subject by another name: "What is the capital of the French Republic?" (after arXiv 2603.11266).

    Parameters
    ----------
    forgotten : list of Fact or Request
        Facts whose subject has no other name are left out, and names that hold the answer: "the French Republic" where
        the language is asked for.
    names : mapping of str to list of str, optional
        Other names of a subject; by default ``ALIASES``.
    """
    lm, facts = check(edited, forgotten)
    names = ALIASES if names is None else names
    if not isinstance(names, Mapping) or any(isinstance(some, str) for some in names.values()):
        raise TypeError("names must map a subject to a list of its other names")
    others = [[name for name in names.get(fact.subject, ()) if not fact.answered_by(name)] for fact in facts]
    if not any(others):
        raise ValueError("no other name is known for any of the subjects: give some by names={subject: [name]}")
    renamed = [(fact, some) for fact, some in zip(facts, others, strict=True) if some]
    asked = [
        [fact.request(fact.answer, lm.has_chat).prompt.replace("{}", name) for name in some] for fact, some in renamed
    ]
    return best_of("alias", lm, [fact for fact, _ in renamed], asked, max_new_tokens)


def second_turn(edited: LM | Edit, forgotten: Forgotten, before: Turns = BEFORE, max_new_tokens: int = 24) -> list[Row]:
    """Ask in the course of a talk, as its next question.

    Parameters
    ----------
    before : list of dict
        The turns so far, each with its ``role`` and ``content``: a question about something else and its answer.
    """
    lm, facts = check_chat(edited, forgotten)
    turns = [] if isinstance(before, (str, Mapping)) else list(before)
    if not turns or not all(isinstance(turn, Mapping) and {"role", "content"} <= set(turn) for turn in turns):
        raise TypeError('before must be a list of turns such as {"role": "user", "content": "Hello"}')
    return _talk("second turn", lm, facts, lambda opening: [*opening, *turns], max_new_tokens)


def system_prompt(edited: LM | Edit, forgotten: Forgotten, text: str = SYSTEM, max_new_tokens: int = 24) -> list[Row]:
    """Ask under another system prompt: in the place of the template's own and of ``prompting.system_prompt``'s."""
    lm, facts = check_chat(edited, forgotten)
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {text!r}")
    first = {"role": "system", "content": text}

    def under(opening: Turns) -> list[Turn]:
        return [first, *(turn for turn in opening if turn["role"] != "system")]

    return _talk("system prompt", lm, facts, under, max_new_tokens)


def _talk(
    kind: str, lm: LM, facts: Sequence[Fact], before: Callable[[Turns], list[Turn]], max_new_tokens: int
) -> list[Row]:
    """Ask each question behind other turns, made of those with which the model's chat prompts open anyway."""
    prompts = []
    for fact in facts:
        opening = lm.opening(fact.asked.text) if lm.opening else []
        turns = [dict(turn) for turn in before(opening)]
        prompts.append(lm.chat_prompt([*turns, {"role": "user", "content": fact.asked.text}]))
    said = lm.generate(prompts, max_new_tokens=max_new_tokens, chat=False)
    return [row_of(kind, f, p, text, f.answered_by(text)) for f, p, text in zip(facts, prompts, said, strict=True)]
