"""Numbers of one class, or of one student, from a seed that the lecturer keeps.

Masters and solutions are public. What is not is which numbers the hidden tests draw: they follow from the seed, and
so do the values that stand in a student's notebook, so that the same seed grades what it made.
"""

from __future__ import annotations

import hashlib

import torch

KINDS = ("values", "hidden")


def number(seed: str, assignment: str, kind: str, student: str = "") -> int:
    """A whole number below 2³¹ that nobody can guess without the seed.

    Parameters
    ----------
    seed : str
        The lecturer's secret.
    assignment : str
        As ``"01_rank_one_update"``.
    kind : str
        ``"values"`` for what the student sees, ``"hidden"`` for what he is graded with.
    student : str, default ""
        "" gives all students the same numbers.

    Raises
    ------
    ValueError
        When the seed is empty or the kind another one.
    """
    if not isinstance(seed, str) or not seed:
        raise ValueError(f"seed must be a text that is not empty, not {seed!r}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
    text = "\n".join((seed, assignment, kind, student.casefold().strip()))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def generator(number: int) -> torch.Generator:
    """A generator of random numbers from a notebook's ``VALUES`` or a hidden test's ``HIDDEN``."""
    return torch.Generator().manual_seed(int(number))
