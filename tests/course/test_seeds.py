"""Numbers follow from the seed, and from nothing else; calls of students' functions end, whatever these do."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilib.course import checks, seeds


@given(st.text(min_size=1), st.text(), st.sampled_from(seeds.KINDS), st.text())
@pytest.mark.long
def test_the_same_seed_gives_the_same_number(seed, assignment, kind, student):
    found = seeds.number(seed, assignment, kind, student)
    assert found == seeds.number(seed, assignment, kind, f" {student} ") and 0 <= found < 2**31


def test_each_part_changes_the_number():
    found = {
        seeds.number(seed, assignment, kind, student)
        for seed in ("a", "b")
        for assignment in ("01", "02")
        for kind in seeds.KINDS
        for student in ("", "Ada", "Max")
    }
    assert len(found) == 24
    assert seeds.number("a", "01", "values", "ADA") == seeds.number("a", "01", "values", "Ada")


@pytest.mark.parametrize(("seed", "kind", "message"), [("", "values", "seed must be"), ("a", "other", "kind must be")])
def test_bad_arguments(seed, kind, message):
    with pytest.raises(ValueError, match=message):
        seeds.number(seed, "01", kind)


def leaves():
    raise SystemExit(0)


def loops():
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (None, "`f` is not defined"),
        (3, "must be a function, not int"),
        (leaves, r"leaves Python \(SystemExit\)"),
        (loops, "did not return within"),
        (lambda: torch.zeros(10**15), "more memory"),
        (lambda: [] + 1, r"stops with TypeError.*in your line `\(lambda: \[\] \+ 1"),
        (lambda: None, "returns nothing"),
        (lambda: ..., "returns nothing"),
        (lambda x: 1, "stops with TypeError"),
    ],
)
def test_whatever_a_function_does_it_is_said_and_grading_goes_on(function, message):
    with pytest.raises(AssertionError, match=message):
        checks.call(function, name="f", seconds=0.2)


def test_an_argument_that_is_changed_is_named():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="changes its argument number 2 in place"):
        checks.call(lambda a, b: b.mul_(2), 1, x, name="f")
    assert torch.equal(x, torch.ones(3))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.ones(2), "is off by"),
        (torch.ones(3), r"has the shape \(3,\) and should have \(2,\)"),
        (torch.tensor([torch.nan, 1.0]), "NaN"),
        (torch.tensor([4.0, 8.0]), "2 times what it should be"),
        (torch.tensor([-4.0, -8.0]), "sign is wrong: it is -2 times"),
        ([2.0, 4.0], "must be a tensor, not list"),
        (..., "put your code"),
        (torch.tensor([1.0, 2.0]), "half of it"),
        ("text", "must be a tensor"),
    ],
)
def test_an_answer_is_compared_with_the_right_and_the_likely_wrong_ones(found, message):
    expected = torch.tensor([2.0, 4.0])
    with pytest.raises(AssertionError, match=message):
        checks.compare(found, expected, "x", [("half of it", expected / 2)])
    checks.compare(expected + 1e-5, expected, "x", [("half of it", expected / 2)])


def right(answer, number):
    assert answer == number, f"`answer` is {answer}, <not> {number}"


@pytest.mark.parametrize(
    ("answer", "passed", "message"), [(3, True, "✓ Right"), (4, False, "✗ `answer` is 4, <not> 3"), (None, False, "✗")]
)
def test_a_step_says_what_its_check_says(answer, passed, message):
    said = checks.step(right, answer, 3)
    assert said.passed is passed and repr(said).startswith(message)
    assert "<not>" not in said._repr_html_() and ("<code>answer</code>" in said._repr_html_()) is not passed


def test_a_check_that_stops_itself_is_said():
    assert "itself stops with TypeError" in repr(checks.step(right, 3))


def test_a_check_that_is_interrupted_is_not_a_wrong_answer():
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.step(interrupted, 1)
