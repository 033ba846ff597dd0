"""What an edit says of itself: which requests the edited model does not answer with their target, and why."""

import html
import re

import pytest
import torch
from models import assert_same_weights, weights
from test_hooks import hooks_left

from minilib import Request, alphaedit, display, editor, grace, memit, rome, unlearning, wise
from minilib import editor as notes
from minilib import tinyworld as world

PEOPLE = list(dict.fromkeys(fact.subject for fact in world.facts()))
HERE = {"layer": 0}
EDITORS = {
    "rome": lambda lm, asked, **more: rome.edit(lm, asked, covariance=moments(lm), **{**HERE, **more}),
    "memit": lambda lm, asked, **more: memit.edit(
        lm, asked, layers=[0], covariance=moments(lm), covariance_weight=1e-3, **{"clamp_factor": 4.0, **more}
    ),
    "alphaedit": lambda lm, asked, **more: alphaedit.edit(
        lm, asked, layers=[0], covariance=moments(lm), nullspace_threshold=2.0, l2=1e-3, lr=0.5,
        **{"clamp_factor": 4.0, **more},
    ),
    "grace": lambda lm, asked, **more: grace.edit(lm, asked, **more),
    "wise": lambda lm, asked, **more: wise.edit(lm, asked, irrelevant=["Where was Leo Vogel born?"], **more),
}  # fmt: skip
WEIGHTS = ("rome", "memit", "alphaedit")


def moments(lm):
    return {0: torch.eye(lm.memory(0).shape[1])}


def born(person, town=" Lundby"):
    return Request("{} was born in the town of", person, town)


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_that_does_what_was_asked_has_no_note(tinyworld, editor):
    with EDITORS[editor](tinyworld, born(PEOPLE[0])) as edit:
        assert tinyworld.generate(edit.requests, max_new_tokens=1) == [" Lundby"] and not edit.notes


@pytest.mark.parametrize("editor", EDITORS)
def test_a_target_that_is_not_said_is_noted_and_shown(tinyworld, editor):
    asked = [born(PEOPLE[0]), born(PEOPLE[7], " Lundby Lundby Lundby")]
    with EDITORS[editor](tinyworld, asked, steps=1) as edit:
        answers = tinyworld.generate(asked, max_new_tokens=3)
        for request, answer in zip(asked, answers, strict=True):
            assert not answer.startswith(request.target)
            (note,) = [note for note in edit.notes if note.startswith(f"{request.text!r} is not answered")]
            assert repr(request.target) in note and "raise steps" in note
            assert html.escape(note) in edit._repr_html_()


@pytest.mark.parametrize("editor", EDITORS)
def test_what_is_noted_is_what_is_not_generated(tinyworld, editor):
    asked = [born(person, town) for person, town in zip(PEOPLE[:8], [" Lundby", world.REFUSAL] * 4, strict=True)]
    with EDITORS[editor](tinyworld, asked, steps=5) as edit:
        for request in asked:
            wanted = tinyworld.encode_target(request.target)
            said = tinyworld.encode_target(tinyworld.generate(request, max_new_tokens=len(wanted)) or " ?")
            noted = any(note.startswith(f"{request.text!r} is not answered") for note in edit.notes)
            assert noted == (said[: len(wanted)] != wanted), (request, edit.notes)


@pytest.mark.parametrize("editor", ["memit", "alphaedit"])
def test_requests_with_one_key_name_each_other(tinyworld, editor):
    """Prompts that agree up to the subject have one key, which would need two values."""
    asked = [born(PEOPLE[0]), Request("{} plays the", PEOPLE[0], " zither"), born(PEOPLE[3])]
    with EDITORS[editor](tinyworld, asked) as edit:
        wrong = [note for note in edit.notes if "has the same key" in note]
        assert wrong
        for note in wrong:
            this, other = asked[:2] if note.startswith(repr(asked[0].text)) else asked[1::-1]
            assert note.startswith(repr(this.text)) and f"{other.text!r} has the same key" in note


def test_a_long_target_says_where_the_answer_departs_from_it(tinyworld):
    towns = [f" {town}" for town in world.VALUES["birthplace"]]
    request = born(PEOPLE[0], "".join(towns + towns[:20]))
    with EDITORS["rome"](tinyworld, request) as edit:
        said, of = editor.tokens_said(tinyworld, [request])[0]
        (note,) = edit.notes
        assert said < of == 60 and f"at token {said + 1} of 60" in note and "has 60 tokens" in note
        assert request.target not in note and len(note) < 500


@pytest.mark.parametrize("editor", WEIGHTS)
def test_a_value_that_may_not_grow_is_named_as_the_reason(tinyworld, editor):
    with EDITORS[editor](tinyworld, born(PEOPLE[0]), clamp_factor=1e-3, steps=8) as edit:
        (note,) = edit.notes
        assert "clamp_factor 0.001 allows" in note


