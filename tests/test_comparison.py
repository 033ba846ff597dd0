"""The comparison's plan: who is measured on what, with how many tries; and a cell, made and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import minilib
from minilib.measure import rows
from minilib.show import stored
from minilib.show.stored import append, lines
from minilib.unlearning import settings as training
from minilib.worlds import authors, facts, tinyworld

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "comparison"))

import plan
import run
import worlds

KIND = {"exact": "llama-6x96", "pretrained": "llama-30x576", "finetuned": "llama-30x576"}


# ---- what is measured on what ----


def test_no_fact_is_in_two_draws_or_in_a_draw_and_the_tuning():
    people = [worlds.people(draw)[0] for draw in range(plan.TUNING, plan.DRAWS["exact"])]
    assert len(people) == 11 and all(len(some) == 4 for some in people)
    assert len({name for some in people for name in some}) == 44 and {*people[0]} <= {*tinyworld.people()}
    drawn = worlds.drawn()
    some = [*drawn["draws"], *drawn["tuning"]]
    assert len(drawn["draws"]) == plan.DRAWS["pretrained"] and drawn["tuning"] and all(len(f) == 5 for f in some)
    assert len({fact.asked.text for five in some for fact in five}) == 5 * len(some)
    assert worlds.author_of(plan.TUNING) not in map(worlds.author_of, range(plan.DRAWS["finetuned"]))
    assert [*map(worlds.author_of, range(plan.DRAWS["finetuned"]))] == list(authors.ALONE)


def test_those_beside_are_forgotten_in_no_draw():
    draws = range(plan.TUNING, plan.DRAWS["exact"])
    gone = {name for draw in draws for name in worlds.people(draw)[0]}
    assert not any(gone & {*worlds.people(draw)[1]} for draw in draws)


def test_pretrained_facts_were_used_to_find_nothing():
    known = facts.recorded()
    used = {f.asked.text for f in (*known[:50], *known[100:106])}
    drawn = [fact for some in worlds.drawn().values() for five in some for fact in five]
    assert all(fact in known for fact in drawn)
    assert not any(fact.asked.text in used or fact.relation == "capital" for fact in drawn)
    edited = {s["question"].replace("{}", s["subject"]) for s in worlds.subjects()}
    assert not edited & {fact.asked.text for fact in drawn}
    for five in worlds.drawn()["draws"]:
        assert len({fact.relation for fact in five}) == len({fact.subject for fact in five}) == 5


def test_twelve_subjects_have_five_questions_each():
    subjects = worlds.subjects()
    assert len({s["subject"] for s in subjects}) == len(subjects) == 4 * plan.DRAWS["subject"] == 12
    for subject in subjects:
        asked = [q["asked"] for q in subject["others"]]
        assert len({*asked, subject["question"].replace("{}", subject["subject"])}) == len(asked) + 1 >= 5
        assert all(subject["subject"] in text for text in asked) and subject["answers"]
        assert all(text.count("{}") == 1 for text in (subject["question"], *subject["rephrasings"]))


# ---- how often each may try ----


@pytest.mark.parametrize("world", plan.BUDGET)
def test_every_method_has_the_same_number_of_different_settings(world):
    for method in plan.methods(world):
        settings = [json.dumps(some, sort_keys=True) for some in plan.settings(world, method)]
        assert len(set(settings)) == len(settings)
        # There are three rules for a filter, and no other way to set it.
        assert len(settings) == (3 if method in plan.FEWER else plan.BUDGET[world]), method


def test_only_a_filter_has_fewer_settings():
    assert plan.FEWER == ("filter",)


@pytest.mark.parametrize("world", plan.BUDGET)
def test_no_preset_enters(world):
    """What a preset of the library sets for the model stands in each setting, so that the grid alone decides."""
    kind = KIND[world]
    for method in plan.methods(world):
        name = method.partition(", ")[0]
        if name in plan.AROUND:
            continue
        known = training.PRESETS[name] if name in training.PRESETS else getattr(minilib, name).Settings.PRESETS
        for setting in plan.settings(world, method):
            free = {"nullspace_threshold"} if "nullspace_energy" in setting else set()  # one stands for the other
            free |= {"retain_weight"} if name in ("gradient_ascent", "rmu", "simnpo") else set()
            assert not set(known.get(kind, {})) - set(setting) - free, (method, setting)


def test_every_method_of_the_library_is_measured_on_tinyworld():
    assert set(minilib.METHODS) <= set(plan.methods("exact"))


# ---- the plan ----


def test_the_plan_begins_with_the_trials_and_names_each_cell_once():
    jobs = plan.plan([])
    names = [str(job) for job in jobs]
    assert len(set(names)) == len(names)
    references = [job for job in jobs if job.draw >= 0]
    assert {job.method for job in references} == set(plan.REFERENCES)
    assert sum(job.method == "oracle" for job in references) == plan.DRAWS["exact"] + plan.DRAWS["finetuned"]
    assert jobs[0] == plan.Job("exact", plan.TUNING, "unedited")


def answer(world, method, setting, leaks):
    """A row of a trial: a leak or a refusal, and what is beside kept."""
    said = ["Paris." if leaks else "I don't know."]
    answers = {"asked": said, "rephrased": said, "other": ["Rome."]}
    row = {"job": str(plan.Job(world, plan.TUNING, method, setting)), "world": world, "draw": plan.TUNING}
    row |= {"method": method, "setting": setting, "answers": answers, "nll": {"asked": [1.0], "rephrased": [1.0]}}
    asked = [{"asked": "q", "answers": ["Paris"], "subject": "France", "fact": 0}]
    return row | {"questions": {"asked": asked, "rephrased": asked, "other": [{"asked": "o", "answers": ["Rome"]}]}}


def test_draws_are_measured_with_the_settings_that_were_chosen_and_no_others():
    tried = [answer("pretrained", "unedited", 0, True)]
    tried += [answer("pretrained", "rome", i, i != 2) for i in range(4)]
    for world in ("pretrained", "subject"):  # the latter has the former's settings
        jobs = [job for job in plan.measured(world, tried) if job.method == "rome"]
        assert [(job.draw, job.setting) for job in jobs] == [(draw, 2) for draw in range(plan.DRAWS[world])]
    assert not any(job.method == "rome" for job in plan.measured("pretrained", tried[:-1])), "one trial is missing"
    assert not any(job.method == "rome" for job in plan.measured("finetuned", tried))


def test_at_most_six_comparisons_are_named_each_of_methods_that_are_there():
    for world, some in plan.COMPARISONS.items():
        assert 1 <= len(some) <= 6 and len(set(some)) == len(some)
        for comparison in some:
            assert {comparison.first, comparison.second} <= {*plan.methods(world)}
            assert comparison.purpose in rows.PURPOSES


def test_the_stored_plan_and_rows_are_those_of_the_plan():
    kept = stored.load("answers_plan")
    assert {name: kept[name] for name in kept if name != "provenance"} == run.declared()
    for world in ("exact", "pretrained"):
        for row in rows.load(world):
            assert row["settings"] == plan.settings(world, row["method"])[row["setting"]], row["job"]


# ---- a run ----


def test_what_has_a_row_is_not_run_again(tmp_path, capsys):
    jobs = run.left(tmp_path)
    append(tmp_path / "exact.jsonl", {"job": str(jobs[0]), "world": "exact", "draw": -1, "method": "unedited"})
    assert run.left(tmp_path) == jobs[1:]
    assert run.main(["--out", str(tmp_path), "--list", "--only", "exact", "rome, merged"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum("exact/tuning/rome, merged/" in line for line in said) == 8 and "hours in all" in said[-1]


def test_a_run_on_another_machine_goes_on_from_the_packed_rows(tmp_path):
    run.unpack(tmp_path)
    assert lines(tmp_path / "exact.jsonl") == rows.load("exact")
    assert not [job for job in run.left(tmp_path) if job.world == "exact"]
    (tmp_path / "exact.jsonl").write_text("")
    run.unpack(tmp_path)
    assert not lines(tmp_path / "exact.jsonl"), "a run that has begun is left as it is"


@pytest.mark.long
def test_a_cell_holds_all_answers_and_a_second_one_asks_the_same(tmp_path):
    names = [str(plan.Job("exact", plan.TUNING, *job)) for job in (("grace", 4), ("rome", 0))]
    (tmp_path / "exact.jsonl").touch()  # else the packed rows are there
    for name in names:  # as after a kill between the two
        assert run.main(["--out", str(tmp_path), "--jobs", name]) == 0
    first, grace, rome = lines(tmp_path / "exact.jsonl")
    assert first["method"] == "unedited" and [grace["job"], rome["job"]] == names
    assert len(first["questions"]["asked"]) == 20 and len(first["questions"]["rephrased"]) == 40
    for row in (first, grace, rome):
        assert {kind: len(texts) for kind, texts in row["answers"].items()} == {
            kind: len(asked) for kind, asked in first["questions"].items()
        }
        assert len(row["truth"]) == 20 and row["divergence"] >= 0
    before, after = rows.judged(first, first), rows.judged(grace, first)
    assert before["kept"] == [1] and sum(before["leaked"]) > 15 and sum(before["fluent"]) > 15
    assert sum(after["refused and fluent"]) > 10, "GRACE refuses what it was given"
    run.pack(tmp_path, tmp_path)
    assert rows.load("exact", tmp_path) == [first, *sorted((grace, rome), key=lambda row: row["method"] == "grace")]
