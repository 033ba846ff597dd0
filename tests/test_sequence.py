"""A stream of edits: each chunk on top of the last, gone on from after a kill, and taken back from its end."""

import dataclasses
import functools
import json
import time

import numpy as np
import pytest
import torch
from models import assert_same_weights, weights

import minilib
from minilib import alphaedit, grace, rome, sequence

LAYERS = [1, 2, 3]


@pytest.fixture
def arguments(reference, brief) -> dict:
    about = {"layers": LAYERS, "covariance": reference["covariance"], "nullspace_threshold": 0.246, "l2": 1.0}
    return {**about, **brief}


def probabilities(lm, done):
    return {"first": lm.probability(done[0]) if done else None}


def by_hand(llama, requests, arguments):
    first = alphaedit.edit(llama, requests[:2], **arguments)
    second = alphaedit.edit(llama, requests[2:], previous=[first], **arguments)
    after = weights(llama)
    second.undo()
    first.undo()
    return after


def test_a_stream_is_the_edits_one_after_another(llama, reference, arguments, tmp_path):
    requests = reference["requests"]
    before, after = weights(llama), by_hand(llama, requests, arguments)
    measured = {"chunk": 2, "measure": probabilities}
    stream = sequence.run(llama, requests, alphaedit.edit, tmp_path, **measured, **arguments)
    assert_same_weights(llama, after)
    assert [row["edits"] for row in stream.rows] == [0, 2, 3] and stream.rows[1]["first"] > 0
    stream.undo()
    assert_same_weights(llama, before)
    again = sequence.run(llama, requests, alphaedit.edit, tmp_path, **measured, **arguments)
    assert again.rows == stream.rows, "what is done is loaded, not done again"
    assert_same_weights(llama, after)


def test_a_chunk_that_was_killed_before_its_row_keeps_its_seconds(llama, reference, tmp_path):
    def edit(lm, some, previous=None, **settings):
        time.sleep(0.3)
        return grace.edit(lm, some, previous=previous, **settings)

    kill = [True]

    def measure(lm, done):
        if done and kill.pop():
            raise KeyboardInterrupt
        return {}

    some, how = reference["requests"][:1], {"layer": 2, "epsilon": 0.01, "lr": 0.5, "steps": 1, "measure": measure}
    with pytest.raises(KeyboardInterrupt):
        sequence.run(llama, some, edit, tmp_path, **how)
    kill.append(False)
    stream = sequence.run(llama, some, edit, tmp_path, **how)
    assert stream.rows[0]["seconds"] == 0 and stream.rows[1]["seconds"] >= 0.3
    stream.undo()


@pytest.mark.parametrize("when", ["editing", "measuring"])
def test_what_was_interrupted_goes_on(llama, reference, arguments, tmp_path, when):
    requests = reference["requests"]
    before, after = weights(llama), by_hand(llama, requests, arguments)
    calls = {"editing": 0, "measuring": 0}

    def stop(what, at):
        calls[what] += 1
        if what == when and calls[what] == at:
            raise KeyboardInterrupt

    def edit(lm, some, previous=(), **settings):
        stop("editing", 2)
        return alphaedit.edit(lm, some, previous=previous, **settings)

    def measure(lm, done):
        stop("measuring", 3)
        return probabilities(lm, done)

    how = {"chunk": 2, "measure": measure, **arguments}
    with pytest.raises(KeyboardInterrupt):
        sequence.run(llama, requests, edit, tmp_path, **how)
    assert_same_weights(llama, before)
    assert not llama.edits
    stream = sequence.run(llama, requests, edit, tmp_path, **how)
    assert_same_weights(llama, after)
    assert [row["edits"] for row in stream.rows] == [0, 2, 3]
    assert calls == {"editing": 3, "measuring": 3} if when == "editing" else {"editing": 2, "measuring": 4}


