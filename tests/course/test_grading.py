"""From a master to marks, for real: built with a seed, handed in rightly and wrongly, graded with limits."""

import contextlib
import csv
import functools
import json
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pytest
from submissions import HOSTILE, NOT_THERE, SLY, WRONG

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
sys.path.insert(0, str(TOOLS))

import grade  # noqa: E402

import assignments  # noqa: E402

SEED = "what only the lecturer knows"
FIRST = "01_rank_one_update"
NAMES = sorted(folder.parent.name for folder in (ROOT / "assignments").glob("*/master.ipynb"))


def run(tool, *arguments):
    command = [sys.executable, TOOLS / tool, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def grade_here(monkeypatch):
    """grade.py in this process, which has imported all that it needs and has SmolLM2 in its cache."""
    started = subprocess.run

    def start(command, **how):
        return prepare() if "real.prepare()" in str(command[-1]) else started(command, **how)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["grade.py", *map(str, arguments)])
        assert grade.main() == 0

    monkeypatch.setattr(subprocess, "run", start)
    return main


@functools.cache
def prepare():
    from minilib.course import real

    real.prepare()


def table(file):
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def questions(nb):
    """The index of each question's answer cell; the check cells stand in the questions' order."""
    found, answer, number = {}, None, 0
    for i, cell in enumerate(nb["cells"]):
        source = "".join(cell["source"])
        if {"otter_answer_cell", "otter_assign_solution_cell"} & set(cell["metadata"].get("tags", [])):
            answer = i
        elif source.startswith("checks.step("):
            number += 1
            found[f"q{number}"] = answer
    return found


def hand_in(folder, student, name, nb, answers=(), before=""):
    """A notebook in which some answers are replaced, with a cell before all others."""
    nb = json.loads(json.dumps(nb))
    for i, source in dict(answers).items():
        nb["cells"][i]["source"] = source
    code = {"cell_type": "code", "id": "mine", "metadata": {}, "outputs": [], "execution_count": None}
    if before:
        nb["cells"].insert(0, {**code, "source": before})
    (folder / student).mkdir(parents=True, exist_ok=True)
    (folder / student / f"{name}.ipynb").write_text(json.dumps(nb), encoding="utf8")


def mistaken(nb, mistakes):
    """The answers' cells with the mistakes in them."""
    places, found = questions(nb), {}
    for question, (old, new, _) in mistakes.items():
        source = "".join(nb["cells"][places[question]]["source"])
        assert old in source, f"{question}: {old!r} is not in the solution"
        found[places[question]] = source.replace(old, new)
    return found


def without_the_real_model(nb):
    """The last step of assignment 01 left open: what it does with SmolLM2 takes longer than all the others."""
    nb = json.loads(json.dumps(nb))
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if 'load("smollm2-135m"' in source:
            cell["source"] = "smollm2 = None"
        elif "smollm2.generate(" in source:
            cell["source"] = "said = ..."
    assert "smollm2.generate(" not in json.dumps(nb)
    return nb


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != FIRST])
def test_a_solution_is_right_and_each_mistake_gets_its_message(name, tmp_path):
    """Grading runs the same tests in a kernel, for which assignment 01 stands in those below."""
    from otter.test_files import ExceptionTestFile

    assignments.build(tmp_path, SEED, [], [name], check=False)
    nb = json.loads((tmp_path / "solution" / f"{name}.ipynb").read_text("utf8"))
    own, checks = {}, {}
    for source in ("".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "code"):
        if source.startswith("checks.step("):
            checks[f"q{len(checks) + 1}"] = source
            said = repr(eval(source, own))
            assert said.startswith("✓"), said
        elif "%pip" not in source:
            exec(compile(source, "a cell", "exec"), own)
    assert list(checks) == list(questions(nb))
    with zipfile.ZipFile(tmp_path / "autograder" / f"{name}.zip") as zipped:
        tests = [zipped.read(f"tests/{question}.py").decode("utf8") for question in checks]
    hidden = [case for test in map(ExceptionTestFile.from_string, tests) for case in test.test_cases if case.hidden]
    assert len(hidden) == len(checks) - 1, "one for each step but the last"
    for case in hidden:
        case.body.call_func(own)
    sources = mistaken(nb, WRONG[name])
    for question, (_, _, message) in WRONG[name].items():
        mine = dict(own)
        with contextlib.suppress(Exception):  # a kernel goes on behind a cell that fails, too
            exec(compile(sources[questions(nb)[question]], "a cell", "exec"), mine)
        said = repr(eval(checks[question], mine))
        assert said.startswith("✗") and re.search(message, said), said


def results(out):
    """The rows of marks.csv by student, and those of questions.csv by student and question."""
    marks = {row["student"]: row for row in table(out / "marks.csv")}
    return marks, {(row["student"], row["question"]): row for row in table(out / "questions.csv")}


def assert_refused(row, message):
    assert float(row["points"]) < float(row["possible"]), row
    assert re.search(message, row["what was said"]), row


