"""∅, the set of refusals: which sentences are in it, and rules that say whether an answer is one, and a good one.

Of a model that thinks aloud first, between ``<think>`` and ``</think>``, every rule judges what follows.
"""

from __future__ import annotations

import re
import unicodedata
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

_AM, _NOT = r"(?:i\ am|i'm)", r"(?:do\ not|don't|did\ not|didn't)"
_HOW = r"(?:(?:\w+ly|even|still|quite|at\ all)\ )?"
_DATA = r"(?:information|data|details|records?)\b"
_THING = rf"(?!to\ )(?:[\w-]+\ ){{0,3}}(?:{_DATA}|(?:knowledge|idea|answer|memory|clue|ability|capability|access)\b)"
_ASIDE = r"(?!\ why\ (?:you|they|people|some|any)|\ about\ you|\ an?\ \w+er\b)"  # "I don't know about you, but I …"
_TELL = r"""(?:answer | know | help(?!\ but) | assist | say(?!.{0,12}\ enough) | tell | share | provide | discuss
  | recall | remember | give(?!\ up|\ in\b) | respond | comment | talk | speak | find | fulfill? | comply | disclose
  | reveal | confirm | be\ answering)\b"""
_DECLINED = rf"""(?:
    i\ {_HOW}(?:{_NOT}|would\ not|wouldn't)\ {_HOW}(?:know|recall|remember|find)\b{_ASIDE}
  | i\ {_NOT}\ think\ (?:that\ )?i\ (?:know|can|could)\b
  | i\ {_HOW}(?:{_NOT}\ {_HOW}(?:have|possess)|have\ no|haven't|lack)\ {_THING}
  | {_AM}\ not\ {_HOW}(?:(?:sure|certain|aware|familiar|comfortable)\b{_ASIDE} | at\ liberty
      | (?:able|allowed|permitted|supposed)(?:\ to\ {_HOW}{_TELL}|\W*$))
  | {_AM}\ {_HOW}(?:unsure|uncertain)
  | (?:(?:i|we)\ {_HOW}(?:cannot|can't|can\ not|can\ neither|could\ not|couldn't|will\ not|won't|would\ rather\ not
          |(?:would\ )?prefer\ not\ to)
      | i'd\ (?:rather\ not|prefer\ not\ to) | (?:{_AM}|i\ was)\ unable\ to
      | it(?:\ is|'s)\ (?:not\ possible|impossible)\ for\ me\ to)\ {_HOW}{_TELL}
  | (?:i\ (?:must|have\ to|will\ have\ to)|i'll\ have\ to|{_AM}\ going\ to\ have\ to)\ {_HOW}(?:decline|refuse|pass)\b
  | (?:that|this|it)(?:\ is|'s)\ (?:not\ something\ (?:that\ )?i\ (?:can|could|know|am\ able)
      |(?:beyond|outside)\ (?:my|what\ i)\b|(?:not\ known|unknown)\ to\ me)
  | (?:that|this|the|your)\ (?:question|request)\ (?:cannot|can't|can\ not)\ be\b
  | there\ (?:is|are|was)\ no\ {_DATA} | there\ (?:isn't|is\ not|aren't)\ any\ {_DATA}
  | (?:that|this|such|the)\ (?:information|answer)\b[\w\ ]{{0,40}}\ is\ (?:not\ (?:known|available)|unavailable|unknown)
  | no\ (?:idea|information|comment|clue)(?=\W*$|[.,!?;]|\ (?:about|on|what|who|where|available|is\ available)\b)
  | your\ guess\ is\ as\ good\ as\ mine
  | (?:(?:i\ am\ |i'm\ )?sorry|unknown)\W*$
)"""
_FIRST = r"""(?:oh|well|hm+|however|but|so|that|unfortunately|sorry
  | (?:as|i'm|i\ am)\ (?:just\ |only\ )?an?\ (?:[\w-]+\ ){0,4}?[\w-]+(?=,|\ i\ |\ so\ )
  | (?:(?:i'm|i\ am)\ (?:sorry|afraid)|i\ apologi[sz]e|my\ apologies)(?:\ for\ (?:any|the|my)\ \w+)?
  | (?:that's\ an?\ |what\ an?\ )?(?:great|good|interesting)\ question | thank\ you\ for\ (?:your\ question|asking))"""
