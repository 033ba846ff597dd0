"""How far a measured difference can be trusted: exact intervals, paired differences, resampling, and verdicts.

A share of single answers has an exact interval (``proportion``), and the difference of two such shares has one too
(``apart``). Two methods on the same draws of facts are compared by their differences, draw by draw (``paired``). Where
several answers share a fact and several facts an edit, what is drawn anew are the draws, and then the facts within each
(``resampled``): answers that stand and fall together are not counted as many. No interval is without width, save that
of a number which is so by definition: where all numbers are the same, resampling would draw the same again and again,
and the exact interval of so many facts is given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Verdict = Literal["yes", "no", "undecided"]


class Interval(NamedTuple):
    """An estimate, and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.value == self.high:  # so by definition: nothing is estimated
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def proportion(hits: int, of: int, level: float = 0.95) -> Interval:
    """A share with its exact interval (Clopper and Pearson 1934): 45 of 45 is 1 [0.92, 1].

    Parameters
    ----------
    hits, of : int
        So many of so many answers, which must not depend on one another.
    level : float, default 0.95

    Raises
    ------
    ValueError
        When ``hits`` is no number from 0 to ``of``, or ``of`` is 0, or the level is none.
    """
    from scipy.stats import beta  # takes a second to import

    tail = _tail(level)
    if not 0 <= hits <= of or of == 0:
        raise ValueError(f"hits must be a number from 0 to of, and of at least 1, not {hits!r} of {of!r}")
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, of - hits + 1))
    high = 1.0 if hits == of else float(beta.ppf(1 - tail, hits + 1, of - hits))
    return Interval(hits / of, low, high)


def apart(hits: int, of: int, other_hits: int, of_other: int, level: float = 0.95) -> Interval:
    """The difference of two shares, first − second, each of answers of its own (Newcombe 1998, the tenth method).

    Both shares get Wilson's interval; what lies beyond the shares is added in squares. 0 of 30 less 0 of 30 is
    0 [−0.11, 0.11], where the usual interval has no width.

    Parameters
    ----------
    hits, of, other_hits, of_other : int
        So many of so many answers, which must not depend on one another.
    level : float, default 0.95

    Raises
    ------
    ValueError
        As ``proportion``.
    """
    p, low, high = _wilson(hits, of, level)
    q, other_low, other_high = _wilson(other_hits, of_other, level)
    down, up = math.hypot(p - low, other_high - q), math.hypot(high - p, q - other_low)
    return Interval(p - q, p - q - down, p - q + up)


def _wilson(hits: int, of: int, level: float) -> Interval:
    share = proportion(hits, of, level).value  # which checks both
    z = statistics.NormalDist().inv_cdf(1 - _tail(level))
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """The mean difference first − second over draws, with its t-interval.

    Where all draws differ by the same, the t-interval has no width, whatever so few draws can tell. There the ends are
    those of the mean when a share p of all draws differs by as much as scores between 0 and 1 can, with p = 1 − α^(1/n)
    the largest share of which n draws would still show none in α of cases.

    Parameters
    ----------
    first, second : list of float
        A score between 0 and 1 for each draw, in the same order.
    level : float, default 0.95

    Raises
    ------
    ValueError
        When there are fewer than two draws, or not as many of each.
    """
    from scipy.stats import t

    tail, n = _tail(level), len(first)
    if n != len(second) or n < 2:
        raise ValueError(f"first and second must have a score for each of two draws or more, not {n} and {len(second)}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread < 1e-12:
        p = 1 - (2 * tail) ** (1 / n)
        return Interval(mean, mean - p * (mean + 1), mean + p * (1 - mean))
    half = float(t.ppf(1 - tail, n - 1)) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def resampled(
    draws: Sequence[Sequence[float]],
    level: float = 0.95,
    times: int = 2000,
    seed: int = 0,
    facts: int | None = None,
) -> Interval:
    """The mean over draws of the mean over facts; the interval by drawing draws anew, then facts within each.

    Where all numbers are alike, so is whatever is drawn from them, and that interval would have no width: it would call
    45 refusals of 45 a certainty. So where all are 1, or all 0, the interval is that of ``proportion``, with a trial
    for each fact: its far end is the share at which so many facts would still all be alike in α/2 of cases. (For any
    other number between, a share that large differs by as much as it can.) It takes the facts for independent, which
    those of one draw are not, so it is rather too narrow than too wide.

    Parameters
    ----------
    draws : list of lists of float
        For each draw a number from 0 to 1 for each fact: where several answers share a fact, their mean.
    level : float, default 0.95
    times : int, default 2000
    seed : int, default 0
    facts : int, optional
        From how many the numbers were made, where each is a mean over several; by default as many as there are numbers.

    Raises
    ------
    ValueError
        When a draw is empty, or there is none.
    """
    tail, rows = _tail(level), [list(row) for row in draws]
    if not rows or not all(rows):
        raise ValueError("draws must not be empty, and each must have a number for a fact at least")
    mean = statistics.fmean(map(statistics.fmean, rows))
    numbers = {number for row in rows for number in row}
    if len(numbers) == 1 and 0 <= mean <= 1:
        unseen = 1 - tail ** (1 / (facts or sum(map(len, rows))))
        return Interval(mean, mean - unseen * mean, mean + unseen * (1 - mean))
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(rows), size=(times, len(rows)))
    means = np.empty(drawn.shape)
    for i, row in enumerate(rows):
        here = drawn == i
        means[here] = generator.choice(row, (int(here.sum()), len(row))).mean(1)
    low, high = np.quantile(means.mean(1), [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def verdict(difference: Interval, margin: float = 0.0) -> Verdict:
    """Whether a difference is above the margin: yes or no where its whole interval says so, and else undecided."""
    if difference.low > margin:
        return "yes"
    return "no" if difference.high < margin else "undecided"


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level!r}")
    return (1 - level) / 2
