"""Requests: what can be checked without a tokenizer is checked when one is made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilib.requests import Request, as_contexts, as_requests

WORDS = st.text(st.characters(blacklist_characters="{}"), min_size=1).filter(lambda s: s == s.rstrip())


@given(
    before=st.text(st.characters(blacklist_characters="{}")),
    subject=WORDS,
    after=st.text(st.characters(blacklist_characters="{}")),
)
def test_the_span_is_where_the_subject_stands(before, subject, after):
    request = Request(before + "{}" + after, subject, " x")
    start, stop = request.span
    assert request.text[start:stop] == subject
    assert request.text == before + subject + after


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": "The capital of France is"}, ValueError, "prompt must hold exactly one {}"),
        ({"prompt": "{} and {}"}, ValueError, "prompt must hold exactly one {}"),
        ({"prompt": 3}, TypeError, "prompt must be a string"),
        ({"subject": ""}, ValueError, "subject is empty"),
        ({"subject": "  "}, ValueError, "subject is empty"),
        ({"subject": "{}"}, ValueError, "subject"),
        ({"subject": "France "}, ValueError, "ends in white space"),
        ({"subject": None}, TypeError, "subject must be a string"),
        ({"target": ""}, ValueError, "target is empty"),
        ({"target": ["Rome"]}, TypeError, "target must be a string"),
        ({"chat": "yes"}, TypeError, "chat must be True or False"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error) as caught:
        Request(**{"prompt": "The capital of {} is", "subject": "France", "target": " Rome", **arguments})
    assert message in str(caught.value)


def test_one_request_or_a_list():
    request = Request("{} is", "Rome", " a city")
    assert as_requests(request) == as_requests([request]) == as_requests((request,)) == [request]


@pytest.mark.parametrize(
    ("wrong", "error"), [("text", TypeError), (3, TypeError), ([], ValueError), (["text"], TypeError)]
)
def test_what_is_no_request_is_refused(wrong, error):
    with pytest.raises(error, match="requests"):
        as_requests(wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [("{}", TypeError), (3, TypeError), ([], ValueError), (["no slot"], ValueError), ([3], TypeError)],
)
def test_contexts_are_a_list_of_templates(wrong, error):
    with pytest.raises(error, match="contexts"):
        as_contexts(wrong)
