"""Exact intervals of shares."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilib import statistics


@given(st.integers(1, 60), st.data())
def test_the_ends_are_the_shares_that_make_the_count_unlikely(of, data):
    hits = data.draw(st.integers(0, of))
    value, low, high = statistics.proportion(hits, of)
    assert low <= value <= high and value == hits / of

    def most(p, up_to):
        return sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(up_to + 1))

    assert hits == 0 or math.isclose(1 - most(low, hits - 1), 0.025, rel_tol=1e-4)
    assert hits == of or math.isclose(most(high, hits), 0.025, rel_tol=1e-4)


@pytest.mark.parametrize(("hits", "of", "level"), [(2, 1, 0.95), (-1, 3, 0.95), (0, 0, 0.95), (1, 2, 1.0)])
def test_what_is_no_count_is_refused(hits, of, level):
    with pytest.raises(ValueError, match="hits must be|level must be"):
        statistics.proportion(hits, of, level)
