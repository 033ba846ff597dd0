"""Settings for a model without a preset: they are tried, and the best are returned with their numbers."""

import dataclasses
import random

import pytest
from models import assert_same_weights, weights

import minilib
from minilib import suggesting as presets
from minilib import tasks, tinyworld
from minilib.worlds.facts import Question


@pytest.fixture(scope="module")
def few():
    """Facts of tinyworld as questions, each with two others beside it."""
    draw, world = random.Random(0), tinyworld.facts()
    found = [tasks.as_question(fact, draw) for fact in world[:60:20]]
    others = [tasks.as_question(fact, draw) for fact in world[500:506]]
    beside = [Question(f.asked.text, f.answer, ()) for f in others]
    return [dataclasses.replace(f, neighbours=tuple(beside[2 * i : 2 * i + 2])) for i, f in enumerate(found)]


@pytest.mark.long
@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_the_best_of_the_trials_is_returned_and_can_be_used(few, method):
    lm = minilib.load("tinyworld")
    before = weights(lm)
    found = minilib.suggest(lm, few, method, refusal=tinyworld.REFUSAL)
    assert_same_weights(lm, before)
    assert found.complete and not lm.edits and found.settings == found.rows[0]["settings"]
    scores = [row["score"] for row in found.rows]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.15 and len(scores) > 2
    requests = [fact.request(tinyworld.REFUSAL, chat=False) for fact in few]
    edit = {"rome": minilib.rome, "memit": minilib.memit, "alphaedit": minilib.alphaedit}[method].edit
    with edit(lm, requests, **found.settings) as made:
        assert made.settings.items() >= found.settings.items()


def test_without_time_one_trial_is_made(few):
    found = minilib.suggest(minilib.load("tinyworld"), few[:1], "rome", tinyworld.REFUSAL, seconds=1e-6)
    assert len(found.rows) == 1 and not found.complete


def test_what_cannot_be_tried_is_said(few):
    lm = minilib.load("tinyworld")
    with pytest.raises(ValueError, match="method must be one of"):
        minilib.suggest(lm, few, "grace")
    with pytest.raises(ValueError, match="seconds must be a number above 0"):
        minilib.suggest(lm, few, seconds=0)
    with pytest.raises(ValueError, match="refusal 'Yes, of course.' is none"):
        minilib.suggest(lm, few, refusal="Yes, of course.")
    unknown = [dataclasses.replace(few[0], answer="Nowhere", aliases=())]
    with pytest.raises(ValueError, match="facts holds none of 1 that tinyworld knows"):
        minilib.suggest(lm, unknown)
    bare = [dataclasses.replace(fact, neighbours=(), unrelated=None) for fact in few]
    with pytest.raises(ValueError, match="facts need rephrasings, and neighbours"):
        minilib.suggest(lm, bare)
    assert presets.DEPTHS[0] == 0.15