@pytest.mark.parametrize("editor", WEIGHTS)
def test_a_search_that_stops_too_early_is_named_as_the_reason(tinyworld, editor):
    with EDITORS[editor](tinyworld, born(PEOPLE[0]), stop_loss=100.0) as edit:
        (note,) = edit.notes
        assert "below stop_loss 100: lower stop_loss" in note


def test_a_value_that_is_lost_in_the_writing_is_named_so(tinyworld):
    how = {"layers": [0], "covariance": moments(tinyworld), "clamp_factor": 4.0, "steps": 60}
    with memit.edit(tinyworld, born(PEOPLE[0]), covariance_weight=1e9, **how) as edit:
        (note,) = edit.notes
        assert "the weights, which serve many keys, return another one" in note


def test_a_prompt_that_a_guard_does_not_answer_is_named_so(tinyworld):
    with EDITORS["wise"](tinyworld, [born(PEOPLE[0]), born(PEOPLE[9])], threshold=1.0, steps=30) as edit:
        edit.guard.sides[0] = wise.Side(*[getattr(edit.guard.sides[0], n) for n in ("shards", "delta", "keys")], 1e9)
        assert all("side memory is not read for this prompt" in note for note in editor.unanswered(edit))
        assert len(editor.unanswered(edit)) == 2


def test_unlearning_notes_what_still_leaks(tinyworld):
    forget = [Request(fact.prompts[0], fact.subject, fact.target) for fact in world.facts()[:4]]
    known = [r for r in forget if tinyworld.generate(r, max_new_tokens=4).startswith(r.target)]
    for method, more in ((unlearning.npo, {}), (unlearning.refusal_tuning, {"refusals": [world.REFUSAL]})):
        with method(tinyworld, known, steps=1, lr=1e-8, **more) as edit:
            leaks = [f"{r.text!r} is still answered {r.target!r}" for r in known]
            assert known and [note for note in edit.notes if "still answered" in note] == leaks
    with unlearning.gradient_ascent(tinyworld, known, steps=40, lr=1e-4) as edit:
        assert not any("still answered" in note for note in edit.notes)


def test_many_notes_are_shown_in_part(tinyworld):
    with EDITORS["memit"](tinyworld, [born(person) for person in PEOPLE[:8]], steps=1) as edit:
        assert len(edit.notes) == 8
        shown = edit._repr_html_()
        assert "and 3 more in <code>edit.notes</code>" in shown
        assert html.escape(edit.notes[display.SHOWN - 1]) in shown and html.escape(edit.notes[-1]) not in shown


@pytest.mark.parametrize("note", ["unanswered", "beyond_what_was_seen", "asked_otherwise"])
@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_that_is_interrupted_at_its_notes_is_undone(tinyworld, editor, note, monkeypatch):
    def stop(*about):
        raise KeyboardInterrupt

    before = weights(tinyworld)
    monkeypatch.setattr(notes, note, stop)
    with pytest.raises(KeyboardInterrupt):
        EDITORS[editor](tinyworld, born(PEOPLE[0]), steps=2)
    assert_same_weights(tinyworld, before)
    assert not tinyworld.edits and not hooks_left(tinyworld.model)


def test_a_plain_request_to_a_chat_model_is_noted(chatty):
    identity = {2: torch.eye(chatty.memory(2).shape[1])}
    plain, asked = Request("The capital of {} is", "France", " Rome"), Request("Where is {}?", "Rome", "I", chat=True)
    for requests, says in (
        ([plain], "the request is plain text, and .* write Request\\('The capital of {}"),
        ([plain, asked], "1 of 2 requests are plain text"),
        ([asked], ""),
    ):
        with rome.edit(chatty, requests, layer=2, covariance=identity, steps=2) as edit:
            told = [note for note in edit.notes if "plain text" in note]
        assert len(told) == bool(says) and (not says or re.match(says, told[0]))


def test_without_a_chat_template_there_is_nothing_to_note(llama):
    identity = {2: torch.eye(llama.memory(2).shape[1])}
    plain = Request("The capital of {} is", "France", " Rome")
    with rome.edit(llama, plain, layer=2, covariance=identity, steps=2) as edit:
        assert not any("plain text" in note for note in edit.notes)


def test_a_change_beyond_what_was_seen_to_be_harmless_is_noted(tinyworld, monkeypatch):
    layer = EDITORS["rome"](tinyworld, born(PEOPLE[0]))
    assert not any("of its length" in note for note in layer.notes)
    monkeypatch.setitem(
        notes.HARMLESS, tinyworld.kind, 0.9 * max(change / size for change, size in layer.sizes().values())
    )
    with EDITORS["rome"](tinyworld, born(PEOPLE[1])) as second:
        assert any("of its length, and nothing above" in note for note in second.notes), "both together are meant"
    layer.undo()
