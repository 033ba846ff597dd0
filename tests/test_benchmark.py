"""The comparison: its plan, its file of results, and one of its rows made anew."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from models import benchmark_script

import minilib
from minilib import authors, benchmark, tasks
from minilib.measure.benchmark import METHODS
from minilib.measure.tasks import Job

compare = benchmark_script("compare")
STORED = {row["job"]: row for row in benchmark.read(benchmark.RESULTS)}
TUNED = benchmark.read(benchmark.TUNING)


made = functools.cache(tasks.task)  # for tests that only look at it


def command(*arguments, **options):
    return [sys.executable, compare.__file__, *map(str, arguments)]


# ---- the plan -----------------------------------------------------------------------------------------


def test_every_method_has_its_jobs_with_three_seeds():
    jobs = benchmark.plan()
    assert len(set(map(str, jobs))) == len(jobs)
    for method in METHODS:
        for knowledge in tasks.KNOWLEDGE:
            cells = Counter((j.facts, j.seed) for j in jobs if (j.method, j.knowledge) == (method, knowledge))
            if not benchmark.applies(method, knowledge):
                assert not cells
                continue
            first = benchmark.NUMBERS[knowledge][0]
            assert {seed for n, seed in cells if n == first} == set(benchmark.SEEDS), (method, knowledge)
            whole = knowledge == "exact" or method in benchmark.EVERYWHERE
            assert {n for n, _ in cells} == set(benchmark.NUMBERS[knowledge][: 3 if whole else 1]), (method, knowledge)


def test_each_method_gets_as_many_trials_as_the_others():
    trials = Counter((j.model, j.method) for j in benchmark.plan(tune=True))
    for model in ("smollm2-135m", "tinyworld"):
        assert len({n for (m, _), n in trials.items() if m == model}) == 1, trials


@pytest.mark.long
def test_tuning_looks_at_other_facts():
    measured, tried = (tasks.task(Job("unedited", "exact", 20, 0, trial)) for trial in (None, 0))
    both = [{f.subject for f in (*t.forget, *t.retain)} for t in (measured, tried)]
    assert not both[0] & both[1]
    assert not {q.text for _, q in measured.outside[:60]} & {q.text for _, q in tried.outside[:60]}


def test_what_is_asked_outside_was_shown_to_no_method():
    task = made(Job("", "exact", 20, 0, 0))
    shown = {f.asked.text for f in (*task.forget, *task.retain)}
    assert len(task.forget) == 20 and not shown & {q.text for _, q in task.outside}
    assert all(q.answered_by(task.said[q.text]) for _, q in task.outside)


def test_another_model_of_the_world_is_asked_the_same():
    """Chapter 13 hands in other architectures; they have no oracle."""
    lm, job = minilib.load("tinyworld"), Job("", "exact", 20, 0, 0)
    other, own = tasks.task(job, lm), made(job)
    assert other.lm is lm and other.oracle is None
    assert (other.forget, other.retain, other.outside) == (own.forget, own.retain, own.outside)
    with pytest.raises(ValueError, match="model is for jobs on tinyworld"):
        tasks.task(Job("", "pretrained", 5, 0), lm)


@pytest.mark.long
def test_every_method_works_on_the_same_facts():
    first, second = (tasks.task(Job(method, "exact", 5, 2, trial=0)) for method in ("rome", "npo"))
    assert (first.forget, first.retain, first.outside) == (second.forget, second.retain, second.outside)


# ---- a row --------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("method", ["grace", "memit", "refusal_tuning"])
def test_a_stored_row_comes_out_again(method):
    job = Job(method, "exact", 20, 0)
    row, kept = benchmark.run(job), STORED[str(job)]
    assert row["settings"] == kept["settings"]
    assert set(row["scores"]) == set(kept["scores"])
    for name in ("refused", "leaked", "rephrased leaked", "kept", "utility", "probability"):
        assert row["scores"][name] == pytest.approx(kept["scores"][name], abs=0.3), name


@pytest.mark.long
def test_the_oracle_is_no_distance_from_itself():
    task = tasks.task(Job("oracle", "exact", 20, 0))
    row = benchmark.measure(task.oracle, task)
    scores = row["scores"]
    assert scores["oracle kl"] == pytest.approx(0, abs=1e-5) and scores["oracle same"] == scores["quality"] == 1
    assert scores["leaked"] == 0 and scores["kept"] == 1
    assert len(row["each"]["refused"]) == len(row["answers"]) == 20
    untouched = benchmark.measure(task.lm, task)["scores"]
    assert untouched["leaked"] == untouched["kept"] == 1 and untouched["divergence"] == 0 < untouched["oracle kl"]


def test_a_method_that_cannot_is_a_row_with_its_reason(tmp_path):
    tuned = tmp_path / "tuned.jsonl"
    scores = {"leaked": 0, "rephrased leaked": 0, "kept": 1}
    trial = {"job": "memit/exact/20/0/trial 0", "method": "memit", "knowledge": "exact", "scores": scores}
    benchmark.append(tuned, trial | {"settings": {"covariance_weight": -1.0}})
    row = benchmark.run(Job("memit", "exact", 20, 0), tuned)
    assert "covariance_weight" in row["error"] and "scores" not in row


def broken(kind):
    """What goes wrong in a method: an error of Python or torch, or one of the library on purpose."""

    def apply(job, found, settings):
        if job.method == "memit":
            return found.lm
        if kind == "zip":
            list(zip([1], [], strict=True))
        if kind == "number":
            int("many")
        if kind == "torch":
            torch.empty(0).max()
        raise ValueError("in a test, which is not the library")

    return apply


@pytest.mark.parametrize("kind", ["zip", "number", "torch", "elsewhere"])
def test_a_fault_of_the_program_is_reported_and_tried_again(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "apply", broken(kind))
    monkeypatch.setattr(benchmark, "task", lambda job: tasks.Task(SimpleNamespace(edits=[]), [], [], [], []))
    cell_of = functools.lru_cache(maxsize=1)(tasks.task)
    for module in (benchmark, compare):
        monkeypatch.setattr(module, "cell_of", cell_of)
    monkeypatch.setattr(benchmark, "measure", lambda after, found: {"scores": {}})
    out = tmp_path / "rows.jsonl"
    wanted = ["rome/exact/20/0", "memit/exact/20/0"]  # of one draw, whose oracle is in the package
    arguments = ["--only", *wanted, "--out", str(out), "--processes", "0"]
    assert compare.main(arguments) == 1, "and the job behind it is done"
    assert [row["job"] for row in benchmark.read(out)] == ["memit/exact/20/0"]
    said = capsys.readouterr().err
    assert "rome/exact/20/0 failed" in said and "Traceback" in said
    monkeypatch.setattr(benchmark, "apply", lambda job, found, settings: found.lm)
    assert compare.main(arguments) == 0
    assert {row["job"] for row in benchmark.read(out)} == set(wanted)


def test_an_error_while_measuring_is_no_finished_row(monkeypatch):
    def measure(after, found):
        raise ValueError("this comes from the library, and not from the method")

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "on_purpose", lambda error: True)
    with pytest.raises(ValueError, match="not from the method"):
        benchmark.run(Job("unedited", "exact", 20, 0))


def test_the_best_trial_is_chosen_for_its_model():
    def row(model, number, leaked, **settings):
        knowledge = "exact" if model == "tinyworld" else "pretrained"
        scores = {"leaked": leaked, "rephrased leaked": 0.1, "kept": 0.9}
        job = f"rome/{knowledge}/1/0/trial {number}"
        return {"job": job, "method": "rome", "knowledge": knowledge, "settings": settings, "scores": scores}

    rows = [row("tinyworld", 0, 0.5, layer=0), row("tinyworld", 1, 0.1, layer=1), row("smollm2", 0, 0.0, layer=9)]
    assert benchmark.chosen(rows, "tinyworld") == {"rome": {"layer": 1}}
    assert benchmark.chosen([*rows, row("tinyworld", 2, 1.0, layer=3)], "tinyworld") == {"rome": {"layer": 1}}


# ---- the file -----------------------------------------------------------------------------------------


def test_a_line_that_was_cut_is_dropped_and_made_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    for i in range(3):
        benchmark.append(file, {"job": str(i), "text": "ä"})
    whole = file.read_bytes()
    for cut in (1, 5, len(whole) // 3 - 1):
        file.write_bytes(whole[:-cut])
        assert [row["job"] for row in benchmark.read(file)] == ["0", "1"]
        benchmark.append(file, {"job": "2", "text": "ä"})
        assert file.read_bytes() == whole


def test_many_may_write_to_one_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    writers = [
        threading.Thread(target=lambda i=i: [benchmark.append(file, {"job": f"{i} {j}"}) for j in range(20)])
        for i in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({row["job"] for row in benchmark.read(file)}) == 80


def test_no_file_has_no_rows(tmp_path):
    assert benchmark.read(tmp_path / "none.jsonl") == []


# ---- the command --------------------------------------------------------------------------------------


def test_list_leaves_out_what_is_done(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    benchmark.append(out, {"job": "grace/exact/20/0"})
    assert compare.main(["--list", "--only", "grace/exact", "--out", str(out)]) == 0
    names = capsys.readouterr().out.split("\n")
    assert "grace/exact/20/1" in names and "grace/exact/20/0" not in names


def test_an_exact_name_is_one_job(capsys, tmp_path):
    compare.main(["--list", "--only", "rome/exact/20/0", "--out", str(tmp_path / "rows.jsonl")])
    assert capsys.readouterr().out.split() == ["rome/exact/20/0"]


def test_an_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--only", "romme"])
    said = capsys.readouterr().err
    assert "no job is named 'romme'" in said and "alphaedit" in said


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on(tmp_path):
    out = tmp_path / "rows.jsonl"
    wanted = ["unedited/exact/20/0", "grace/exact/20/0", "memit/exact/20/0"]
    arguments = ["--only", *wanted, "--out", str(out), "--processes"]
    first = subprocess.Popen(command(*arguments, 1), start_new_session=True, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 200
    while not benchmark.read(out) and time.monotonic() < limit:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert 0 < len(benchmark.read(out)) < 3
    with out.open("ab") as file:
        file.write(b'{"job": "grace/exact/20/0", "scor')  # as a kill while writing would leave it
    assert compare.main([*arguments, "0"]) == 0
    assert Counter(row["job"] for row in benchmark.read(out)) == Counter(wanted)
    assert all(row["provenance"]["threads"] == 1 for row in benchmark.read(out))


@pytest.mark.parametrize("missing", [0, 1, 256])
def test_the_exit_status_says_whether_jobs_are_missing(missing, tmp_path, monkeypatch):
    """A status is one byte: 256 missing jobs would be none."""
    monkeypatch.setattr(compare, "work", lambda *_: missing)
    assert compare.main(["--out", str(tmp_path / "rows.jsonl")]) == min(missing, 1)


@pytest.mark.slow
def test_what_is_forgotten_is_known_without_the_model():
    job = tasks.Job("rome", "pretrained", 2, 1)
    assert tasks.forgotten(job) == tasks.task(job).forget
    assert tasks.forgotten(tasks.Job("rome", "finetuned", 10, 0)) == authors.split(2)[0]
    with pytest.raises(ValueError, match="whose facts come with task"):
        tasks.forgotten(tasks.Job("rome", "exact", 20, 0))


@pytest.mark.slow
def test_the_quick_plans_own_jobs_are_run_too(tmp_path):
    """A cell that the full plan does not have: the process that works on it has to know of the quick one."""
    out = tmp_path / "rows.jsonl"
    quick = {str(job) for job in benchmark.plan(quick=True)}
    (only,) = [job for job in quick - {str(job) for job in benchmark.plan()} if job.startswith("unedited")]
    arguments = command("--quick", "--only", only, "--out", out, "--processes", 1)
    ended = subprocess.run(arguments, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert [row["job"] for row in benchmark.read(out)] == [only]


# ---- what is stored -----------------------------------------------------------------------------------


LATER = ("undial", "altpo", "wga", "lunar")  # measured by benchmarks/comparison alone


def test_the_stored_table_is_whole():
    planned = {str(job) for job in benchmark.plan() if job.method not in LATER}
    left = planned - set(STORED)
    assert not left, f"{len(left)} jobs are missing, such as {min(left)}"
    assert set(STORED) <= planned, "and none that is not in the plan"
    tried = {str(job) for job in benchmark.plan(tune=True) if job.method not in LATER}
    assert tried == {row["job"] for row in TUNED}


def test_the_stored_rows_say_where_they_come_from():
    for row in [*STORED.values(), *TUNED]:
        assert {"script", "made", "commit", "seed", "versions"} <= set(row["provenance"]), row["job"]
        assert "scores" in row or "error" in row, row["job"]
        assert json.dumps(row, allow_nan=False)
