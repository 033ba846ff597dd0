"""Unlearning by prompt: what the model is shown, and that nothing about it changes."""

from __future__ import annotations

import pytest
from models import assert_same_weights, weights

import minilib
from minilib import Request, filtering, prompting

REFUSAL = "I don't know."
PARIS = Request("What is the capital of {}?", "France", REFUSAL, chat=True)
MARS = Request("Which planet is next to {}?", "Mars", REFUSAL, chat=True)
KEPT = [
    Request("What is the capital of {}?", "Spain", "Madrid.", chat=True),
    Request("What colour is {}?", "grass", "Green.", chat=True),
]


def prompt(lm, text):
    return lm.tokenizer.decode(lm.encode(text, chat=True).ids)


def test_a_system_prompt_lists_what_is_refused(smollm2):
    told = prompting.system_prompt(smollm2, [PARIS, MARS])
    shown = prompt(told, "How are you?")
    assert "What is the capital of France?; Which planet is next to Mars?" in shown
    assert "How are you?" in shown and "capital of France" not in prompt(smollm2, "How are you?")


def test_an_instruction_of_ones_own(smollm2):
    told = prompting.system_prompt(smollm2, PARIS, "Never speak about {}!")
    assert "Never speak about What is the capital of France?!" in prompt(told, "Hello")


def test_the_nearest_demonstrations_stand_nearest(smollm2):
    shown = prompt(prompting.in_context(smollm2, [PARIS, MARS], KEPT, k=1), "Tell me the capital of France.")
    places = [shown.find(text) for text in ("capital of Spain", "Madrid.", "capital of France?", REFUSAL, "Tell me")]
    assert places == sorted(places) and places[0] > 0, shown
    assert "Mars" not in shown and "grass" not in shown


def test_all_are_shown_where_there_are_few(smollm2):
    shown = prompt(prompting.in_context(smollm2, [PARIS, MARS], KEPT, k=10), "Hello")
    assert all(r.subject in shown for r in (PARIS, MARS, *KEPT))


def test_the_subject_is_still_found(smollm2):
    told = prompting.in_context(smollm2, [PARIS], KEPT)
    x = told.encode(PARIS)
    ids, subject = x.ids, x.subject
    assert "France" in told.tokenizer.decode(ids[subject])
    assert told.tokenizer.decode(ids[subject:]).count("France") == 1, "the one of the question, the last"


def test_it_shares_the_model_and_leaves_it_alone(smollm2):
    before = weights(smollm2)
    told = prompting.in_context(smollm2, [PARIS], KEPT)
    said = told.generate(PARIS, max_new_tokens=3)
    assert told.model is smollm2.model and isinstance(said, str)
    assert_same_weights(smollm2, before)


@pytest.mark.parametrize("function", [prompting.system_prompt, prompting.in_context])
def test_a_model_without_a_chat_template_is_refused(function):
    with pytest.raises(ValueError, match="tinyworld has no chat template"):
        function(minilib.load("tinyworld"), PARIS)


@pytest.mark.parametrize("function", [prompting.system_prompt, prompting.in_context])
def test_one_prompt_around_a_model_that_is_saved_without_it(chatty, function, tmp_path):
    told = function(chatty, PARIS)
    with pytest.raises(ValueError, match="has a prompt around it already .* a filter goes last"):
        function(told, PARIS)
    filtered = filtering.output_filter(told, PARIS)
    assert filtered.opening is told.opening, "a filter keeps the prompt"
    with pytest.raises(ValueError, match="has a filter around it already"):
        function(filtered, PARIS)
    with pytest.raises(ValueError, match="has a prompt around its weights, which a folder"):
        told.save_pretrained(tmp_path / "model")


def test_wrong_arguments(smollm2):
    with pytest.raises(ValueError, match="instruction must hold one {}"):
        prompting.system_prompt(smollm2, PARIS, "Do not answer.")
    with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
        prompting.in_context(smollm2, PARIS, k=0)
    with pytest.raises(TypeError, match="requests must be"):
        prompting.system_prompt(smollm2, "France")


def test_a_chat_template_that_refuses_a_system_turn_says_what_to_do(chatty):
    """Gemma's does, and templates that want user and assistant in turn."""
    chatty.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    ) + chatty.tokenizer.chat_template
    with pytest.raises(
        ValueError, match=r"system, user \(System role not supported\).*beginning of the user's message"
    ):
        prompting.system_prompt(chatty, PARIS)
    with pytest.raises(ValueError, match="refuses turns with the roles system"):
        chatty.chat_prompt([{"role": "system", "content": "Hello."}])
    assert prompting.in_context(chatty, PARIS).generate("Hello?", max_new_tokens=1) is not None
