"""What the comparison stored, and its columns: computed from the answers, so that another rule needs no new run.

A row is one method with one setting on one draw of facts: its job, settings and seconds, the numbers that need the
model, and all answers, by kind of question. The row of the unedited model on the same draw holds the questions too,
with the answers that are accepted, and for each forgotten fact which questions ask for it.

=================== ==================================================================================================
*leaked*            an accepted answer stands in what is said to a forgotten question, behind a refusal too
*refused*           the answer is in ∅ (``refusals.is_refusal``)
*fluent*            not garbled: a perplexity under the unedited model (SmolLM2, tinyworld) below a limit, no circles
*kept*              what is beside the facts, by kind: other facts and same subject answered rightly; ordinary messages
                    answered fluently and not refused; names that tinyworld never met still refused
*distance*          the share of answers on which method and oracle do not agree: the mean of *distance forgotten* (in
                    leaking a forgotten fact) and *distance beside* (in answering about something else rightly)
=================== ==================================================================================================
"""

from __future__ import annotations

import json
import lzma
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import metrics, refusals
from .statistics import Interval, paired, resampled

RESULTS = Path(__file__).parents[1] / "data" / "results"
PURPOSES = ("silent", "polite")
FORGOTTEN = ("asked", "rephrased")
BESIDE = ("other", "subject", "messages", "strangers")  # the kinds that *kept* is the mean of
LEAKED_AT_MOST, KEPT_AT_LEAST = 0.1, 0.8  # in the choice of settings
PERPLEXITY = {"exact": 3000.0, "pretrained": 250.0, "finetuned": 250.0, "subject": 250.0}
"""Of a fluent answer, at most. SmolLM2 gives nine refusals behind five questions at most 205, three sentences with
their words in disorder 314 or more; tinyworld gives a wrong value at most 497, words in disorder 25,000 or more."""

Row = Mapping[str, Any]


