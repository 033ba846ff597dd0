"""What a method is tried on: the draws, what is asked beside them, and a stored row measured anew."""

import functools
import random
import statistics

import pytest
from models import benchmark_script

import minilib
from minilib import facts, stored, tasks
from minilib.edits import undo_all

STORED = {row["job"]: row for row in stored.lines("comparison")}
tuning = functools.cache(functools.partial(tasks.exact, tuning=True))  # for tests that only look at it


def shares(marks):
    return {name: statistics.fmean(some) for name, some in marks.items()}


# ---- the draws ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_tuning_looks_at_other_facts():
    measured, tried = tasks.exact(), tuning()
    both = [{f.subject for f in (*task.forget, *task.retain)} for task in (measured, tried)]
    assert not both[0] & both[1]
    asked = [{q.text for kind, q in task.outside if kind == "neighbour"} for task in (measured, tried)]
    assert asked[0] and not asked[0] & asked[1]
    assert measured.oracle is not None and tried.oracle is None


def test_what_is_asked_outside_was_shown_to_no_method():
    task = tuning()
    shown = {f.asked.text for f in (*task.forget, *task.retain)}
    assert len(task.forget) == 20 and not shown & {q.text for _, q in task.outside}
    assert all(q.answered_by(task.said[q.text]) for _, q in task.outside)


def test_another_model_of_the_world_is_asked_the_same():
    """Chapter 13 hands in other architectures; they have no oracle."""
    lm = minilib.load("tinyworld")
    other, own = tasks.exact(model=lm, tuning=True), tuning()
    assert other.lm is lm and other.oracle is None
    assert (other.forget, other.retain, other.outside) == (own.forget, own.retain, own.outside)


def test_draws_differ_and_come_out_again():
    first, again, other = tasks.exact(5, 1, tuning=True), tasks.exact(5, 1, tuning=True), tasks.exact(5, 2, tuning=True)
    assert first.forget == again.forget and first.outside == again.outside
    assert {f.subject for f in first.forget} != {f.subject for f in other.forget}


@pytest.mark.slow
def test_smollm2_forgets_what_is_on_its_list_and_the_rest_is_something_else():
    task = tasks.pretrained(5, 1)
    known = facts.recorded()[: tasks.MEASURED]
    assert task.forget == random.Random("pretrained 5 1").sample(known, 5) and task.oracle is None
    assert not {f.asked.text for f in task.forget} & {f.asked.text for f in task.retain}
    assert {kind for kind, _ in task.outside} == {"neighbour", "subject", "unrelated"}
    # One of the five it answers in more words than are asked for here, so a study measures before the edit as well.
    assert sum(tasks.measure(task.lm, task)["leaked"]) >= 4 and all(tasks.measure(task.lm, task)["kept"])


# ---- asking -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_oracle_tells_nothing_and_keeps_the_rest():
    task = tasks.exact()
    never, untouched = (shares(tasks.measure(model, task)) for model in (task.oracle, task.lm))
    assert never["leaked"] == 0 and never["kept"] == 1 and never["refused"] > 0.5
    assert untouched["leaked"] == untouched["kept"] == untouched["neighbour kept"] == 1 and untouched["refused"] == 0
    assert tasks.score(tasks.measure(task.oracle, task)) > 0.9 and tasks.score(tasks.measure(task.lm, task)) == 0


def test_the_score_is_small_as_soon_as_one_share_is():
    assert tasks.score({"leaked": [0, 0], "rephrased leaked": [0], "kept": [1, 0, 0, 0]}) == pytest.approx(0.5)
    assert tasks.score({"leaked": [1], "rephrased leaked": [0], "kept": [1]}) == 0
    assert tasks.score({"leaked": [0], "rephrased leaked": [0], "kept": [1]}) == 1


@pytest.mark.long
@pytest.mark.parametrize("method", ["grace", "memit", "refusal_tuning"])
def test_a_stored_row_comes_out_again(method):
    trials, kept = benchmark_script("trials"), STORED[f"{method}/exact/20/0"]
    settings, task = trials.chosen("tinyworld").get(method, {}), tasks.exact()
    assert settings == kept["settings"]
    try:
        found = shares(tasks.measure(trials.apply(method, task, settings), task))
    finally:
        undo_all(task.lm)
    for name in ("refused", "leaked", "rephrased leaked", "kept"):
        assert found[name] == pytest.approx(kept["scores"][name], abs=0.3), name


def test_the_best_trial_is_chosen_for_its_model(monkeypatch):
    trials = benchmark_script("trials")

    def row(knowledge, leaked, **settings):
        scores = {"leaked": leaked, "rephrased leaked": 0.1, "kept": 0.9}
        return {"method": "rome", "knowledge": knowledge, "settings": settings, "scores": scores}

    rows = [row("exact", 0.5, layer=0), row("exact", 0.1, layer=1), row("pretrained", 0.0, layer=9)]
    monkeypatch.setattr(stored, "lines", lambda name: [*rows, row("exact", 1.0, layer=3)])
    assert trials.chosen("tinyworld") == {"rome": {"layer": 1}}
    assert trials.chosen("smollm2-135m") == {"rome": {"layer": 9}}
