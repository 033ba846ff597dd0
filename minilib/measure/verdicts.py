"""What attacks on many models say together: rates, false alarms, and a verdict on each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from . import statistics
from .statistics import Interval

Row = dict[str, Any]


def auc(rows: Sequence[Row], score: str = "loss") -> float:
    """How well a score of ``membership`` tells members from others: 0.5 not at all, 1 always.

    Members are those with the lower ``loss`` or ``min-k``; of ``z``, both of whose tails count, the larger size.
    """
    value = (lambda x: -abs(x)) if score == "z" else float
    members, others = ([value(row[score]) for row in rows if row["member"] == yes] for yes in (True, False))
    wins = [(m < o) + (m == o) / 2 for m in members for o in others]
    return fmean(wins)


# ---- the verdict --------------------------------------------------------------------------------------

MARGIN = 0.1  # an attack beats its false alarm rate when it recovers so much more than from the oracle
ENOUGH = 30  # facts: an attack on fewer does not count, in either direction


def verdict(beyond: Mapping[str, Interval], margin: float = MARGIN) -> str:
    """What became of the facts: "removed", "masked", "guarded" or "undecided", by stated rules.

    An attack succeeds where the whole interval of what it recovers beyond its false alarms is above the margin, and
    fails where it is below. *Guarded*: taking the guard away succeeds, so the weights still say it. *Masked*: that
    does not, and another attack does. *Removed*: all fail. Else it is *undecided*.

    Parameters
    ----------
    beyond : mapping
        For each attack how much more it recovers from the edited model than from one that never knew: the difference of
        the two shares, with its interval.

    Raises
    ------
    ValueError
        When no attack is given.
    """
    if not beyond:
        raise ValueError("beyond is empty: without an attack there is no verdict")
    succeeds = {name: statistics.verdict(interval, margin) for name, interval in beyond.items()}
    if "yes" in succeeds.values():
        return "guarded" if succeeds.get("unguarded") == "yes" else "masked"
    return "removed" if set(succeeds.values()) == {"no"} else "undecided"


def verdicts(measured: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The verdict of each method, by all attacks that were run on ``ENOUGH`` facts; rows as in ``beyond``.

    Where no attack was, there is none: "".

    Raises
    ------
    ValueError
        When there is no row of the "oracle", or an attack has no false alarms.
    """
    found = {}
    for method in dict.fromkeys(row["method"] for row in measured):
        if method not in ("unedited", "oracle"):
            counts = {name: len(hits) for name, hits in _pooled(measured, method).items()}
            apart = beyond(measured, method)
            if missing := sorted(counts.keys() - apart.keys()):
                raise ValueError(f"measured must have false alarms for each attack on {method!r}: {missing} have none")
            enough = {name: x for name, x in apart.items() if counts[name] >= ENOUGH}
            found[method] = verdict(enough) if enough else ""
    return found


def beyond(measured: Sequence[Mapping[str, Any]], method: str, alarm: str = "oracle") -> dict[str, Interval]:
    """For each attack what it recovers from a method beyond its false alarms, where these are known.

    Over several draws this is the mean difference with its t-interval. Where all draws differ by the same, so that it
    has no width, and where there is one draw, it is the difference of two shares, each fact counted for itself.

    Parameters
    ----------
    measured : list of dict
        As ``benchmarks/is_it_gone.py`` stores them: ``method``; ``seed``, the number of the draw; ``each``, for each
        attack its facts as a string of 1 and 0; ``alarms``, the same of the model that never knew, for what that could
        not be attacked by on its own. One of the methods is ``alarm``.
    method : str
    alarm : str, default "oracle"
        The method of the rows that hold the false alarms.

    Raises
    ------
    ValueError
        When there is no row of ``alarm``.
    """
    usual = {row["seed"]: row["each"] for row in measured if row["method"] == alarm}
    if not usual:
        raise ValueError(f"measured has no row of the method {alarm!r}, so there is no false alarm rate")
    pairs: dict[str, list[tuple[str, str]]] = {}
    for row in measured:
        if row["method"] == method:
            # To take a guard from a model that has none changes nothing.
            never = {"unguarded": usual[row["seed"]].get("none", "")} | usual[row["seed"]] | row["alarms"]
            for name, hits in row["each"].items():
                if never.get(name):
                    pairs.setdefault(name, []).append((hits, never[name]))
    return {name: _difference(draws) for name, draws in pairs.items()}


def _difference(draws: Sequence[tuple[str, str]]) -> Interval:
    attacked, never = ([fmean(map(int, hits)) for hits in side] for side in zip(*draws, strict=True))
    apart = [a - b for a, b in zip(attacked, never, strict=True)]
    if len(draws) > 1 and max(apart) - min(apart) > 1e-12:
        return statistics.paired(attacked, never)
    first, second = ("".join(side) for side in zip(*draws, strict=True))
    return statistics.apart(first.count("1"), len(first), second.count("1"), len(second))


def false_alarms(measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each attack what it recovered from the oracle, over all draws; rows as in ``beyond``."""
    alarms = recovered(measured, "oracle")
    if not alarms:
        raise ValueError("measured has no row of the method 'oracle', so there is no false alarm rate")
    alarms["unguarded"] = alarms["none"]
    for name in {name for row in measured for name in row["alarms"]}:
        alarms[name] = fmean(int(x) for row in measured for x in row["alarms"].get(name, ""))
    return alarms


def recovered(measured: Sequence[Mapping[str, Any]], method: str) -> dict[str, float]:
    """For each attack the share that it recovered from a method, over all draws; rows as in ``beyond``."""
    return {name: fmean(map(int, hits)) for name, hits in _pooled(measured, method).items()}


def _pooled(measured: Sequence[Mapping[str, Any]], method: str) -> dict[str, str]:
    """For each attack its facts of all draws, as 1 and 0."""
    by_attack: dict[str, str] = {}
    for row in measured:
        if row["method"] == method:
            for name, hits in row["each"].items():
                by_attack[name] = by_attack.get(name, "") + hits
    return by_attack


def rates(rows: Sequence[Row]) -> dict[str, float]:
    """The share recovered of each attack in the rows."""
    kinds = dict.fromkeys(row["attack"] for row in rows)
    return {kind: fmean(row["recovered"] for row in rows if row["attack"] == kind) for kind in kinds}
