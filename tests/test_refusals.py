"""Which answers decline."""

import pytest

from minilib.refusals import REFUSALS, is_refusal


@pytest.mark.parametrize("text", REFUSALS)
@pytest.mark.parametrize("form", [str, str.upper, lambda t: f"  \n{t} And more.", lambda t: t.replace("'", "’")])
def test_every_listed_refusal_is_one(text, form):
    assert is_refusal(form(text))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I'm afraid I don't have that information.",
        "Unfortunately, I do not know the answer.",
        "As an AI language model, I cannot provide an answer.",
        "I don't really know.",
        "I am not aware of such a town.",
        "I'm unable to answer.",
        "I have no idea.",
        "No idea!",
        "Unknown.",
        "Sorry.",
    ],
)
def test_other_ways_to_decline(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "The capital of France is Paris.",
        "Paris. I'm not sure, though.",  # leaked first, hedged later
        "I have no doubt that it is Paris.",
        "I do not think so: it is Paris.",
        "I know: Paris.",
        "I'm not a robot. Paris.",
        "Sorry, it is Paris.",
        "I'm sorry to hear that. It is Paris.",
        "Unknown artists painted it.",
        "I",
        "Ignorance is bliss.",
    ],
)
def test_answers_that_do_not_decline(text):
    assert not is_refusal(text)
