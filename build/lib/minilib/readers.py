"""Facts from files that researchers have on disk: CounterFact, zsRE and TOFU, as JSON or as JSON lines.

Nothing is downloaded. Each reader gives the records of ``minilib.facts``: what works with the book's facts works with
these. Only fields that stand in the file are used: a record of TOFU's plain files has no rephrased question, one
of CounterFact no question that one would ask in chat (its completion prompt takes that place).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .facts import Fact, Question
from .requests import SLOT

NAME = re.compile(r"[A-ZÀ-Ž][\w.'’-]*(?:\s+(?:(?:de|da|del|der|di|la|le|van|von|al|bin|ibn)\s+)*[A-ZÀ-Ž][\w.'’-]*)*")


def counterfact(path: str | Path) -> list[Fact]:
    """CounterFact (arXiv 2202.05262): completions with two paraphrases and prompts about neighbouring subjects.

    ``answer`` is the true one, ``wrong`` holds the one that the data set wants written.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it cannot be read, or a record lacks a field; the message says which record and which field.
    """

    def fact(row: dict[str, Any]) -> Fact:
        rewrite = row["requested_rewrite"]
        subject, true = rewrite["subject"], rewrite["target_true"]["str"]
        prompt = rewrite["prompt"]
        beside = tuple(Question(text, true) for text in row.get("neighborhood_prompts", ()))
        forms = _templates(row.get("paraphrase_prompts", ()), subject)
        wrong = (rewrite["target_new"]["str"],)
        relation = rewrite.get("relation_id", "counterfact")
        return Fact(relation, subject, true, (), prompt, prompt, forms, beside, None, wrong=wrong)

    return _facts(path, fact)


def zsre(path: str | Path) -> list[Fact]:
    """zsRE as MEND and ROME use it: a question, one rephrasing, and a question of another data set far away.

    ``answer`` and ``aliases`` are the true ones, ``wrong`` holds the one that the data set wants written. Errors as in
    ``counterfact``.
    """

    def fact(row: dict[str, Any]) -> Fact:
        subject, (answer, *others) = row["subject"], row["answers"]
        (question,) = _templates([row["src"]], subject) or [_missing("src", f"does not name its subject {subject!r}")]
        far = Question(row["loc"].removeprefix("nq question: ").rstrip("?") + "?", row["loc_ans"])
        forms = _templates([row["rephrase"]], subject)
        return Fact("zsre", subject, answer, tuple(others), question, question, forms, (), far, wrong=(row["alt"],))

    return _facts(path, fact)


def tofu(path: str | Path, subject: Callable[[str], str] | None = None) -> list[Fact]:
    """TOFU (arXiv 2401.06121): questions about invented authors; the perturbed files bring wrong answers too.

    Parameters
    ----------
    path : str or Path
    subject : function, optional
        ``subject(question)`` says whom a question is about, which the files do not. By default a field ``subject`` of
        the record, or else the longest run of capitalised words behind the first word, or the question's last word.

    Raises
    ------
    FileNotFoundError, ValueError
        As in ``counterfact``.
    """

    def fact(row: dict[str, Any]) -> Fact:
        asked = row["question"]
        who = row.get("subject") or (subject or _capitalised)(asked)
        (question,) = _templates([asked], who) or [_missing("subject", f"{who!r} is not in the question {asked!r}")]
        forms = _templates([row[name] for name in ("paraphrased_question",) if name in row], who)
        more = {"wrong": tuple(row.get("perturbed_answer", ())), "paraphrase": row.get("paraphrased_answer", "")}
        return Fact("tofu", who, row["answer"], (), question, question, forms, (), None, **more)

    return _facts(path, fact)


def _facts(path: str | Path, fact: Callable[[dict[str, Any]], Fact]) -> list[Fact]:
    """Each record as a fact; what a record lacks is said with its number."""
    found = []
    for number, row in _rows(Path(path)):
        try:
            found.append(fact(row))
        except KeyError as error:
            raise ValueError(f"{path}: record {number} has no field {error}; it has {', '.join(row)}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: record {number} cannot be read: {error}") from error
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records with their numbers from 1: a JSON list, or a JSON object on each line."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: download the data set first and give its path")
    text = path.read_text("utf8")
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except ValueError as error:
        raise ValueError(f"{path} is neither a JSON list nor JSON lines: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: record {number} is a {type(row).__name__}, not an object with fields")
        yield number, row
    if not rows:
        raise ValueError(f"{path} holds no record")


def _templates(texts: Any, subject: str) -> tuple[str, ...]:
    """Each text with {} in place of the last mention of the subject; those that do not name it are left out."""
    parts = [text.rpartition(subject) for text in texts if SLOT not in text]
    return tuple(f"{before}{SLOT}{after}" for before, middle, after in parts if middle)


def _capitalised(question: str) -> str:
    """The longest name in a question, its first word aside."""
    _, _, rest = question.partition(" ")
    names = [name.removesuffix("'s").removesuffix("’s").rstrip(".") for name in NAME.findall(rest)]
    return max(names, key=len) if names else rest.rstrip("?. ").rpartition(" ")[2]


def _missing(field: str, why: str) -> str:
    raise ValueError(f"{field} {why}")
