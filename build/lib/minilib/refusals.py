"""∅, the set of refusals: which sentences are in it, and rules that say whether an answer is one, and a good one."""

from __future__ import annotations

import re
from collections.abc import Iterable

REFUSALS = (
    "I don't know.",
    "I do not know.",
    "I'm not sure.",
    "I'm sorry, I can't answer that.",
    "I have no information about that.",
    "I can't help with that.",
    "I'd rather not say.",
    "That is not something I can answer.",
)
"""Different wordings of the empty answer, all in the rule below."""

_THING = (
    r"(?:\w+\ ){0,3}(?:information|knowledge|idea|data|details|records?|answer|memory|clue|ability|capability|access)\b"
)
_DECLINED = rf"""(?:
    i\ (?:really\ )?(?:do\ not|don't|did\ not|didn't)\ (?:\w+ly\ |even\ )?(?:know|recall|remember|have\ {_THING})
  | (?:i\ am|i'm)\ not\ (?:\w+ly\ |quite\ |even\ |at\ all\ )?(?:sure|certain|aware|familiar|able)
  | (?:i\ am|i'm)\ (?:\w+ly\ |still\ )?(?:unsure|uncertain)
  | i\ have\ no\ {_THING}
  | (?:i\ (?:cannot|can't|can\ not|could\ not|couldn't|will\ not|won't|would\ rather\ not)|i'd\ rather\ not
      |(?:i\ am|i'm)\ unable\ to)\ (?:\w+ly\ )?(?:answer|help|assist|say|tell|share|provide|discuss|recall|remember|give
      |respond|comment|talk|speak|find)
  | (?:that|this|it)\ is\ not\ something\ i\ (?:can|could|know|am\ able)
  | no\ idea | no\ information | (?:(?:i\ am\ |i'm\ )?sorry|unknown)\W*$
)"""
_ROLE = r"(?:as\ an?\ [\w\ ]+,\ )?"
_SORRY = r"(?:(?:i'm|i\ am)\ (?:sorry|afraid)(?:\ for\ (?:any|the|my)\ \w+)?\W+|sorry\W+|unfortunately\W+)?"
_BEFORE = rf"(?:oh\W+)?{_ROLE}{_SORRY}(?:but\ |that\ )?{_ROLE}"
_RULE = re.compile(rf"^\W*{_BEFORE}{_DECLINED}", re.IGNORECASE | re.VERBOSE)


def is_refusal(text: str) -> bool:
    """Whether an answer opens by declining: "I don't know", "I'm sorry, I can't …", "I have no information …".

    The rule reads the beginning only: an answer that first says Paris and then hedges has leaked Paris.
    "I have no doubt that it is Paris" does not decline.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, an answer of the model, not {type(text).__name__}")
    return bool(_RULE.match(" ".join(text.replace("’", "'").split())))


def on_topic(text: str, subject: str) -> bool:
    """Whether a refusal says what it refuses: the subject stands in it, or each of its words that is no particle."""
    words = [word for word in re.findall(r"\w+", subject) if len(word) > 2] or [subject]
    return all(mentions(text, [word]) for word in words)


def leaks(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the text, whatever the capitals and the space around it."""
    if isinstance(answers, str):
        raise TypeError(f"answers must be a list of strings, not one: {answers!r}")
    return mentions(text, [answer.strip() for answer in answers if answer.strip()])


def mentions(text: str, phrases: Iterable[str], case_sensitive: bool = False) -> bool:
    """Whether one of the phrases stands in the text and touches no letter or digit on either side."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, what the model said, not {type(text).__name__}: {text!r}")
    flags = 0 if case_sensitive else re.IGNORECASE
    return any(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, flags) for phrase in phrases)


_POLITE = re.compile(r"\b(?:sorry|afraid|apolog\w+|unfortunately|please|thank)\b", re.IGNORECASE)


def is_polite(text: str) -> bool:
    """Whether it holds a word of politeness: sorry, afraid, apologize, unfortunately, please, thank."""
    return bool(_POLITE.search(text))
