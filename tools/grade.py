"""Grade a folder of students' notebooks: marks as CSV, a page of feedback for each, and what looks alike.

Run: python tools/grade.py SUBMISSIONS [--seed SECRET] [--names FILE] [--out FOLDER]  (`make grade SUBMISSIONS=folder`)

Whose a file is, `handed_in.py` finds out. Each submission runs in a process of its own with limits on time, memory and
network. Grading again runs what changed, and what another run may end otherwise: a time-out is no result to keep.
Whatever one submission does, the others go on.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import alike
from common import BUILD, ROOT, environment, say
from handed_in import Submission, submissions
from jinja2 import Environment, FileSystemLoader
from markupsafe import escape

from assignments import build, names, numbers, read_names

GRADER = Path(__file__).with_name("grade_one.py")


def library_digest() -> str:
    """Of all that checks and submissions run on: the library with its data, the grader, and the packages below them."""
    files = [*(ROOT / "minilib").rglob("*"), *GRADER.parent.glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file() and "__pycache__" not in f.parts):
        digest.update(file.relative_to(ROOT).as_posix().encode() + hashlib.sha256(file.read_bytes()).digest())
    for package in ("torch", "transformers", "otter-grader"):
        digest.update(f"{package} {version(package)}".encode())
    return digest.hexdigest()


def key_of(file: Path, archive: Path, values: int | None, limits: dict[str, float], library: str) -> str:
    """What a result depends on: the submission, the tests with their numbers, the limits, and the code below."""
    parts = [file.read_bytes(), archive.read_bytes(), json.dumps([values, limits], sort_keys=True).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts) + library.encode()).hexdigest()


def graded(
    one: Submission, archive: Path, values: int | None, out: Path, limits: dict[str, float], library: str
) -> dict[str, Any]:
    """The result of one submission, from an earlier run where nothing changed."""
    kept = out / "results" / one.name / f"{one.assignment}.json"
    key = key_of(one.file, archive, values, limits, library)
    if kept.is_file():
        result = json.loads(kept.read_text("utf8"))
        if result.get("key") == key:
            return result
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    command = [sys.executable, GRADER, one.file.resolve(), archive.resolve(), fresh.resolve()]
    command += [f"--seconds={limits['seconds']}", f"--memory={limits['memory']}"]
    command += [] if values is None else [f"--values={values}"]
    # Of a run that ends without a result nothing is known: another may end otherwise.
    result = {"status": "failed", "questions": {}, "written": {}, "score": 0, "final": False}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, env={**environment(os.cpu_count() or 1), "PYTHONPATH": ""},
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limits["total"])
        if fresh.is_file():
            result = json.loads(fresh.read_text("utf8"))
        else:
            result["reason"] = f"Grading stopped: {said.strip().splitlines()[-1][:300] if said.strip() else 'no word'}"
    except subprocess.TimeoutExpired:
        result["reason"] = f"The notebook ran longer than {limits['total']:.0f} s in all and was stopped"
    finally:
        kill(process)
        fresh.unlink(missing_ok=True)
    if result["final"]:
        scratch = kept.with_suffix(".part")
        scratch.write_text(json.dumps({**result, "key": key}, ensure_ascii=False, indent=1), "utf8")
        scratch.replace(kept)
    return result


def built(out: Path, seed: str | None, students: list[str], used: list[str], library: str) -> Path:
    """The folder of the assignments with these numbers, built anew where anything that they are made from changed."""
    archives = out / "built"
    stamp, state = archives / "stamp", hashlib.sha256(json.dumps([seed, students, used, library]).encode())
    for file in sorted((ROOT / "assignments").rglob("*.ipynb")):
        state.update(file.read_bytes())
    if not stamp.is_file() or stamp.read_text() != state.hexdigest():
        say(f"Building {len(used)} assignments")
        build(archives, seed, students, used, check=False)
        stamp.write_text(state.hexdigest())
    return archives


def kill(process: subprocess.Popen) -> None:
    """The process and all that it started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()
    process.wait()


def to_look_at(one: Submission, some: Sequence[Submission], seed: str | None, students: Sequence[str]) -> str:
    """What a lecturer has to decide: whose a file is, and whether it was somebody else's."""
    notes = []
    others = [s for s in some if (s.assignment, s.student.casefold()) == (one.assignment, one.student.casefold())]
    if len(others) > 1:
        notes.append(f"one of {len(others)} files that go by the name {one.student}: which is whose, or the last?")
    text = one.file.read_bytes().decode("utf8", "replace")
    values = re.search(r"VALUES = (\d+)", text)
    made = {numbers(seed, one.assignment, name)[0]: name for name in students}
    owner = made.get(int(values[1])) if values else None
    if owner and owner != one.student:
        notes.append(f"made for {owner}")
    return "; ".join(notes)


