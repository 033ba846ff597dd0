"""Who handed in what, in the names that course systems give to files and folders. No notebook is run."""

import csv
import json
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import grade
import grade_one
from handed_in import submissions

from minilib.course import guard

KNOWN = ["01_rank_one_update", "02_causal_tracing"]
FIRST = KNOWN[0]
JOSE = "José Núñez"


def handed_in(folder, *names, **inside):
    """Files of these names, with something in them, or that which is given."""
    for name in (*names, *inside):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(inside.get(name, name), "utf8")
    return folder


def who(folder, names=()):
    found, left = submissions(folder, KNOWN, names)
    return {s.file.relative_to(folder).as_posix(): s.name for s in found}, {
        file.relative_to(folder).as_posix(): why for file, why in left
    }


@pytest.mark.parametrize(
    "expected",
    [
        {f"ada_lovelace_{FIRST}.ipynb": "ada_lovelace", f"ada_byron_{FIRST}.ipynb": "ada_byron"},
        {f"ada/submission/{FIRST}.ipynb": "ada", f"max/submission/{FIRST}.ipynb": "max"},
        {f"ada/final/{FIRST}.ipynb": "ada", f"max/final/{FIRST}.ipynb": "max"},
        {f"Ada Lovelace/{FIRST}.ipynb": "Ada Lovelace", f"Ada Byron/my own name {FIRST}.ipynb": "Ada Byron"},
        {f"{FIRST}/ada/{FIRST}.ipynb": "ada", f"{FIRST}/max/{FIRST}.ipynb": "max"},
        {f"group 1/ada/{FIRST}.ipynb": "ada", f"group 1/max/{FIRST}.ipynb": "max", f"group 2/li/{FIRST}.ipynb": "li"},
        {f"week 1/ada_{FIRST}.ipynb": "ada", f"week 1/max_{FIRST}.ipynb": "max"},
        {f"late/ada_{FIRST}.ipynb": "ada", f"max_{FIRST}.ipynb": "max"},
        {f"{JOSE} - {FIRST}.ipynb": JOSE, f"Zoë {FIRST}.ipynb": "Zoë", "李雷 01 rank one update.ipynb": "李雷"},
        {f"{FIRST}_ada.ipynb": "ada", f"{FIRST}-max_planck.ipynb": "max_planck"},
        {f"Copy of ada_{FIRST}.ipynb": "ada", f"max_{FIRST} (1).ipynb": "max"},
        # Canvas
        {
            f"lovelaceada_4711_90001_{FIRST}.ipynb": "lovelaceada",
            f"byronada_LATE_4712_90002_{FIRST}-1.ipynb": "byronada",
            f"nuñezjosé_4713_90003_ada_{FIRST}.ipynb": "nuñezjosé",
        },
        # Moodle
        {
            f"Ada Lovelace_1234567_assignsubmission_file_/{FIRST}.ipynb": "Ada Lovelace",
            f"{JOSE}_1234568_assignsubmission_file_/notebook/{FIRST}.ipynb": JOSE,
            f"Ada_Byron_1234569_assignsubmission_file_{FIRST}.ipynb": "Ada_Byron",
        },
        # Blackboard
        {
            f"Homework 1_adal_attempt_2026-11-28-14-57-45_{FIRST}.ipynb": "adal",
            f"Homework 1_adab_attempt_2026-11-28-14-57-46_{FIRST}.ipynb": "adab",
        },
        {f"{FIRST}_ada_l_attempt_2026-11-28-14-57-45_{FIRST}.ipynb": "ada_l"},
        # GitHub Classroom
        {
            f"01-rank-one-update-ada-l/{FIRST}.ipynb": "ada-l",
            f"01-rank-one-update-submissions/rank-one-update-max/{FIRST}.ipynb": "max",
        },
    ],
)
def test_who_handed_in_survives_every_naming(expected, tmp_path):
    found, left = who(handed_in(tmp_path, *expected))
    assert found == expected and not left


def test_gradescope_names_the_students_in_a_file_beside_the_folders(tmp_path):
    about = "---\n" + "".join(
        f"submission_{number}:\n  :submitters:\n" + "".join(f"  - :name: {n}\n    :email: x@y\n" for n in names)
        for number, names in ((11, ["Ada Lovelace"]), (12, [JOSE, "Max/Moritz"]))
    )
    folder = handed_in(
        tmp_path,
        *(f"assignment_5_export/submission_{number}/{FIRST}.ipynb" for number in (11, 12, 13)),
        **{"assignment_5_export/submission_metadata.yml": about},
    )
    found, _ = who(folder)
    assert list(found.values()) == ["Ada Lovelace", f"{JOSE} and Max-Moritz", "submission_13"]


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        (f"lovelaceada_4711_90011_{FIRST}-1.ipynb", f"lovelaceada_LATE_4711_90002_{FIRST}.ipynb"),
        (f"lovelaceada_4711_100000_{FIRST}-10.ipynb", f"lovelaceada_4711_99999_{FIRST}-9.ipynb"),
        (f"HW_adal_attempt_2026-11-28-14-57-45_{FIRST}.ipynb", f"HW_adal_attempt_2026-11-28-09-57-45_{FIRST}.ipynb"),
        (f"ada/{FIRST}.ipynb", f"ada/{FIRST}.pdf"),
    ],
)
def test_an_earlier_hand_in_is_left_out_where_the_system_numbers_them(later, earlier, tmp_path):
    found, left = who(handed_in(tmp_path, later, earlier))
    assert list(found) == [later] and list(left) == [earlier]
    assert "later" in left[earlier] or "no notebook" in left[earlier]


