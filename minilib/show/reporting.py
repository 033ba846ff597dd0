"""The report of an edit: what was asked, measured and attacked, on one page to hand in (``report_page`` writes it).

It follows the list "How to report an edit" of the page "What may be claimed".
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import covariance, storage
from ..editor import short
from ..edits import Edit
from ..measure import attacks as ways
from ..measure import metrics, statistics, verdicts
from ..measure.audit import ATTACKS, MEASURES, Row, attacked, compared, measures, questions
from ..model import LM, check_lm
from ..requests import Request, whole
from ..worlds.facts import Fact, Question
from . import report_page

TOKENS = 24  # of an answer

STATED = (
    "who asks for what",
    "how the questions were chosen",
    "who checked the answers",
    "on which other facts the settings were chosen",
    "what was done outside the model",
)
"""What only the person who makes the report can know. What ``about`` leaves out is in the report as "not stated"."""


@dataclass(frozen=True)
class Report:
    """What was found; ``html`` is the page that shows it, and notebooks show it too.

    Attributes
    ----------
    title : str
    stated, settings, ordinary : dict
        What the caller stated; the edit's settings, versions and fingerprints; perplexity and divergence.
    answers : list of dict
        For each question its ``kind``, ``fact`` (the question about the fact that it belongs to), ``asked``,
        ``before``, ``after``, and truth values: whether the model ``knew`` and ``knows`` the answer, and has
        ``refused`` now.
    measures : dict of dict
        By the names in ``MEASURES``: ``hits``, ``of``, ``low`` and ``high`` (its exact interval); with a ``limit`` also
        ``met``: "yes", "no", or "undecided" where the limit lies inside the interval.
    attacks : dict of dict
        By name: ``hits``, ``of``, ``low``, ``high``; ``alarm``, the same from ``never``, or None; ``holding``, whether
        it needs the weights; ``asked`` and ``said``, of an answer that was recovered, if one was.
    left_out : dict of str to str
        The attacks that were not run, and why.
    verdict : str
        "removed", "masked", "guarded" or "undecided", by the rules of ``verdicts.verdict``; "" without ``never``.
    """

    title: str
    stated: dict[str, str]
    settings: dict[str, str] = field(repr=False)
    ordinary: dict[str, float]
    answers: list[Row] = field(repr=False)
    measures: dict[str, Row]
    attacks: dict[str, Row]
    left_out: dict[str, str] = field(repr=False)
    verdict: str

    @property
    def html(self) -> str:
        """The whole page, as one file."""
        return report_page.page(self)

    def _repr_html_(self) -> str:
        return report_page.fragment(self)

    def save(self, path: str | Path) -> Path:
        """Write the page into a file, whole or not at all; an ``OSError`` says why it can't be written."""
        path = Path(path)
        with storage.whole(path) as scratch:
            scratch.write_text(self.html, "utf8")
        return path


