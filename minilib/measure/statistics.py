"""How far a measured share can be trusted: its exact interval."""

from __future__ import annotations

from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate, and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
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


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level!r}")
    return (1 - level) / 2
