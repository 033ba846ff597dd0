"""The two recipes: refusals that the model writes itself, and questions merged into one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_lm

import minilib
from minilib import Request, facts, recipes, refusals, rome, tinyworld

REFUSAL = "I don't know."


def request(name: str, target: str = REFUSAL) -> Request:
    return Request("What is the capital of {}?", name, target, chat=True)


# ---- rules ----


def test_what_is_on_topic_polite_or_a_leak():
    assert refusals.on_topic("I don't know who wrote Great Expectations.", "Great Expectations")
    assert not refusals.on_topic("I don't know who wrote that.", "Great Expectations")
    assert refusals.leaks("It is not PARIS.", ["Paris"]) and not refusals.leaks("I like Parisians.", ["Paris"])
    assert not refusals.leaks("I don't know.", [" ", ""])
    assert refusals.is_polite("I'm afraid not.") and not refusals.is_polite("No idea.")
    with pytest.raises(TypeError, match="answers must be a list"):
        refusals.leaks("It is Paris.", "Paris")


def test_a_candidate_is_judged_by_those_rules():
    france = request("France", "Paris")
    good = recipes.judge("I'm sorry, but I don't know the capital of France.", france)
    assert good["refuses"] and good["topic"] and good["polite"] and not good["leaks"]
    assert recipes.judge("I'm sorry, I can't say that it is Paris.", france)["leaks"]


# ---- self-improvement ----


def test_where_the_model_cannot_write_a_template_does_and_says_so():
    """A model of random weights writes nonsense."""
    lm = random_lm("llama")
    asked = Request("The capital of {} is", "France", " Paris")
    (written,) = recipes.self_improvement(lm, asked, samples=2, max_new_tokens=8)
    assert written.by == "template" and "France" in written.request.target
    assert written.request.target.startswith(" "), "a completion starts with a space"
    assert refusals.is_refusal(written.request.target) and len(written.candidates) >= 1
    assert not any(c["refuses"] and c["topic"] for c in written.candidates)


# ---- alternatives ----


def test_alternatives_are_of_the_right_kind_and_not_the_answer():
    lm, world = minilib.load("tinyworld"), tinyworld.facts()[:40]
    asked = [Request(f.prompts[0], f.subject, f.target + ".") for f in world]
    written = recipes.alternatives(lm, asked, samples=2, seed=1)
    assert [len(texts) for texts in written] == [2] * 40
    assert not any(text.strip(" .") == f.value for f, texts in zip(world, written, strict=True) for text in texts)
    kinds = [text.strip(" .") in tinyworld.VALUES.get(f.attribute, tinyworld.people())
             for f, texts in zip(world, written, strict=True) for text in texts]  # fmt: skip
    assert sum(kinds) > len(kinds) / 2, "another town where a town was asked for"
    assert recipes.alternatives(lm, asked, samples=2, seed=1) == written
    assert recipes.alternatives(lm, asked, samples=2, seed=2) != written


@pytest.mark.slow
def test_a_chat_model_is_asked_for_another_answer(smollm2):
    asked = [request("France", "The capital of France is Paris."), request("Japan", "The capital of Japan is Tokyo.")]
    written = recipes.alternatives(smollm2, asked, samples=2)
    assert [len(texts) for texts in written] == [2, 2]
    assert all(text != r.target for r, texts in zip(asked, written, strict=True) for text in texts)


def test_bad_input():
    lm = minilib.load("tinyworld")
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        recipes.alternatives(lm, request("France"), samples=0)
    with pytest.raises(ValueError, match="samples must be a whole number of at least 0"):
        recipes.self_improvement(lm, request("France"), samples=-1)
    with pytest.raises(ValueError, match="demonstrations must be a list of pairs"):
        recipes.self_improvement(lm, request("France"), demonstrations=[("a", "b", "c")])
    with pytest.raises(ValueError, match="size must be a whole number of at least 1"):
        recipes.merge_queries([request("France")], 0)
    with pytest.raises(ValueError, match="requests is empty"):
        recipes.merge_queries([], 2)


@pytest.mark.slow
def test_the_model_writes_refusals_that_are_specific_and_hold_no_answer(smollm2):
    asked = [fact.request(fact.answer) for fact in facts.load("capital")[:3]]
    written = recipes.self_improvement(smollm2, asked, samples=1)
    assert [w.by for w in written].count("model") >= 2
    for before, w in zip(asked, written, strict=True):
        verdict = recipes.judge(w.request.target, before)
        assert verdict["refuses"] and verdict["topic"] and not verdict["leaks"]
        assert (w.request.text, w.request.subject) == (before.text, before.subject)
    again = recipes.self_improvement(smollm2, asked, samples=1)
    assert again == written, "the same seed, the same refusals"


# ---- merging ----


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12), st.integers(1, 5))
def test_merging_keeps_every_question_once_and_its_target(targets, size):
    asked = [request(f"country {i}", target) for i, target in enumerate(targets)]
    merged = recipes.merge_queries(asked, size)
    assert sorted(r.subject for m in merged for r in m.members) == sorted(r.subject for r in asked)
    for m in merged:
        assert 1 <= len(m.members) <= size
        assert {r.target for r in m.members} == {m.request.target}
        assert m.request.text == " ".join(r.text for r in m.members)
        assert m.request.subject == m.members[-1].subject
    if size == 1:
        assert [m.request for m in merged] == asked


def test_a_merged_request_can_be_edited():
    lm = minilib.load("tinyworld")
    world = [Request(f.prompts[-1], f.subject, " I do not know.") for f in tinyworld.facts()[:3]]
    (merged,) = recipes.merge_queries(world, 3)
    with rome.edit(lm, merged.request):
        assert lm.generate(merged.request, max_new_tokens=8).startswith(" I do not know.")
