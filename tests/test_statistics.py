"""Intervals and verdicts: equal to a hand computation, and wide where little is known."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binom

from minilib.measure import statistics


def test_an_exact_interval_has_width_at_both_ends():
    assert statistics.proportion(45, 45) == pytest.approx((1, 0.025 ** (1 / 45), 1))
    assert str(statistics.proportion(45, 45)) == "1.00 [0.92, 1.00]"
    assert statistics.proportion(0, 10) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 10)))


@pytest.mark.parametrize(("hits", "of"), [(1, 3), (7, 20), (39, 40)])
def test_at_the_ends_of_an_exact_interval_what_was_seen_has_probability_alpha_half(hits, of):
    share, low, high = statistics.proportion(hits, of)
    assert share == hits / of
    assert binom.sf(hits - 1, of, low) == pytest.approx(0.025) == binom.cdf(hits, of, high)


def test_the_difference_of_two_shares_is_newcombes():
    """His table 2: 56 of 70 less 48 of 80, and 0 of 10 less 0 of 10."""
    assert statistics.apart(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert statistics.apart(9, 10, 3, 10) == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)
    assert statistics.apart(0, 10, 0, 10) == pytest.approx((0, -0.2775, 0.2775), abs=5e-5)
    assert statistics.apart(10, 10, 0, 20) == pytest.approx((1, 0.6791, 1), abs=5e-5)
    first, second = statistics.apart(3, 30, 20, 40), statistics.apart(20, 40, 3, 30)
    assert (second.value, second.low, second.high) == pytest.approx((-first.value, -first.high, -first.low))
    with pytest.raises(ValueError, match="hits must be a number from 0 to of"):
        statistics.apart(4, 3, 1, 3)


def test_paired_differences_by_hand():
    first, second = [0.9, 0.8, 0.7], [0.8, 0.6, 0.4]  # differences 0.1, 0.2, 0.3; t(0.975, 2) = 4.302653
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert statistics.paired(first, second) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    mean, low, high = statistics.paired(second, first)
    assert (mean, low, high) == pytest.approx((-0.2, -0.2 - half, -0.2 + half), abs=1e-6)


def test_draws_that_agree_do_not_make_a_certainty():
    p = 1 - 0.05 ** (1 / 8)
    assert statistics.paired([1.0] * 8, [1.0] * 8) == pytest.approx((0, -p, p))
    assert statistics.paired([1.0] * 8, [0.0] * 8) == pytest.approx((1, 1 - 2 * p, 1))
    widths = [statistics.paired([0.5] * n, [0.5] * n).high for n in (3, 6, 12)]
    assert widths == sorted(widths, reverse=True)


def test_answers_that_stand_and_fall_together_are_not_counted_as_many():
    together = [[1.0] * 5, [0.0] * 5, [1.0] * 5, [0.0] * 5]
    apart = [[1.0, 0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0, 0.0]] * 2
    wide, narrow = statistics.resampled(together), statistics.resampled(apart)
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    assert statistics.resampled(together) == wide, "the same seed, the same interval"
    assert statistics.resampled([[1.0, 0.0], [1.0]]).value == 0.75, "draws count alike, whatever they hold"


def test_where_all_facts_are_alike_the_interval_is_the_exact_one():
    for draws in ([[1.0] * 5] * 9, [[1.0] * 45], [[1.0] * 9, [1.0] * 36]):
        assert statistics.resampled(draws) == pytest.approx(statistics.proportion(45, 45))
        assert str(statistics.resampled(draws)) == "1.00 [0.92, 1.00]", "45 of 45 are no certainty"
    assert statistics.resampled([[0.0] * 5] * 9) == pytest.approx(statistics.proportion(0, 45))
    assert statistics.resampled([[0.0] * 5] * 9, level=0.99) == pytest.approx(statistics.proportion(0, 45, 0.99))
    assert statistics.resampled([[1.0]] * 3, facts=45) == pytest.approx(statistics.proportion(45, 45))
    half = statistics.resampled([[0.5] * 5] * 9)
    assert half == pytest.approx((0.5, 0.5 * 0.025 ** (1 / 45), 1 - 0.5 * 0.025 ** (1 / 45)))


def test_an_interval_without_width_is_printed_as_the_number():
    assert str(statistics.Interval(0, 0, 0)) == "0.00"
    assert str(statistics.Interval(1.0, 0.999, 1.0)) == "1.00 [1.00, 1.00]", "rounding is not a definition"


def test_a_verdict_is_computed_from_the_interval():
    cases = {(0.2, 0.1, 0.3): "yes", (-0.2, -0.3, -0.1): "no", (0.2, -0.1, 0.5): "undecided", (0, 0, 0): "undecided"}
    for interval, said in cases.items():
        assert statistics.verdict(statistics.Interval(*interval)) == said
    assert statistics.verdict(statistics.Interval(0.2, 0.1, 0.3), margin=0.1) == "undecided"
    assert statistics.verdict(statistics.Interval(0.2, 0.1, 0.3), margin=0.4) == "no"


def test_bad_input_is_named():
    for hits, of in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="hits must be a number from 0 to of"):
            statistics.proportion(hits, of)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        statistics.proportion(1, 2, level=1)
    with pytest.raises(ValueError, match="two draws or more, not 1 and 1"):
        statistics.paired([1], [1])
    with pytest.raises(ValueError, match="two draws or more, not 2 and 3"):
        statistics.paired([1, 2], [1, 2, 3])
    for draws in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="draws must not be empty"):
            statistics.resampled(draws)