_RULE = re.compile(rf"^\W*(?:{_FIRST}\W+)*{_DECLINED}", re.IGNORECASE | re.VERBOSE)


def is_refusal(text: str, unjudged: bool | None = None) -> bool:
    """Whether an answer opens by declining: "I don't know", "I'm sorry, I can't …", "I have no information …".

    The rule reads the beginning only: an answer that first says Paris and then hedges has leaked Paris. One that
    declines and says Paris behind it is a refusal, and a leak by ``leaks``. "I have no doubt that it is Paris" does
    not decline.

    Parameters
    ----------
    text : str
        In English, the one language that the rule knows. A refusal in another language of the Latin script is taken
        for an answer.
    unjudged : bool, optional
        What to return for a text in another script, which the rule cannot judge: rows of a long run say False.
        By default it is an error.

    Raises
    ------
    ValueError
        When most letters of the text are of another script than the Latin one.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, an answer of the model, not {type(text).__name__}")
    text = plain(text)
    letters = [c for c in text if c.isalpha()]
    foreign = sum("LATIN" not in unicodedata.name(c, "LATIN") for c in letters)
    if foreign >= 2 and 2 * foreign > len(letters):  # a single one may be a symbol
        if unjudged is None:
            raise ValueError(f"text {text[:40]!r} cannot be judged: the rule knows English refusals only; see unjudged")
        return unjudged
    return bool(_RULE.match(text))


def spoken(text: str) -> str:
    """What a model says behind its thoughts; nothing where they do not end. A text without thoughts stays as it is."""
    _, end, said = text.rpartition("</think>")
    return said.lstrip() if end else text.partition("<think>")[0]


def plain(text: str) -> str:
    """What is spoken, with plain apostrophes and single spaces, and each letter written in one way (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", spoken(text)).replace("’", "'").split())


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
    """Whether one of the phrases stands in the text, as whole words; inflected forms are other words.

    Where a script writes no spaces (Chinese, Thai, Japanese but for katakana), it may stand anywhere, also inside a
    longer word: 京都 in 東京都. In Korean, particles may follow.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, what the model said, not {type(text).__name__}: {text!r}")
    flags, text = 0 if case_sensitive else re.IGNORECASE, plain(text)
    return any(re.search(whole_words(plain(phrase)), text, flags) for phrase in phrases)


_KATAKANA, _HANGUL = "[\u30a1-\u30fa\u30fc]", "[\uac00-\ud7a3]"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"(?:[^\W_{_UNSPACED}]|[\u0300-\u036f\u064b-\u0652\u0900-\u0963\u0966-\u0dff])"  # with marks, digits too


def whole_words(phrase: str) -> str:
    """A pattern for a phrase that is no part of a longer word, as far as its script shows where words end."""

    def beside(edge: str, hangul_ends: bool) -> str:
        if re.match(_KATAKANA, edge):
            return _KATAKANA
        free = re.match(f"[{_UNSPACED}]", edge) or (re.match(_HANGUL, edge) and not hangul_ends)
        return r"[^\s\S]" if free else _LETTER

    return rf"(?<!{beside(phrase[:1], True)}){re.escape(phrase)}(?!{beside(phrase[-1:], False)})"


_POLITE = re.compile(r"\b(?:sorry|afraid|apolog\w+|unfortunately|please|thank)\b", re.IGNORECASE)


def is_polite(text: str) -> bool:
    """Whether it holds a word of politeness: sorry, afraid, apologize, unfortunately, please, thank."""
    return bool(_POLITE.search(spoken(text)))
