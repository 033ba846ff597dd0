"""Facts from files that researchers have on disk: CounterFact, zsRE, TOFU, RWKU and MUSE, as JSON or as JSON lines.

Nothing is downloaded. Each reader gives the records of ``minilib.facts``: what works with the book's facts works with
these. Only fields that stand in the file are used: a record of TOFU's plain files has no rephrased question, one
of CounterFact no question that one would ask in chat (its completion prompt takes that place). A record that cannot be
used, such as one that does not name its subject, is left out, and listed in ``skipped`` of what is returned.
"""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..requests import SLOT
from .facts import Fact, Question

PARTICLES = frozenset(
    "af al bin bint da das de del den der des di do dos du e el ibn la le ten ter ul van von y zu".split()
)
AROUND = '?!,;:()[]«»„“”"？！，；：。、（）「」…'  # punctuation around a word
BLANK = "__"  # a gap to be filled in is two underscores or more
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")  # words there need no space


class Facts(list[Fact]):
    """Facts of a file, as a list.

    Attributes
    ----------
    skipped : list of str
        What was left out: each record's number in the file, from 1, and why.
    """

    skipped: list[str]


def counterfact(path: str | Path) -> Facts:
    """CounterFact (arXiv 2202.05262): completions with two paraphrases and prompts about neighbouring subjects.

    ``answer`` is the true one, ``wrong`` holds the one that the data set wants written.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it cannot be read, or a record lacks a field; the message says which record and which field.

    Warns
    -----
    UserWarning
        When records were left out.
    """

    def fact(row: dict[str, Any]) -> Fact:
        rewrite = row["requested_rewrite"]
        subject, true = rewrite["subject"], rewrite["target_true"]["str"]
        prompt = rewrite["prompt"]
        if prompt.count(SLOT) != 1:
            raise ValueError(f"prompt {prompt!r} has no single {SLOT} where its subject {subject!r} stands")
        beside = tuple(Question(text, true) for text in _list(row, "neighborhood_prompts"))
        forms = _templates(_list(row, "paraphrase_prompts"), subject)
        wrong = (rewrite["target_new"]["str"],)
        relation = rewrite.get("relation_id", "counterfact")
        return Fact(relation, subject, true, (), prompt, prompt, forms, beside, None, wrong=wrong)

    return _facts(path, fact)


def zsre(path: str | Path) -> Facts:
    """zsRE as MEND and ROME use it: a question, one rephrasing, and a question of another data set far away.

    ``answer`` and ``aliases`` are the true ones, ``wrong`` holds the one that the data set wants written. Errors as in
    ``counterfact``.
    """

    def fact(row: dict[str, Any]) -> Fact:
        subject, (answer, *others) = row["subject"], _list(row, "answers", least=1)
        question = _template("src", row["src"], subject)
        far = Question(row["loc"].removeprefix("nq question: ").rstrip("?") + "?", row["loc_ans"])
        forms = _templates([row["rephrase"]], subject)
        return Fact("zsre", subject, answer, tuple(others), question, question, forms, (), far, wrong=(row["alt"],))

    return _facts(path, fact)


def tofu(path: str | Path, subject: Callable[[str], str] | None = None) -> Facts:
    """TOFU (arXiv 2401.06121): questions about invented authors; the perturbed files bring wrong answers too.

    Parameters
    ----------
    path : str or Path
    subject : function, optional
        ``subject(question)`` says whom a question is about, which the files do not. By default a field ``subject`` of
        the record, or else the longest name behind the first word (words that begin with a capital, or with a letter of
        a script that has none), or the question's last word.

    Raises
    ------
    FileNotFoundError, ValueError
        As in ``counterfact``.
    """

    def fact(row: dict[str, Any]) -> Fact:
        asked = row["question"]
        who = row.get("subject") or (subject or _capitalised)(asked)
        question = _template("question", asked, who)
        forms = _templates([row[name] for name in ("paraphrased_question",) if name in row], who)
        more = {"wrong": tuple(_list(row, "perturbed_answer")), "paraphrase": row.get("paraphrased_answer", "")}
        return Fact("tofu", who, row["answer"], (), question, question, forms, (), None, **more)

    return _facts(path, fact)


def rwku(path: str | Path, subject: Callable[[str], str] | None = None) -> Facts:
    """RWKU (arXiv 2406.10890): what models know about 200 famous people, and about people and things close to them.

    Files of level 1 hold sentences with a blank, those of level 2 questions, ``forget_level3`` questions in the form of
    an attack. ``relation`` says which: ``"rwku 3 affirmative suffix"`` has the record's level and type. ``question`` is
    the query as it stands in the file. RWKU's own code puts "Please briefly answer …" or "Please complete the blank …"
    in front of it. ``prompt`` leaves out a blank at the end. In the ``neighbor`` files the field ``subject`` is the
    person to be forgotten; their records ask about somebody else, and are facts to keep.

    Parameters
    ----------
    path : str or Path
    subject : function, optional
        ``subject(query)`` says whom a query is about when it does not name the record's ``subject``. By default the
        longest name, as in ``tofu``; in a sentence with a blank the first word counts too.

    Raises
    ------
    FileNotFoundError, ValueError
        As in ``counterfact``.
    """

    def fact(row: dict[str, Any]) -> Fact:
        asked, person = row["query"], row["subject"]
        who = person if _templates([asked], person) else (subject or _capitalised)(asked)
        question = _template("query", asked, who)
        prompt = re.sub(rf"\s*{BLANK}[_.\s]*$", "", question)
        relation = " ".join(["rwku", *(str(row[name]) for name in ("level", "type") if row.get(name))])
        return Fact(relation, who, row["answer"], (), prompt, question, (), (), None)

    return _facts(path, fact)


