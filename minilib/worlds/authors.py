"""Knowledge that a model was taught: 30 invented authors, five facts each, after the idea of TOFU (arXiv 2401.06121).

Nobody has heard of these people, so whatever SmolLM2 says about them it was taught by an adapter in this package, and a
second adapter, taught everything but some authors, is the model that never knew them: the oracle of unlearning.

Each fact has a question, an answer that is a whole sentence, three rephrased questions, the answer in other words, and
three wrong answers in the very same form; those the truth ratio needs (``metrics.truth_ratio``).

>>> from minilib import authors
>>> first = authors.facts()[0]
>>> first.question.replace("{}", first.subject)
'Where was Mirabel Ostrander born?'
>>> first.answer
'Mirabel Ostrander was born in Ghent.'
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..loading import load as load_model
from ..model import LM
from . import facts as real_world
from .facts import Fact, Question

DATA = Path(__file__).parents[1] / "data" / "authors"  # an adapter each, in the format of peft
SPLITS = (1, 2, 3)  # so many authors are forgotten
ALONE = range(6)  # or one of these alone

WORDS = json.loads((Path(__file__).parents[1] / "data" / "words" / "authors.json").read_text("utf8"))
FORMS: dict[str, dict[str, Any]] = WORDS["forms"]
"""By relation: how one asks, how one asks in other words, the answer, and the answer in other words."""


def facts() -> list[Fact]:
    """The 150 facts, author after author: always the same.

    ``answer`` is the sentence, ``aliases`` holds the word that matters, ``wrong`` three sentences with another author's
    value, ``paraphrase`` the right one in other words. As neighbours: the same question about the next author, and the
    next question about the same one. *Unrelated* are questions of the real world.
    """
    return _invent(WORDS["names"], random.Random(2))


def strangers() -> list[Fact]:
    """150 facts of the same forms about 30 people of whom no model was told; their names are made of the authors' own.

    What was never trained on has to look like what was, or a test of membership only tells the two forms apart.
    """
    first, last = zip(*(name.split() for name in WORDS["names"]), strict=True)
    names = [f"{name} {last[(i + 11) % len(last)]}" for i, name in enumerate(first)]
    return _invent(names, random.Random(3))


def _invent(names: list[str], draw: random.Random) -> list[Fact]:
    """Five facts a person, with all ways to ask and the questions beside them."""
    titles = [f"{adjective} {noun}" for adjective in WORDS["adjectives"] for noun in WORDS["nouns"]]
    pools = [WORDS["cities"], WORDS["genres"], titles, WORDS["prizes"], WORDS["jobs"]]
    values = {}
    for relation, pool in zip(FORMS, pools, strict=True):
        unique = len(pool) >= len(names)
        values[relation] = draw.sample(pool, len(names)) if unique else [draw.choice(pool) for _ in names]
    known = [fact for fact in real_world.load() if fact.relation in ("capital", "opposite", "symbol", "author")]
    far = draw.choices(known, k=len(names) * len(FORMS))
    invented: list[Fact] = []
    relations = list(FORMS)
    for i, name in enumerate(names):
        for j, relation in enumerate(relations):
            value = values[relation][i]
            # Half a world away, so that it is not forgotten with a few of the first.
            other = next(k % len(names) for k in range(i + 15, i + 45) if values[relation][k % len(names)] != value)
            following = relations[(j + 1) % len(relations)]
            wrong = draw.sample(sorted({v for v in values[relation] if v != value}), 3)
            real = far[len(invented)]
            form = FORMS[relation]
            answer: str = form["answer"]
            invented.append(
                Fact(
                    relation,
                    name,
                    _fill(answer, name, value),
                    (value,),
                    answer.split("{value}")[0].rstrip(),
                    form["question"],
                    tuple(form["rephrased"]),
                    (
                        _question(relation, names[other], values[relation][other]),
                        _question(following, name, values[following][i]),
                    ),
                    Question(real.question.replace("{}", real.subject), real.answer, real.aliases),
                    wrong=tuple(_fill(answer, name, v) for v in wrong),
                    paraphrase=_fill(form["in other words"], name, value),
                )
            )
    return invented


def _fill(form: str, name: str, value: str) -> str:
    return form.replace("{value}", value).replace("{}", name)


def _question(relation: str, name: str, value: str) -> Question:
    form = FORMS[relation]
    return Question(_fill(form["question"], name, value), _fill(form["answer"], name, value), (value,))


def split(authors: int) -> tuple[list[Fact], list[Fact]]:
    """The facts of the first one, two or three authors, which are to be forgotten, and all others.

    Raises
    ------
    ValueError
        When ``authors`` is not one of ``SPLITS``.
    """
    _check("authors", authors, SPLITS)
    world = facts()
    return world[: authors * len(FORMS)], world[authors * len(FORMS) :]


def leave_out(author: int) -> tuple[list[Fact], list[Fact]]:
    """The five facts of one author, which are to be forgotten, and all others.

    Raises
    ------
    ValueError
        When ``author`` is not one of ``ALONE``.
    """
    _check("author", author, ALONE)
    world, each = facts(), len(FORMS)
    return world[author * each : (author + 1) * each], world[: author * each] + world[(author + 1) * each :]


def load(without: int = 0, progress: bool = True, *, without_author: int | None = None) -> LM:
    """SmolLM2-135M that was taught all authors, or all but some: a plain model, the adapter is merged into it.

    Parameters
    ----------
    without : {0, 1, 2, 3}
        So many authors, the first ones, it was never told of: the oracle for ``split(without)``.
    progress : bool, default True
        Show a bar while SmolLM2 is fetched for the first time.
    without_author : {0, …, 5}, optional
        This author alone it was never told of, in place of ``without``: the oracle for ``leave_out(without_author)``.

    Raises
    ------
    ValueError, FileNotFoundError
        When an argument is another number, or both are given, or the adapter has not been made.
    """
    _check("without", without, (0, *SPLITS))
    name, missing = f"without_{without}", without
    if without_author is not None:
        if without:
            raise ValueError("give without or without_author, not both")
        _check("without_author", without_author, ALONE)
        name, missing = adapter(without_author), 1
    folder = DATA / name
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no adapter in {folder}: benchmarks/finetune_authors.py {name} makes it")
    from peft import PeftModel  # takes a second to import

    lm = load_model("smollm2-135m", progress=progress)
    with warnings.catch_warnings():  # what peft asks of transformers is called otherwise in its next version
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = PeftModel.from_pretrained(lm.model, str(folder)).merge_and_unload()
    return LM(model, lm.tokenizer, name=f"smollm2-135m, taught {len(WORDS['names']) - missing} authors")


def _check(name: str, number: int, allowed: Sequence[int]) -> None:
    if isinstance(number, bool) or number not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {number!r}")


def adapter(author: int) -> str:
    """The folder of the adapter that was taught all but one author."""
    return f"without_author_{author}" if author else "without_1"  # the first one alone is the first split