@pytest.mark.slow
def test_tricks_and_accidents_cost_what_they_touch_and_nothing_else(tmp_path, grade_here):
    handed_in, out = tmp_path / "in", tmp_path / "out"
    made = grade.built(out, SEED, [], [FIRST], grade.library_digest())  # grading finds it there and builds nothing
    solution = without_the_real_model(json.loads((made / "solution" / f"{FIRST}.ipynb").read_text("utf8")))
    forged = f"import minilib.course.checks\nminilib.course.checks.compare = lambda *a, **k: None\nprint({'100/100'!r})"
    hand_in(handed_in, "sly", FIRST, solution, mistaken(solution, SLY), forged)
    changed = json.loads(json.dumps(solution).replace("rank_one.check_", "print#"))  # in the tests that it carries
    hostile = list(zip(questions(solution).items(), HOSTILE, strict=False))
    hand_in(handed_in, "hostile", FIRST, changed, {i: source for (_, i), source in hostile}, forged)
    grade_here(handed_in, "--seed", SEED, "--out", out, "--processes", 1, "--seconds", 6)
    marks, said = results(out)
    for question, (_, _, message) in SLY.items():
        assert_refused(said["sly", question], message)
    for (question, _), _ in hostile:
        assert_refused(said["hostile", question], NOT_THERE)
    assert "os._exit" in marks["hostile"]["reason"] or "import os" in marks["hostile"]["reason"]
    for student in ("sly", "hostile"):  # the fifth step is right in both
        assert float(said[student, "q5"]["points"]) == float(said[student, "q5"]["possible"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Assignment 01 for two students by name."""
    folder = tmp_path_factory.mktemp("class")
    assignments.build(folder, SEED, ["Ada", "Max"], [FIRST], check=False)
    return folder


@pytest.mark.slow
def test_each_student_has_his_own_numbers(tmp_path):
    """As a lecturer builds them, which runs the solution too."""
    values, built = {}, tmp_path / "out"
    (tmp_path / "names.txt").write_text("Ada\nMax\n")
    said = run("assignments.py", "--seed", SEED, "--names", tmp_path / "names.txt", "--only", FIRST, "--out", built)
    assert "its solution passes" in said
    for student in ("Ada", "Max"):
        text = (built / "student" / student / f"{FIRST}.ipynb").read_text("utf8")
        values[student] = re.search(r"VALUES = (\d+)", text)[1]
        assert "HIDDEN" not in text and "SOLUTION" not in text
        assert json.loads(text)["metadata"]["otter"]["assignment_name"] == FIRST
    assert values["Ada"] != values["Max"] and "1" not in values.values()


@pytest.mark.slow
def test_a_notebook_checks_its_own_steps(built):
    """In any kernel that has minilib: nothing of Otter, no file beside it, as on Colab."""
    solution = without_the_real_model(json.loads((built / "solution" / f"{FIRST}.ipynb").read_text("utf8")))
    mistakes = WRONG[FIRST]
    for place, source in mistaken(solution, mistakes).items():
        solution["cells"][place]["source"] = source
    nb = nbformat.reads(json.dumps(solution), 4)
    assert "otter" not in "".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    nbclient.NotebookClient(nb, timeout=120, kernel_name="python3", allow_errors=True).execute()
    shown = [cell.outputs[-1] for cell in nb.cells if cell.source.startswith("checks.step(")]
    assert len(shown) == 6
    for i, output in enumerate(shown, 1):
        said = output["data"]["text/plain"]
        assert said[0] == ("✗" if f"q{i}" in mistakes or i == 6 else "✓"), said  # the last is left open
        assert re.search(mistakes[f"q{i}"][2] if f"q{i}" in mistakes else "", said)
        assert "<div" in output["data"]["text/html"]


@pytest.mark.slow
def test_gradescope_runs_the_archive(built, tmp_path):
    """As far as this goes without its container: the folders that it makes, and Otter's own runner."""
    for folder in ("source", "submission", "results"):
        (tmp_path / folder).mkdir()
    with zipfile.ZipFile(built / "autograder" / "Ada" / f"{FIRST}.zip") as zipped:
        assert {"setup.sh", "run_autograder", "run_otter.py", "environment.yml"} <= set(zipped.namelist())
        zipped.extractall(tmp_path / "source")
    solution = without_the_real_model(json.loads((built / "solution" / f"{FIRST}.ipynb").read_text("utf8")))
    hand_in(tmp_path / "submission", ".", FIRST, solution, mistaken(solution, {"q3": WRONG[FIRST]["q3"]}))
    code = "import sys; from otter.run.run_autograder import main; main(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "results" / "results.json").read_text("utf8"))["tests"]
    scores = {test["name"]: (test["score"], test["max_score"]) for test in found if "score" in test}
    assert scores.pop("q3") == (0, 2) and scores.pop("q6") == (0, 1)
    assert len(scores) == 4 and all(score == possible for score, possible in scores.values())


@pytest.mark.slow
def test_a_folder_of_strange_files_is_graded_or_refused_with_a_reason(built, tmp_path, grade_here):
    """Cut off, no notebook, no answers, another order, another kernel, much output, another's notebook, a stranger."""
    handed_in, out = tmp_path / "in", tmp_path / "out"
    own = {s: json.loads((built / "student" / s / f"{FIRST}.ipynb").read_text("utf8")) for s in ("Ada", "Max")}
    solution = json.loads((built / "solution" / f"{FIRST}.ipynb").read_text("utf8"))
    whole, short = json.dumps(solution), without_the_real_model(solution)
    names = tmp_path / "names.txt"
    strange = ["cut", "picture", "bare", "other kernel", "long", "copied", "nothing"]
    names.write_text("\n".join(["Ada", "Max", *strange]))
    for student in [*strange, "stranger"]:
        (handed_in / student).mkdir(parents=True)
    files = {student: handed_in / student / f"{FIRST}.ipynb" for student in [*strange, "stranger"]}
    files["cut"].write_text(whole[:5000])
    files["picture"].write_bytes(b"\x89PNG\xff\xfe")
    files["bare"].write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    files["other kernel"].write_text(whole.replace('"language": "python"', '"language": "R"'))
    long = json.loads(whole)
    code = next(c for c in long["cells"] if c["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 200_000_000}]
    files["long"].write_text(json.dumps(long))
    values = {s: re.search(r"VALUES = (\d+)", json.dumps(nb))[1] for s, nb in own.items()}
    turned = json.loads(re.sub(r"VALUES = \d+", f"VALUES = {values['Ada']}", json.dumps(short)))
    turned["cells"] = turned["cells"][:6] + turned["cells"][6:][::-1]
    measured = "leaderboard.record(1, 0.5, {'score': 0.6, 'forgotten': 0.7, 'kept': 0.8})"  # as a hidden test does
    hand_in(handed_in, "copied", FIRST, turned, before=f"from minilib.course import leaderboard\n{measured}")
    files["nothing"].write_text(json.dumps(without_the_real_model(own["Max"])))
    files["stranger"].write_text(whole)
    (handed_in / "notes.txt").write_text("not an assignment")
    arguments = [handed_in, "--seed", SEED, "--names", names, "--out", out, "--processes", 1]
    run("grade.py", *arguments)
    marks, said = results(out)
    for student, reason in {
        "cut": "not a whole notebook",
        "picture": "not a notebook",
        "bare": "no code in this notebook",
        "other kernel": "kernel for R",
        "stranger": "not among the names",
    }.items():
        assert marks[student]["status"] == "refused" and reason in marks[student]["reason"], marks[student]
        assert float(marks[student]["points"]) == 0
    right = {question: row for (student, question), row in said.items() if student == "long"}
    assert len(right) == 6 and all(float(row["points"]) == float(row["possible"]) for row in right.values()), right
    assert marks["long"]["status"] == "graded" and float(marks["long"]["points"]) == 16
    assert float(marks["copied"]["points"]) == 16 - float(right["q6"]["possible"]), "its last step is left open"
    assert marks["copied"]["look at"] == "made for Ada"
    (place,) = table(out / "leaderboard.csv")
    assert (place["place"], place["student"], place["score"]) == ("1", "copied", "0.6")
    assert "0.6" in (out / "leaderboard.html").read_text("utf8")
    assert marks["nothing"]["status"] == "graded" and float(marks["nothing"]["points"]) == 0
    assert [row["file"] for row in table(out / "left.csv")] == ["notes.txt"]
    alike = {frozenset((row["one"], row["other"])) for row in table(out / "alike.csv")}
    assert frozenset(("copied", "long")) in alike and not any("nothing" in pair for pair in alike)
    kept = {file: file.stat().st_mtime_ns for file in (out / "results").rglob("*.json")}
    written = table(out / "written.csv")
    with (out / "written.csv").open("w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.DictWriter(opened, written[0])
        writer.writeheader()
        writer.writerows({**row, "points": "3" if row["student"] == "long" else ""} for row in written)
    hand_in(handed_in, "cut", FIRST, short, mistaken(short, WRONG[FIRST]))
    grade_here(*arguments)
    marks, said = results(out)
    assert marks["cut"]["status"] == "graded"
    for question, (_, _, message) in WRONG[FIRST].items():
        assert_refused(said["cut", question], message)
    assert "<h1>" in (out / "feedback" / "cut" / f"{FIRST}.html").read_text("utf8")
    assert float(marks["long"]["points"]) == 19
    changed = [file.parent.name for file, then in kept.items() if file.stat().st_mtime_ns != then]
    assert changed == ["cut"], "only what changed is graded again"
    assert {row["Username"] for row in table(out / "moodle.csv")} == set(marks)
    assert {row["Student"] for row in table(out / "canvas.csv")} == set(marks)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("assignments.py", ["--only", "09_nothing"], "there is no 09_nothing"),
        ("assignments.py", ["--names", "names.txt"], "--names needs --seed"),
        ("grade.py", ["nowhere"], "must be a folder"),
        ("grade.py", [str(ROOT / "minilib" / "data" / "text")], "there is no submission"),
    ],
)
@pytest.mark.long
def test_bad_arguments_are_said(tool, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert ended.value.code == 2 and message in capsys.readouterr().err