@pytest.mark.long
def test_methods_that_continue_the_latest_and_methods_that_do_not(llama, reference, tmp_path):
    requests = reference["requests"]
    stream = sequence.run(llama, requests, grace.edit, tmp_path / "grace", layer=2, epsilon=0.01, lr=0.5, steps=100)
    assert stream.edits[2].previous is stream.edits[1] and len(stream.edits[2].guard.keys) == 3
    logits = llama.logprobs(requests)
    stream.undo()
    stream = sequence.run(llama, requests, grace.edit, tmp_path / "grace", layer=2, epsilon=0.01, lr=0.5, steps=100)
    assert torch.equal(llama.logprobs(requests), logits)
    stream.undo()
    C = {"covariance": reference["covariance"], "layer": 2, **reference["search"]}
    stream = sequence.run(llama, requests[:2], rome.edit, tmp_path / "rome", **C)
    assert [row["edits"] for row in stream.rows] == [0, 1, 2]


def test_a_folder_holds_one_stream(llama, reference, arguments, tmp_path):
    requests = reference["requests"]
    stream = sequence.run(llama, requests[:1], alphaedit.edit, tmp_path, **arguments)
    after = weights(llama)
    with pytest.raises(ValueError, match="another stream, of other edits in force: choose another folder"):
        sequence.run(llama, requests[:1], alphaedit.edit, tmp_path, **arguments)
    assert_same_weights(llama, after)
    stream.undo()
    for changed, what in (({"l2": 2.0}, "settings"), ({"covariance": {1: torch.eye(96)}}, "settings")):
        with pytest.raises(ValueError, match=f"another stream, of other {what}"):
            sequence.run(llama, requests[:1], alphaedit.edit, tmp_path, **{**arguments, **changed})
    with pytest.raises(ValueError, match="another stream, of other requests"):
        sequence.run(llama, requests[1:], alphaedit.edit, tmp_path, **arguments)
    with pytest.raises(ValueError, match="another stream, of other measure"):
        sequence.run(llama, requests[:1], alphaedit.edit, tmp_path, measure=probabilities, **arguments)
    (tmp_path / "sequence.json").write_text(json.dumps({"rows": []})[:-3])
    with pytest.raises(ValueError, match="damaged"):
        sequence.run(llama, requests[:1], alphaedit.edit, tmp_path, **arguments)
    assert not llama.edits


def test_edits_beneath_a_stream_are_known_by_their_targets_and_settings(llama, reference, arguments, tmp_path):
    first, second = reference["requests"][:2]
    C = {"covariance": reference["covariance"], "layer": 2, **reference["search"], "steps": 2}
    other = dataclasses.replace(first, target=" Oslo")
    with rome.edit(llama, first, **C):
        sequence.run(llama, [second], alphaedit.edit, tmp_path, **arguments).undo()
    for request, changed in ((other, {}), (first, {"lr": 0.2})):
        with (
            rome.edit(llama, request, **{**C, **changed}),
            pytest.raises(ValueError, match="another stream, of other edits in force"),
        ):
            sequence.run(llama, [second], alphaedit.edit, tmp_path, **arguments)


def test_a_stream_knows_the_prompt_around_its_model_and_a_reference(chatty, tinyworld, tmp_path):
    request, how = minilib.Request("The capital of {} is", "France", "Rome", chat=True), {"layer": 2, "steps": 1}
    told = minilib.prompting.system_prompt(chatty, request)
    sequence.run(told, [request], grace.edit, tmp_path / "told", **how).undo()
    with pytest.raises(ValueError, match="another stream, of other things around the model"):
        sequence.run(chatty, [request], grace.edit, tmp_path / "told", **how)
    fact = minilib.tinyworld.facts()[0]
    request = minilib.Request(fact.prompts[0], fact.subject, fact.target)
    other = minilib.load("tinyworld")
    how = {"steps": np.int64(1), "reference": minilib.load("tinyworld")}
    sequence.run(tinyworld, [request], minilib.unlearning.npo, tmp_path / "npo", **how).undo()
    sequence.run(tinyworld, [request], minilib.unlearning.npo, tmp_path / "npo", **how | {"steps": 1}).undo()
    with torch.no_grad():
        other.memory(1).mul_(2)
    with pytest.raises(ValueError, match="another stream, of other settings"):
        sequence.run(tinyworld, [request], minilib.unlearning.npo, tmp_path / "npo", **how | {"reference": other})