def report(
    lm: LM,
    edit: Edit,
    facts: Sequence[Fact],
    never: Sequence[Fact] | None = None,
    *,
    beside: Sequence[Question] = (),
    attacks: Sequence[str] = tuple(ATTACKS),
    accept: Mapping[str, float] | None = None,
    about: Mapping[str, str] | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Ask, measure and attack an edited model, and put all of it on one page. The model is left as it was.

    "Before" is the model without any edit in force. Shares have exact 95% intervals (``statistics.proportion``).

    Parameters
    ----------
    lm : LM
        The edited model.
    edit : Edit
        In force in it, by any method.
    facts : list of Fact
        What had to go. Those that the model did not know before are shown, and not counted.
    never : list of Fact, optional
        Facts of the same form that the model does not know: what an attack "recovers" of them is its false alarm
        rate. None may be answered before the edit, so that lucky guesses are left out; that makes the rates rather too
        low, and the report rather too strict with the edit.
    beside : list of Question, optional
        More questions that the edit has to spare, beside those that the facts bring along; counted as unrelated.
    attacks : list of str, default all of ``ATTACKS``
        Which to run. Those that do not apply to the model or the edit are listed in the report with the reason.
    accept : mapping, optional
        Limits for some of ``MEASURES``, fixed before the measurement: ``{"revealed when asked": 0.1}``.
    about : mapping, optional
        What you state yourself, such as each of ``STATED``.
    texts : list of str, optional
        Ordinary text for perplexity and divergence; by default four of the library's (``covariance.of_model``).
    seed : int, default 0

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, the edit is not in force, the model knew none of ``facts`` or knew one of ``never``.
    """
    started, never = time.perf_counter(), [] if never is None else never
    for name, given in (("accept", accept), ("about", about)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a dict, not {given!r}")
    limits, about, seed = dict(accept or {}), dict(about or {}), whole(seed, "seed", least=0)
    _check(lm, edit, limits, attacks)
    facts, never = _facts(facts, "facts"), _facts(never, "never", least=0)
    beside, texts = list(beside or ()), covariance.of_model(lm)[:4] if texts is None else texts
    for name, some, kind in (("beside", beside, Question), ("about", [*about, *about.values()], str)):
        for one in some:
            if not isinstance(one, kind):
                raise TypeError(f"{name} must hold {kind.__name__}, not {one!r}")
    asked = questions(lm, facts, beside)
    prompts = [prompt for *_, prompt in asked]
    with lm.unedited():
        before = lm.generate(prompts, max_new_tokens=TOKENS)
        guessed = ways.none(lm, never, TOKENS) if never else []
        perplexity = metrics.perplexity(lm, texts)
    for i, row in enumerate(guessed):
        if row["recovered"]:
            raise ValueError(
                f"never[{i}] is known: {lm.name} answers {row['asked']!r} with {row['said']!r} before the edit; never "
                "must hold facts that the model does not know"
            )
    answers = compared(asked, before, lm.generate(prompts, max_new_tokens=TOKENS))
    knew = {row["fact"] for row in answers if row["kind"] == "asked" and row["knew"]}
    known = [fact for fact in facts if fact.asked.text in knew]
    if not known:
        raise ValueError(f"facts holds none of {len(facts)} that {lm.name} knew before the edit: nothing was forgotten")
    tried, left_out = attacked(lm, known, never, attacks, seed)
    beyond = {
        name: statistics.apart(row["hits"], row["of"], row["alarm"]["hits"], row["alarm"]["of"])
        for name, row in tried.items()
        if row["alarm"]
    }
    verdict = verdicts.verdict(beyond) if beyond else ""
    ordinary = {
        "perplexity before": perplexity,
        "perplexity after": metrics.perplexity(lm, texts),
        "divergence": metrics.divergence(lm, texts),
        "texts": len(texts),
    }
    stated = {name: "not stated" for name in STATED} | about
    settings = _settings(lm, edit) | _circumstances(lm, seed, started)
    title = f"Report of an edit: {edit.method} on {lm.name}"
    return Report(title, stated, settings, ordinary, answers, measures(answers, knew, limits), tried, left_out, verdict)


def _check(lm: Any, edit: Any, limits: Any, attacks: Any) -> None:
    check_lm(lm)
    if not isinstance(edit, Edit):
        raise TypeError(f"edit must be an Edit, as a method returns it, not {edit!r}")
    if not edit.active:
        raise ValueError(f"edit {edit} was undone: there is nothing to report; make it again")
    if edit.lm.model is not lm.model:
        raise ValueError(f"edit is an edit of another model, {edit.lm.name}: give the one that lm holds")
    for name, limit in limits.items():
        if name not in MEASURES or isinstance(limit, bool) or not isinstance(limit, Real) or not 0 <= float(limit) <= 1:
            raise ValueError(f"accept must give shares between 0 and 1 for some of {list(MEASURES)}, not {limits!r}")
    if isinstance(attacks, str) or not isinstance(attacks, Sequence) or any(name not in [*ATTACKS] for name in attacks):
        raise ValueError(f"attacks must be a list from {list(ATTACKS)}, not {attacks!r}")


def _facts(facts: Any, name: str, least: int = 1) -> list[Fact]:
    if isinstance(facts, (str, Fact, Request)) or not isinstance(facts, Sequence):
        raise TypeError(f"{name} must be a list of facts, not {facts!r}")
    for i, fact in enumerate(facts):
        if not isinstance(fact, Fact):
            raise TypeError(f"{name}[{i}] must be a facts.Fact, with other wordings and answers, not {fact!r}")
        if fact in facts[:i]:
            raise ValueError(f"{name}[{i}] stands in the list twice, and would count twice: {fact.asked.text!r}")
    if len(facts) < least:
        raise ValueError(f"{name} is empty: give the facts that the edit was to forget")
    return list(facts)


def _settings(lm: LM, edit: Edit) -> dict[str, str]:
    """The edit in words: its settings, what it changed, and its notes."""
    changed = "no weight"
    if sizes := edit.sizes():
        change, size = (math.hypot(*column) for column in zip(*sizes.values(), strict=True))
        changed = f"{len(sizes)} matrices, by {change / size:.2%} of their length"
    rows = {"method": edit.method, "requests": "; ".join(f"{r.text!r} → {r.target!r}" for r in edit.requests)}
    rows |= {name: short(repr(value), 300) for name, value in edit.settings.items()}
    rows |= {"changed": changed, "notes": "; ".join(edit.notes) or "none"}
    more = [repr(other) for other in lm.edits if other is not edit]
    rows |= {"beside the weights": repr(edit.guard)} if edit.guard is not None else {}
    return rows | ({"other edits in force": "; ".join(more)} if more else {})


def _circumstances(lm: LM, seed: int, started: float) -> dict[str, str]:
    """Which weights, on what, by which versions."""
    from .. import __version__

    kind = str(lm.model.dtype).removeprefix("torch.")
    return {
        "fingerprint of the weights": f"{lm.fingerprint} before, {storage.fingerprint_of(lm.model)} after",
        "precision and device": f"{kind}, {lm.device}, {torch.get_num_threads()} threads",
        "versions": f"minilib {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "seed of this report": str(seed),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, in {time.perf_counter() - started:.0f} seconds",
    }