@pytest.mark.parametrize(
    "names",
    [
        {f"smithanna_11_500_{FIRST}.ipynb": "smithanna (11)", f"smithanna_22_600_{FIRST}.ipynb": "smithanna (22)"},
        {
            f"Anna Smith_111_assignsubmission_file_/{FIRST}.ipynb": "Anna Smith (111)",
            f"Anna Smith_222_assignsubmission_file_/{FIRST}.ipynb": "Anna Smith (222)",
        },
        {
            f"ada_{FIRST}.ipynb": f"ada (ada_{FIRST}.ipynb)",
            f"Ada_{FIRST} (1).ipynb": f"Ada (Ada_{FIRST} (1).ipynb)",
        },
        {
            f"ada/{FIRST}.ipynb": f"ada (ada, {FIRST}.ipynb)",
            f"ada/old/{FIRST}.ipynb": f"ada (ada, old, {FIRST}.ipynb)",
            f"max/{FIRST}.ipynb": "max",
        },
        {
            f"A_adal_attempt_2026-11-28-14-57-45_{FIRST}.ipynb": "adal (A_adal)",
            f"B_adal_attempt_2026-11-28-15-57-45_{FIRST}.ipynb": "adal (B_adal)",
        },
    ],
)
def test_files_that_cannot_be_told_apart_are_all_kept_and_reported(names, tmp_path):
    found, left = who(handed_in(tmp_path, *names))
    assert found == names and not left
    some, _ = submissions(tmp_path, KNOWN)
    for one in some:
        note = grade.to_look_at(one, some, None, [])
        assert ("files that go by the name" in note) == bool(one.mark)


def test_two_of_one_name_are_told_apart_in_every_assignment(tmp_path):
    names = [f"smithanna_11_500_{FIRST}.ipynb", f"smithanna_22_600_{FIRST}.ipynb", f"smithanna_22_700_{KNOWN[1]}.ipynb"]
    found, _ = who(handed_in(tmp_path, *names))
    assert list(found.values()) == ["smithanna (11)", "smithanna (22)", "smithanna (22)"]


def test_accents_written_in_two_ways_are_one_student(tmp_path):
    names = [f"{unicodedata.normalize(form, JOSE)}/{name}.ipynb" for form, name in zip(("NFC", "NFD"), KNOWN, strict=1)]
    assert set(who(handed_in(tmp_path, *names))[0].values()) == {JOSE}


@pytest.mark.parametrize(
    "file",
    [
        f"lovelaceada_4711_90001_{FIRST}.ipynb",
        f"LOVELACE, Ada_12345_assignsubmission_file_/{FIRST}.ipynb",
        f"section 2/ada_lovelace/mine/{FIRST}.ipynb",
        f"anything/at all/Ada-Lovelace.{FIRST}.ipynb",
    ],
)
def test_a_list_of_names_says_how_they_are_written(file, tmp_path):
    found, _ = who(handed_in(tmp_path, file), ["Max Planck", "Ada Lovelace", "Ada Byron"])
    assert found == {file: "Ada Lovelace"}


def test_what_names_nobody_or_no_assignment_is_left_with_its_reason(tmp_path):
    notebook = json.dumps({"metadata": {"otter": {"assignment_name": FIRST}}})
    folder = handed_in(tmp_path, f"{FIRST}.ipynb", "notes.txt", ".git/x.ipynb", **{"ada.ipynb": notebook})
    found, left = who(folder)
    assert found == {"ada.ipynb": "ada"}
    assert "names no student" in left[f"{FIRST}.ipynb"] and "names none of" in left["notes.txt"] and len(left) == 2


# ---- what is graded again ----

STUB = """
import json, os, pathlib, sys, time
calls = pathlib.Path(__file__).with_name("calls")
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
what = pathlib.Path(sys.argv[1]).read_text()
if what == "slow":
    time.sleep(60)
if what == "killed":
    os.kill(os.getpid(), 9)
result = {"status": "graded", "reason": "", "score": 1, "questions": {}, "written": {}, "final": what != "late"}
pathlib.Path(sys.argv[3]).write_text(json.dumps(result))
"""