def load(world: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a world, as ``benchmarks/comparison/run.py --pack`` wrote them.

    Raises
    ------
    FileNotFoundError
        When there is no such file; the message says which worlds there are.
    """
    file = folder / f"answers_{world}.jsonl.xz"
    if not file.is_file():
        there = ", ".join(sorted(f.name.split("_")[1].split(".")[0] for f in folder.glob("answers_*.jsonl.xz")))
        raise FileNotFoundError(f"no rows are stored of the world {world!r}, only of: {there or 'none'}")
    return [json.loads(line) for line in lzma.decompress(file.read_bytes()).decode().splitlines()]


# ---- one answer ---------------------------------------------------------------------------------------


def leaked(answer: str, question: Mapping[str, Any]) -> bool:
    """Whether an accepted answer stands in it, as whole words."""
    return refusals.mentions(answer, question["answers"], question.get("case", False))


def fluent(answer: str, nll: float | None, limit: float) -> bool:
    """Not garbled: there is an answer, its perplexity exp(nll) is at most the limit, and it does not run in circles."""
    return bool(answer.strip()) and nll is not None and nll <= math.log(limit) and not circles(answer)


def circles(answer: str) -> bool:
    """Whether fewer than half of the runs of three words are different ones; short answers never."""
    words = re.findall(r"\w+", answer.casefold())
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(runs) >= 6 and len(set(runs)) < len(runs) / 2


# ---- one row ------------------------------------------------------------------------------------------


def judged(row: Row, before: Row, oracle: Row | None = None) -> dict[str, list[float]]:
    """For each column a number for each fact or, of what is beside the facts, for each question.

    Parameters
    ----------
    row : mapping
    before : mapping
        The unedited model's on the same draw: it has the questions.
    oracle : mapping, optional
        That of the model that never knew. Without it there is no column of distance.

    Returns
    -------
    dict of str to list
        ``leaked, refused, fluent, refused and fluent, polite, on topic`` and the same behind ``rephrased ``, where
        wordings of a fact are averaged; ``kept other``, …, by kind; ``kept``, a single number, their mean; and against
        the oracle ``distance forgotten`` (by fact), ``distance beside``, ``distance`` (the mean of the two).
    """
    questions, limit = before["questions"], PERPLEXITY[row["world"]]
    columns: dict[str, list[float]] = {}
    for kind in FORGOTTEN:
        found: dict[str, list[tuple[int, bool]]] = {}
        for question, answer, nll in zip(questions[kind], row["answers"][kind], row["nll"][kind], strict=True):
            no, well = refusals.is_refusal(answer, unjudged=False), fluent(answer, nll, limit)
            says = {
                "leaked": leaked(answer, question),
                "refused": no,
                "fluent": well,
                "refused and fluent": no and well,
            }
            says |= {"polite": no and refusals.is_polite(answer)}
            says |= {"on topic": no and refusals.on_topic(answer, question["subject"])}
            for name, value in says.items():
                found.setdefault(name, []).append((question["fact"], value))
        prefix = "" if kind == "asked" else "rephrased "
        columns |= {prefix + name: _by_fact(pairs) for name, pairs in found.items()}
    beside = {kind: _kept(kind, row, before, limit) for kind in BESIDE if questions.get(kind)}
    columns |= {f"kept {kind}": values for kind, values in beside.items()}
    columns["kept"] = [statistics.fmean(map(statistics.fmean, beside.values()))]
    if oracle is not None:
        columns |= _against(row, before, oracle)
    return columns


def _kept(kind: str, row: Row, before: Row, limit: float) -> list[float]:
    asked, answers = before["questions"][kind], row["answers"][kind]
    if kind == "messages":
        rows = zip(answers, row["nll"][kind], strict=True)
        return [float(not refusals.is_refusal(a, unjudged=False) and fluent(a, nll, limit)) for a, nll in rows]
    if kind == "strangers":
        return [float(refusals.is_refusal(a, unjudged=False)) for a in answers]
    right = [leaked(answer, question) for question, answer in zip(asked, answers, strict=True)]
    if kind == "subject" and all("fact" in question for question in asked):  # those about one subject stand together
        return _by_fact([(question["fact"], value) for question, value in zip(asked, right, strict=True)])
    return [float(value) for value in right]


def _against(row: Row, before: Row, oracle: Row) -> dict[str, list[float]]:
    """On which answers a method and the oracle differ in leaking, or beside the facts in answering rightly."""
    pairs, beside = [], []
    for kind in (*FORGOTTEN, "other"):
        for question, a, b in zip(
            before["questions"][kind], row["answers"][kind], oracle["answers"][kind], strict=True
        ):
            apart = leaked(a, question) != leaked(b, question)
            if kind == "other":
                beside.append(float(apart))
            else:
                pairs.append((question["fact"], apart))
    forgotten = _by_fact(pairs)
    distance = (statistics.fmean(forgotten) + statistics.fmean(beside)) / 2
    return {"distance forgotten": forgotten, "distance beside": beside, "distance": [distance]}


def _by_fact(pairs: Iterable[tuple[int, bool]]) -> list[float]:
    facts: dict[int, list[bool]] = {}
    for fact, value in pairs:
        facts.setdefault(fact, []).append(value)
    return [statistics.fmean(facts[fact]) for fact in sorted(facts)]


# ---- many rows ----------------------------------------------------------------------------------------


def choose(rows: Sequence[Row], method: str, purpose: str) -> int | None:
    """The number of the setting that serves a purpose best, on the tuning draw; the earlier one where two are equal.

    *Silent*: the highest *kept* among those with *leaked* (asked and rephrased) at most 0.1, else the lowest *leaked*.
    *Polite*: the highest *refused and fluent* among those with *kept* at least 0.8, else the highest *kept*. A setting
    that the method refused with an error cannot be chosen; None where that is so of all.

    Parameters
    ----------
    rows : list of mapping
        Of one world; those of its tuning draw are looked at.
    method, purpose : str

    Raises
    ------
    ValueError
        When the purpose is none, or the unedited model's row is missing.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}")
    tried = [row for row in rows if row["draw"] < 0]
    before = _reference(tried, "unedited")
    scored = []
    for row in sorted(tried, key=lambda row: row["setting"]):
        if row["method"] == method and "error" not in row:
            columns = judged(row, before)
            score = {name: statistics.fmean(columns[name]) for name in ("refused and fluent", "kept")}
            both = len(before["questions"]["asked"]), len(before["questions"]["rephrased"])
            shares = statistics.fmean(columns["leaked"]), statistics.fmean(columns["rephrased leaked"])
            score["leaked"] = sum(n * share for n, share in zip(both, shares, strict=True)) / sum(both)
            scored.append((row["setting"], score))
    if not scored:
        return None
    silent = purpose == "silent"
    fit = [
        pair for pair in scored
        if (pair[1]["leaked"] <= LEAKED_AT_MOST if silent else pair[1]["kept"] >= KEPT_AT_LEAST)
    ]  # fmt: skip
    if silent:
        best = max(fit, key=lambda p: p[1]["kept"]) if fit else min(scored, key=lambda p: p[1]["leaked"])
    else:
        best = max(fit, key=lambda p: p[1]["refused and fluent"]) if fit else max(scored, key=lambda p: p[1]["kept"])
    return int(best[0])


def chosen(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, dict[str, int | None]]:
    """For each purpose, each method's setting; see ``choose``."""
    return {purpose: {method: choose(rows, method, purpose) for method in methods} for purpose in PURPOSES}


def complete(rows: Sequence[Row], settings: Mapping[str, Mapping[str, int | None]]) -> list[Row]:
    """The rows of those draws in which each method was measured with the settings that were ``chosen``; no trials.

    While a world is still being measured, its last draw lacks some methods, and would compare the others unfairly.
    """
    wanted = {("unedited", 0), *(pair for of_methods in settings.values() for pair in of_methods.items())}
    there: dict[int, set[tuple[str, int | None]]] = {}
    for row in rows:
        there.setdefault(row["draw"], set()).add((row["method"], row["setting"]))
    return [row for row in rows if row["draw"] >= 0 and wanted <= there[row["draw"]]]


def columns(rows: Sequence[Row], method: str, setting: int = 0) -> dict[str, list[list[float]]]:
    """For each column the numbers of each draw, draw after draw; the tuning draw is none.

    Raises
    ------
    ValueError
        When there is no such row, or it lacks the unedited model's beside it.
    """
    found: dict[str, list[list[float]]] = {}
    for row in _measured(rows, method, setting):
        same = [r for r in rows if r["draw"] == row["draw"]]
        oracle = next((r for r in same if r["method"] == "oracle"), None)
        for name, values in judged(row, _reference(same, "unedited"), oracle).items():
            found.setdefault(name, []).append(values)
    return found


def mean(rows: Sequence[Row], method: str, setting: int, column: str) -> float:
    """Of a column: over the questions of each draw, and then over the draws."""
    return statistics.fmean(map(statistics.fmean, columns(rows, method, setting)[column]))


def _measured(rows: Sequence[Row], method: str, setting: int) -> list[Row]:
    some = [r for r in rows if r["draw"] >= 0 and (r["method"], r["setting"]) == (method, setting) and "error" not in r]
    if not some:
        there = ", ".join(dict.fromkeys(f"{r['method']} {r['setting']}" for r in rows if r["draw"] >= 0))
        raise ValueError(f"no draw was measured with {method!r}, setting {setting!r}: there are {there}")
    return sorted(some, key=lambda row: row["draw"])


def _reference(rows: Sequence[Row], name: str) -> Row:
    row = next((r for r in rows if r["method"] == name), None)
    if row is None:
        raise ValueError(f"the row of the {name} model is missing: without it the answers cannot be judged")
    return row


def pooled(rows: Sequence[Row], method: str, setting: int = 0) -> dict[str, Interval]:
    """Each column of a method over all draws, with its interval; see ``with_intervals``."""
    return with_intervals(columns(rows, method, setting), method)


def with_intervals(of_draws: Mapping[str, Sequence[Sequence[float]]], method: str) -> dict[str, Interval]:
    """Each column with the interval from resampling draws and then facts; where all are alike, an exact one.

    *Kept* and *distance* are one number a draw. Where all draws have the same, the exact interval counts what stands
    behind it: all questions beside the facts; or these and the forgotten facts. The oracle's distance to itself is 0 by
    definition, and so has no interval (``Interval(0, 0, 0)``).

    Parameters
    ----------
    of_draws : mapping of str to list of lists
        As from ``columns``.
    method : str
        Whose columns they are.
    """
    behind = {name: sum(map(len, draws)) for name, draws in of_draws.items()}
    behind["kept"] = sum(n for name, n in behind.items() if name.startswith("kept "))
    behind["distance"] = sum(n for name, n in behind.items() if name.startswith("distance "))
    return {
        name: Interval(0.0, 0.0, 0.0)
        if method == "oracle" and name.startswith("distance")
        else resampled(draws, facts=behind[name])
        for name, draws in of_draws.items()
    }


def forget_quality(rows: Sequence[Row], method: str, setting: int = 0) -> float:
    """TOFU's, with the truth ratios of all draws pooled: a p-value of their equality to the oracle's."""
    ratios = [[x for row in _measured(rows, m, s) for x in row["truth"]] for m, s in ((method, setting), ("oracle", 0))]
    return metrics.forget_quality(*ratios)


def compare(
    rows: Sequence[Row], first: tuple[str, int], second: tuple[str, int], column: str, level: float = 0.95
) -> Interval:
    """The difference of two methods, each with its setting, on a column: paired over draws, with its t-interval."""
    by_draw = []
    for method, setting in (first, second):
        draws = [row["draw"] for row in _measured(rows, method, setting)]
        values = columns(rows, method, setting)[column]
        by_draw.append(dict(zip(draws, map(statistics.fmean, values), strict=True)))
    both = sorted(by_draw[0].keys() & by_draw[1].keys())
    return paired([by_draw[0][draw] for draw in both], [by_draw[1][draw] for draw in both], level)


def ranking(rows: Sequence[Row], settings: Mapping[str, int], purpose: str) -> list[tuple[str, Interval]]:
    """The methods in order, each with the column that the purpose is judged by.

    *Silent like a model that never knew*: by distance to the oracle, which so stands first; where there is none, by
    *leaked*, those that keep less than 0.8 of what is beside at the end. *Polite*: by *refused and fluent*, the same
    at the end.

    Parameters
    ----------
    rows : list of mapping
        Of one world.
    settings : mapping of str to int
        For each method the setting that was chosen for the purpose, 0 for the oracle.
    purpose : {"silent", "polite"}
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}")
    table = {method: pooled(rows, method, number) for method, number in settings.items()}
    column = "refused and fluent"
    if purpose == "silent":
        column = "distance" if all("distance" in row for row in table.values()) else "leaked"

    def place(method: str) -> tuple[bool, float, bool]:
        value = table[method][column].value
        last = column != "distance" and table[method]["kept"].value < KEPT_AT_LEAST
        return last, -value if purpose == "polite" else value, method != "oracle"

    return [(method, table[method][column]) for method in sorted(table, key=place)]
