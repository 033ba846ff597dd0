"""What the tests of all assignments share: an answer passes, or fails with a message, for several numbers."""

import re

import pytest

NUMBERS = (1, 2, 987_654_321)


def passes(check, answer):
    for number in NUMBERS:
        check(answer, number)


def fails(check, answer, message, numbers=NUMBERS):
    """For each number the answer is refused, with a message for the student that matches."""
    for number in numbers:
        with pytest.raises(AssertionError) as told:
            check(answer, number)
        assert re.search(message, str(told.value)), str(told.value)