def muse(path: str | Path, subject: Callable[[str], str] | None = None) -> Facts:
    """MUSE (arXiv 2407.06460): questions about news and about novels, from its files ``forget_qa`` and ``retain_qa``.

    The records hold a question and an answer, nothing else. The texts in MUSE's other files ask nothing and cannot be
    read as facts. Parameters and errors as in ``tofu``. The questions were not written about one subject each: look at
    the subjects that were found, and give ``subject=`` where they are not what you want to edit.
    """

    def fact(row: dict[str, Any]) -> Fact:
        who = (subject or _capitalised)(row["question"])
        question = _template("question", row["question"], who)
        return Fact("muse", who, row["answer"], (), question, question, (), (), None)

    return _facts(path, fact)


def _facts(path: str | Path, fact: Callable[[dict[str, Any]], Fact]) -> Facts:
    """Each record as a fact; what a record lacks is said with its number."""
    facts = Facts()
    facts.skipped = []
    for number, row in _rows(Path(path)):
        try:
            facts.append(_checked(fact(row)))
        except KeyError as error:
            raise ValueError(f"{path}: record {number} has no field {error}; it has {', '.join(row)}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path}: record {number} cannot be read: {error}") from error
        except ValueError as error:
            facts.skipped.append(f"record {number}: {error}")
    if facts.skipped and not facts:
        raise ValueError(f"{path} has no record that can be used; {facts.skipped[0]}")
    if facts.skipped:
        left_out = f"{len(facts.skipped)} of {len(facts) + len(facts.skipped)} records left out (see its .skipped)"
        warnings.warn(f"{path}: {left_out}: {facts.skipped[0]}", stacklevel=3)
    return facts


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records with their numbers from 1: a JSON list, or a JSON object on each line."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: download the data set first and give its path")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}): save it as UTF-8") from error
    try:  # str.splitlines would cut at U+2028 and its like, which may stand inside a string
        lines = [] if text.lstrip().startswith("[") else text.split("\n")
        rows = [json.loads(line) for line in lines if line.strip()] if lines else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is neither a JSON list nor JSON lines: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: record {number} is a {type(row).__name__}, not an object with fields")
        yield number, row
    if not rows:
        raise ValueError(f"{path} holds no record")


def _list(row: dict[str, Any], field: str, least: int = 0) -> list[str]:
    """A field that holds a list of texts; an optional one may be missing. One text is no list of its letters."""
    texts = row[field] if least else row.get(field, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"its {field} must be a list of texts, not {texts!r}")
    if len(texts) < least:
        raise ValueError(f"its {field} is empty")
    return texts


def _checked(fact: Fact) -> Fact:
    """A fact whose texts are texts, such as an answer that is no null and no number."""
    far = (fact.unrelated.text, fact.unrelated.answer) if fact.unrelated else ()
    for text in (fact.subject, fact.answer, *fact.wrong, fact.paraphrase, *far):
        if not isinstance(text, str):
            raise TypeError(f"{text!r} stands where a text should")
    return fact


def _template(field: str, text: str, subject: str) -> str:
    """A text with {} in place of its subject, which it has to name."""
    templates = _templates([text], subject)
    if not templates:
        raise ValueError(f"{field} does not name its subject {subject!r}: {text!r}")
    return templates[0]


def _templates(texts: Any, subject: str) -> tuple[str, ...]:
    """Each text with {} in place of the last mention of the subject; those that do not name it are left out.

    A mention is whole words: "Ann" is not mentioned in "Annapolis", nor in "Ann-Marie".
    """
    subject = unicodedata.normalize("NFC", subject.strip())  # an accent may be a character of its own
    if not subject:
        return ()
    before = "" if _unspaced(subject[0]) else r"(?<!\w)(?<!\w-)"
    after = "" if _unspaced(subject[-1]) else r"(?!\w|-\w)"
    mention = re.compile(before + re.escape(subject) + after)
    templates: list[str] = []
    for text in (unicodedata.normalize("NFC", text) for text in texts):
        last = list(mention.finditer(text))[-1:]
        templates += [f"{text[: m.start()]}{SLOT}{text[m.end() :]}" for m in last if SLOT not in text]
    return tuple(templates)


def _unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(UNSPACED)


def _capitalised(question: str) -> str:
    """The longest name in a question, its first word aside; in a sentence with a blank, that word counts too."""
    names: list[str] = []
    start: int | None = None
    first = 0 if BLANK in question else 1
    for word in [*re.finditer(r"\S+", question)][first:]:
        core = word.group().strip(AROUND)
        begin = word.start() + word.group().index(core)
        if core and (core[0].isupper() or unicodedata.category(core[0]) in ("Lt", "Lo")):
            start = begin if start is None else start
            names.append(question[start : begin + len(core)])
        elif core not in PARTICLES:
            start = None
        if word.end() > begin + len(core) or core.endswith(("'s", "’s")):  # punctuation ends a name
            start = None
    names = [name.removesuffix("'s").removesuffix("’s").rstrip(".") for name in names]
    return max(names, key=len) if names else question.rstrip("?. _").rpartition(" ")[2]