@pytest.fixture
def grading(tmp_path, monkeypatch):
    """Grade a submission with a stub in the grader's place; tells how often that was called."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(grade, "GRADER", stub)
    archive, file = tmp_path / "autograder.zip", tmp_path / "ada.ipynb"
    archive.write_text("tests")

    def run(what="quick", tests="tests", library="0", **limits):
        file.write_text(what)
        archive.write_text(tests)
        one = grade.Submission("ada", FIRST, file)
        limits = {"seconds": 60.0, "total": 60.0, "memory": 8.0, **limits}
        result = grade.graded(one, archive, 1, tmp_path, limits, library)
        return result, len((tmp_path / "calls").read_text())

    return run


@pytest.mark.parametrize(
    "changed",
    [{"what": "another"}, {"tests": "others"}, {"library": "1"}, {"seconds": 9.0}, {"total": 50.0}, {"memory": 1.0}],
)
def test_a_change_of_anything_that_decides_grades_again_and_nothing_else_does(grading, changed):
    assert [grading()[1] for _ in range(2)] == [1, 1]
    assert [grading(**changed)[1] for _ in range(2)] == [2, 2]


@pytest.mark.parametrize(("what", "limits"), [("slow", {"total": 0.5}), ("killed", {}), ("late", {})])
def test_a_time_out_and_a_crash_are_not_kept(grading, what, limits):
    first, second = (grading(what, **limits) for _ in range(2))
    assert (first[1], second[1]) == (1, 2), "graded again"
    assert first[0]["status"] == ("graded" if what == "late" else "failed")


def test_the_library_s_code_and_data_decide_too(tmp_path, monkeypatch):
    before = grade.library_digest()
    assert before == grade.library_digest()
    (tmp_path / "minilib" / "data").mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    monkeypatch.setattr(grade, "ROOT", tmp_path)
    monkeypatch.setattr(grade, "GRADER", tmp_path / "tools" / "grade_one.py")
    digests = {before, grade.library_digest()}
    for number, name in enumerate(("minilib/rome.py", "minilib/data/names.json", "tools/grade_one.py"), 3):
        (tmp_path / name).write_text("new")
        digests.add(grade.library_digest())
        assert len(digests) == number, name


def test_a_cell_or_a_check_that_ran_out_of_time_is_no_final_result(tmp_path, monkeypatch):
    nb = {"cells": [{"cell_type": "code", "source": "checks.step(1)", "metadata": {}}], "metadata": {}}
    file, archive = tmp_path / "x.ipynb", tmp_path / "x.zip"
    file.write_text(json.dumps(nb))
    with grade_one.zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("tests/q1.py", "points = 2")
    said = ["AssertionError: `f` is off by 3"]

    def run(*_):
        cases = [SimpleNamespace(passed=False, message=said[-1])]
        return SimpleNamespace(results={"q1": SimpleNamespace(score=0, test_case_results=cases)})

    monkeypatch.setattr(grade_one, "run", run)
    assert grade_one.grade(file, archive, 1, None, tmp_path)["final"]
    said.append("AssertionError: `f` did not return within 20 s: is there a loop that never ends?")
    assert not grade_one.grade(file, archive, 1, None, tmp_path)["final"]
    said.pop()
    (tmp_path / "progress.late").touch()
    assert not grade_one.grade(file, archive, 1, None, tmp_path)["final"]


def test_the_guard_says_that_a_cell_ran_out_of_time(tmp_path):
    rung = []
    events = SimpleNamespace(register=lambda name, call: rung.append(call))
    shell = SimpleNamespace(user_ns={}, events=events)
    hooks = sys.addaudithook
    try:
        sys.addaudithook = lambda _: None
        guard.begin(shell, str(tmp_path / "progress"), 0.05)
    finally:
        sys.addaudithook = hooks
    before, after = rung
    before(SimpleNamespace(raw_cell="while True: pass"))
    with pytest.raises(guard.OutOfTime):
        while True:
            pass
    assert (tmp_path / "progress.late").is_file() and (tmp_path / "progress").read_text() == "while True: pass"
    after(SimpleNamespace(error_in_exec=None))


def test_marks_of_files_that_share_a_name_are_in_rows_of_their_own(tmp_path):
    some, _ = submissions(handed_in(tmp_path / "in", f"a_11_500_{FIRST}.ipynb", f"a_22_600_{FIRST}.ipynb"), KNOWN)
    result = {"status": "graded", "reason": "", "score": 3, "questions": {}, "written": {}, "possible": 4}
    grade.report(dict.fromkeys(some, result), {some[0]: "look"}, tmp_path)
    with (tmp_path / "marks.csv").open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["student"], row["points"], row["look at"]) for row in rows] == [
        ("a (11)", "3", "look"),
        ("a (22)", "3", ""),
    ]


def test_the_grader_runs_a_notebook_with_the_students_numbers_and_without_its_own_checks():
    source = (
        'VALUES = 7  # an easier one\nchecks.step(rank_one.check_cost, cost)\n%pip install x\n    !ls\nx = "VALUES"'
    )
    ran = grade_one.as_run(source, 123)
    assert ran == 'VALUES = 123\npass\npass\n    pass\nx = "VALUES"'
    assert grade_one.as_run("VALUES = 7", None) == "VALUES = 7", "no seed, no numbers of one's own"