def test_a_stream_of_several_requests_an_edit_resumes_bit_for_bit(llama, reference, tmp_path):
    C = {"covariance": reference["covariance"], "layer": 2, **reference["search"], "steps": 3}
    stream = sequence.run(llama, reference["requests"], rome.edit, tmp_path, chunk=3, **C)
    after = weights(llama)
    stream.undo()
    sequence.run(llama, reference["requests"], rome.edit, tmp_path, chunk=3, **C)
    assert_same_weights(llama, after)


def test_under_any_name_a_model_is_watched_on_words_that_it_knows(tinyworld, word_level, tmp_path):
    tinyworld.name = "mine"
    fact = minilib.tinyworld.facts()[0]
    request = minilib.Request(fact.prompts[0], fact.subject, " I do not know.")
    stream = sequence.run(tinyworld, [request], grace.edit, tmp_path / "mine")
    assert stream.rows[0]["divergence"] == 0
    request = minilib.Request("The capital of {} is", "France", " Rome")
    with pytest.raises(ValueError, match="on_collapse='stop' needs text that words can read"):
        sequence.run(word_level, [request], grace.edit, tmp_path / "words", on_collapse="stop")
    assert not word_level.edits


def test_bad_input(llama, reference, tmp_path):
    requests = reference["requests"]
    for wrong, error, message in (
        ({"edit": alphaedit}, TypeError, r"edit must be a method's edit function, such as minilib\.rome\.edit"),
        ({"edit": functools.partial(alphaedit.edit, l2=1.0)}, TypeError, "its settings go to run"),
        (
            {"measure": lambda lm, done: {"divergence": 1.0}},
            ValueError,
            "measure returns divergence, which the stream's",
        ),
        ({"measure": 3}, TypeError, "measure must be a function of .lm, requests so far., not 3"),
        ({"measure": lambda lm, done: {"said": torch.ones(1)}}, TypeError, "measure must return a dict of numbers"),
        ({"chunk": 0}, ValueError, "chunk must be a whole number of at least 1, not 0"),
        ({"requests": []}, ValueError, "requests is empty"),
        ({"previous": []}, TypeError, "previous is given by the stream itself"),
        ({"lr2": 1.0}, TypeError, "did you mean 'lr'"),
    ):
        with pytest.raises(error, match=message):
            sequence.run(llama, **{"requests": requests, "edit": alphaedit.edit, "folder": tmp_path, **wrong})
    assert not llama.edits
    with minilib.sequence.FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="run that still goes on"):
        sequence.run(llama, requests, alphaedit.edit, tmp_path)


@pytest.mark.parametrize("on_collapse", ["note", "stop"])
def test_a_stream_says_when_the_model_collapses(llama, reference, arguments, tmp_path, monkeypatch, on_collapse):
    """Shown with a bound that even the first of these edits passes."""
    requests, before = reference["requests"], weights(llama)
    monkeypatch.setattr(sequence, "COLLAPSE", 1e-9)
    how = {"chunk": 1, "on_collapse": on_collapse, **arguments}
    stream = sequence.run(llama, requests, alphaedit.edit, tmp_path, **how)
    assert stream.rows[0]["divergence"] == 0 < stream.rows[1]["divergence"]
    assert "ordinary text has moved" in stream.edits[0].notes[-1]
    done = 1 if on_collapse == "stop" else len(requests)
    assert len(stream.edits) == done and bool(stream.collapsed) == (on_collapse == "stop")
    stream.undo()
    assert_same_weights(llama, before)
    monkeypatch.setattr(sequence, "COLLAPSE", 10.0)
    rest = sequence.run(llama, requests, alphaedit.edit, tmp_path, **how)
    assert len(rest.edits) == len(requests) and not rest.collapsed, "it goes on from what was saved"
    rest.undo()
    with pytest.raises(ValueError, match="on_collapse must be 'note' or 'stop'"):
        sequence.run(llama, requests, alphaedit.edit, tmp_path, on_collapse="warn", **arguments)


def test_a_model_that_cannot_read_the_sample_text_is_edited_all_the_same(llama, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sequence.covariance, "of_model", lambda lm: ["\ud800"]
    )  # half a character, which no model reads
    how = {"layer": 2, "epsilon": 0.01, "lr": 0.5, "steps": 1}
    stream = sequence.run(llama, reference["requests"][:1], grace.edit, tmp_path, **how)
    assert len(stream.edits) == 1 and not any("divergence" in row for row in stream.rows)
    stream.undo()