def write(file: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file as spreadsheets and course systems read it; a text that a spreadsheet would compute is only text."""
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.writer(opened)
        writer.writerow(head)
        for row in rows:
            writer.writerow([f"'{x}" if isinstance(x, str) and x.startswith(("=", "+", "-", "@")) else x for x in row])


def hand_marked(file: Path) -> dict[tuple[str, str, str], float]:
    """Points for written questions that the lecturer has put into written.csv."""
    if not file.is_file():
        return {}
    marks = {}
    with file.open(encoding="utf-8-sig", newline="") as opened:
        for number, row in enumerate(csv.DictReader(opened), 2):
            given = (row.get("points") or "").strip()
            try:
                marks |= {(row["student"], row["assignment"], row["question"]): float(given)} if given else {}
            except (KeyError, ValueError) as error:
                raise ValueError(f"{file}, line {number}: points must be a number, not {given!r}") from error
    return marks


def report(results: dict[Submission, dict[str, Any]], notes: dict[Submission, str], out: Path) -> None:
    """All files that a lecturer reads or imports."""
    marks = hand_marked(out / "written.csv")
    total = {}
    for one, result in results.items():
        by_hand = sum(marks.get((one.name, one.assignment, q), 0) for q in result["written"])
        total[one] = round(result["score"] + by_hand, 2)
    write(
        out / "marks.csv",
        ["student", "assignment", "points", "of the tests", "status", "reason", "look at"],
        (
            [s.name, s.assignment, total[s], r["score"], r["status"], r["reason"], notes.get(s, "")]
            for s, r in results.items()
        ),
    )
    write(
        out / "questions.csv",
        ["student", "assignment", "question", "points", "possible", "what was said"],
        ([s.name, s.assignment, q, a["score"], a["possible"], " | ".join(a["messages"])]
         for s, r in results.items() for q, a in r["questions"].items()),
    )  # fmt: skip
    write(
        out / "written.csv",
        ["student", "assignment", "question", "points", "answer"],
        ([s.name, s.assignment, q, marks.get((s.name, s.assignment, q), ""), text]
         for s, r in results.items() for q, text in r["written"].items()),
    )  # fmt: skip
    assignments = sorted({s.assignment for s in results})
    students = sorted({s.name for s in results})
    points = {(s.name, s.assignment): total[s] for s in results}
    table = [[name, *(points.get((name, a), "") for a in assignments)] for name in students]
    write(out / "canvas.csv", ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *assignments],
          ([name, "", "", name, "", *row] for name, *row in table))  # fmt: skip
    write(out / "moodle.csv", ["Username", *assignments], table)
    best = sorted(((s, r["board"]) for s, r in results.items() if r.get("board")), key=lambda row: -row[1]["score"])
    board = [[place, s.name, b["score"], b["forgotten"], b["kept"]] for place, (s, b) in enumerate(best, 1)]
    if board:
        write(out / "leaderboard.csv", ["place", "student", "score", "forgotten", "kept"], board)
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    pages.filters["code"] = lambda text: re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text)))
    if board:
        (out / "leaderboard.html").write_text(pages.get_template("leaderboard.html").render(rows=board), "utf8")
    feedback = pages.get_template("feedback.html")
    for s, r in results.items():
        folder = out / "feedback" / s.name
        folder.mkdir(parents=True, exist_ok=True)
        given = {q: marks.get((s.name, s.assignment, q)) for q in r["written"]}
        page = feedback.render(one=s, result=r, total=total[s], given=given)
        (folder / f"{s.assignment}.html").write_text(page, "utf8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("submissions", type=Path)
    parser.add_argument(
        "--seed", default=os.environ.get("SEED") or None, help="the secret that the assignments were built with"
    )
    parser.add_argument("--names", help="the file of names that they were built with")
    parser.add_argument("--out", type=Path, default=BUILD / "grades")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=60.0, help="for one cell (default 60)")
    parser.add_argument("--total", type=float, default=600.0, help="seconds for one notebook (default 600)")
    parser.add_argument("--memory", type=float, default=8.0, help="GB of address space (default 8)")
    given = parser.parse_args()
    if not given.submissions.is_dir():
        parser.error(f"SUBMISSIONS must be a folder, and {given.submissions} is none")
    students = read_names(given.names) if given.names else []
    some, left = submissions(given.submissions, names(), students)
    if not some:
        parser.error(f"there is no submission in {given.submissions}: {left[0][1] if left else 'it is empty'}")
    given.out.mkdir(parents=True, exist_ok=True)
    library = library_digest()
    archives = built(given.out, given.seed, students, sorted({s.assignment for s in some}), library)
    # What every last step needs is in the cache before several ask for it.
    prepare = [sys.executable, "-c", "from minilib.course import real; real.prepare()"]
    subprocess.run(prepare, cwd=ROOT, env=environment(), check=True)
    say(f"Grading {len(some)} submissions")
    lock, done = threading.Lock(), []

    def one_of(s: Submission) -> dict[str, Any]:
        student = s.student if s.student in students else ""
        if students and not student:
            reason = f"{s.name!r} is not among the names in {given.names}"
            return {"status": "refused", "reason": reason, "questions": {}, "written": {}, "score": 0}
        values, _ = numbers(given.seed, s.assignment, student)
        archive = archives / "autograder" / student / f"{s.assignment}.zip"
        limits = {"seconds": given.seconds, "total": given.total, "memory": given.memory}
        result = graded(s, archive, values, given.out, limits, library)
        with lock:
            done.append(s)
            said = f"{s.name}  {s.assignment}  {result['score']:g}  {result['reason']}"
            print(f"{len(done)}/{len(some)}  {said}", flush=True)
        return result

    with ThreadPoolExecutor(given.processes) as pool:
        results = dict(zip(some, pool.map(one_of, some), strict=True))
    notes = {s: note for s in some if (note := to_look_at(s, some, given.seed, students))}
    report(results, notes, given.out)
    pairs = alike.pairs({s: s.file for s in some if results[s]["status"] == "graded"}, archives / "student")
    write(given.out / "alike.csv", ["assignment", "one", "other", "share of the shorter that is the same"], pairs)
    write(
        given.out / "left.csv",
        ["file", "why it was not graded"],
        ([str(f.relative_to(given.submissions)), why] for f, why in left),
    )
    say(
        f"in {given.out}: marks.csv, questions.csv, written.csv, canvas.csv, moodle.csv, alike.csv, left.csv, feedback/"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
