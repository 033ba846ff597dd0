"""An output filter: what it withholds, what it lets through, and that the model behind it stays as it is."""

from __future__ import annotations

import pytest
import torch
from models import assert_same_weights, weights

import minilib
from minilib import Request, filtering, tinyworld

WORLD = tinyworld.facts()
HIDDEN = WORLD[:5]  # all about one person


@pytest.fixture(scope="module")
def lm():
    return minilib.load("tinyworld")


def blocked(facts):
    return [Request(f.prompts[0], f.subject, f.target) for f in facts]


def ask(lm, facts, held_out=False):
    return lm.generate([p.format(f.subject) for f in facts for p in (f.held_out if held_out else f.prompts)])


def test_it_withholds_what_is_hidden_in_any_words_and_nothing_else(lm):
    filtered = filtering.output_filter(lm, blocked(HIDDEN), tinyworld.REFUSAL)
    assert set(ask(filtered, HIDDEN)) == {tinyworld.REFUSAL}
    said = zip(ask(lm, HIDDEN, held_out=True), ask(filtered, HIDDEN, held_out=True), strict=True)
    values = [f.value for f in HIDDEN for _ in f.held_out]
    assert all((now == tinyworld.REFUSAL) == (value in was) for (was, now), value in zip(said, values, strict=True))
    assert ask(filtered, WORLD[5:60]) == ask(lm, WORLD[5:60]), "other people have the same values, and keep them"


def test_the_three_rules(lm):
    one, other = WORLD[0], next(f for f in WORLD[5:] if f.value == WORLD[0].value)
    beside = WORLD[1]  # something else about the same person
    asked = [f.prompts[0].format(f.subject) for f in (one, other, beside)]
    withheld = {}
    for rule in ("both", "value", "subject"):
        said = filtering.output_filter(lm, blocked([one]), "No.", rule).generate(asked)
        withheld[rule] = [text == "No." for text in said]
    assert withheld == {"both": [True, False, False], "value": [True, True, False], "subject": [True, False, True]}


def test_a_single_prompt_a_request_and_sampling_go_through_it(lm):
    filtered = filtering.output_filter(lm, blocked(HIDDEN)[0])
    (request,) = blocked(HIDDEN[:1])
    assert filtered.generate(request) == filtered.generate(request.text, max_new_tokens=4) == "I don't know."
    assert filtered.generate([request], 8, None, 1.0, 0, 3) == ["I don't know."]


def test_a_filter_goes_last_and_fits_into_no_folder(lm, tmp_path):
    filtered = filtering.output_filter(lm, blocked(HIDDEN))
    with pytest.raises(ValueError, match="behind a filter already .*: put all requests into one filter"):
        filtering.output_filter(filtered, blocked(WORLD[5:6]))
    with pytest.raises(ValueError, match="has a filter around its weights"):
        filtered.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_text_is_filtered(lm):
    before = weights(lm)
    filtered = filtering.output_filter(lm, blocked(HIDDEN))
    assert filtered.model is lm.model and filtered.name == "tinyworld, filtered"
    assert torch.equal(filtered.logprobs(blocked(HIDDEN)), lm.logprobs(blocked(HIDDEN))), "the weights still know"
    assert_same_weights(lm, before)


def test_edits_are_seen_through_it(lm):
    filtered = filtering.output_filter(lm, blocked(HIDDEN[1:]))
    request = Request(HIDDEN[0].prompts[0], HIDDEN[0].subject, WORLD[50].target)
    with minilib.rome.edit(lm, request, steps=10):
        assert filtered.edits == lm.edits and len(filtered.edits) == 1
        assert filtered.generate(request) == lm.generate(request)


def test_bad_input(lm):
    with pytest.raises(ValueError, match="rule must be one of both, value, subject, not 'all'"):
        filtering.output_filter(lm, blocked(HIDDEN), rule="all")
    with pytest.raises(TypeError, match="requests must be"):
        filtering.output_filter(lm, "Paris")
    with pytest.raises(TypeError, match="refusal must be a string"):
        filtering.output_filter(lm, blocked(HIDDEN), refusal=None)
