"""Build the assignments: for each a student's notebook, the solution, and an autograder archive.

Run: python tools/assignments.py [--seed SECRET] [--names FILE] [--only NAME ...] [--out FOLDER]  (`make assignments`)

Without a seed all numbers are those of the masters, which everybody can read: good for trying, not for marks. With one,
the values in the notebooks and the numbers of the hidden tests follow from it, for the whole class or, with a file of
names (one a line), for each student by name. The same seed grades what it made (`tools/grade.py`).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import BUILD, ROOT, environment, say

from minilib.course import seeds

MASTERS = ROOT / "assignments"
VALUES = re.compile(r"^VALUES = \d+", re.M)
HIDDEN = re.compile(r"^(\s*)HIDDEN = \d+", re.M)
CHECK = re.compile(r'grader\.check\("(\w+)"\)')  # what Otter puts below a step
CALLED = re.compile(r"^    (\w+\.check_\w+)\((.*)\)$", re.M)  # what a step's test does


def names() -> list[str]:
    return sorted(folder.parent.name for folder in MASTERS.glob("*/master.ipynb"))


def otter_assign(name: str, folder: Path, check: bool = True) -> None:
    """Otter's three results from one master; checked, its solution has to pass all tests."""
    work = folder / name
    work.mkdir(parents=True)
    shutil.copy(MASTERS / name / "master.ipynb", work / f"{name}.ipynb")
    shutil.copy(MASTERS / "requirements.txt", work)
    command = [Path(sys.executable).parent / "otter", "assign", f"{name}.ipynb", "out"]
    command += [] if check else ["--no-run-tests"]
    done = subprocess.run(command, cwd=work, env=environment(2), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: otter assign failed\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def stamped(notebook: Path, tests: dict[str, str], number: int | None) -> str:
    """A notebook's text with its values; ids of cells are kept, so that the same build gives the same file.

    Otter's checks read their tests from the notebook's file, which Colab does not have. What stands below a step is
    its test's own call instead, which needs nothing but minilib.
    """
    nb = json.loads(notebook.read_text("utf8"))
    nb["metadata"]["otter"] = {"assignment_name": nb["metadata"]["otter"]["assignment_name"]}
    for i, cell in enumerate(nb["cells"]):
        cell["id"] = f"c{i:03d}"
        source = "".join(cell["source"])
        if found := CHECK.fullmatch(source):
            source = tests[found[1]]
        if number is not None and cell["cell_type"] == "code":
            source = VALUES.sub(f"VALUES = {number}", source)
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def called(zipped: Path) -> dict[str, str]:
    """What a student's notebook runs to check a step: the call in the first of its tests, the visible one."""
    found = {}
    with zipfile.ZipFile(zipped) as tests:
        for item in tests.namelist():
            if item.startswith("tests/q"):
                call = CALLED.search(tests.read(item).decode("utf8"))
                if call is None or "HIDDEN" in call[2]:
                    raise ValueError(f"{item}: a step's first test must be one call of a check, with VALUES")
                found[Path(item).stem] = f"checks.step({call[1]}, {call[2]})"
    return found


def archive(source: Path, target: Path, number: int | None) -> None:
    """Otter's archive with the numbers of the hidden tests."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for item in sorted(old.namelist()):
            content = old.read(item)
            if number is not None and item.startswith("tests/"):
                content = HIDDEN.sub(rf"\g<1>HIDDEN = {number}", content.decode("utf8")).encode()
            info = zipfile.ZipInfo(item, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o755 << 16 if item.endswith((".sh", "run_autograder")) else 0o644 << 16
            new.writestr(info, content)


def numbers(seed: str | None, name: str, student: str) -> tuple[int | None, int | None]:
    if seed is None:
        return None, None
    values, hidden = (seeds.number(seed, name, kind, student) for kind in seeds.KINDS)
    return values, hidden


def build(out: Path, seed: str | None, students: list[str], only: list[str], check: bool = True) -> None:
    """All results below ``out``: student/, solution/ and autograder/, with a folder for each student where named."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        for name, _ in zip(only, pool.map(lambda name: otter_assign(name, Path(scratch), check), only), strict=True):
            made = Path(scratch, name, "out")
            (zipped,) = made.glob("autograder/*.zip")
            tests = called(zipped)
            for student in students or [""]:
                values, hidden = numbers(seed, name, student)
                folder = out / "student" / student
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.ipynb").write_text(
                    stamped(made / "student" / f"{name}.ipynb", tests, values), "utf8"
                )
                archive(zipped, out / "autograder" / student / f"{name}.zip", hidden)
            (out / "solution").mkdir(parents=True, exist_ok=True)
            text = stamped(made / "autograder" / f"{name}.ipynb", tests, numbers(seed, name, "")[0])
            (out / "solution" / f"{name}.ipynb").write_text(text, "utf8")
            say(f"{name}: built" + (", and its solution passes" if check else ""))


def read_names(file: str) -> list[str]:
    """Names, one a line; each has to be good as a folder's name."""
    found = [line.strip() for line in Path(file).read_text("utf8").splitlines() if line.strip()]
    bad = [name for name in found if re.search(r'[\\/:*?"<>|]|^\.', name)]
    if bad or len({name.casefold() for name in found}) < len(found) or not found:
        raise ValueError(f"{file} must hold a different name in each line, good as a folder's name: {bad or found[:3]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", help="a secret text: other numbers than everybody's")
    parser.add_argument("--names", help="a file with a student's name in each line: other numbers for each")
    parser.add_argument("--only", nargs="*", default=names(), help="names of assignments")
    parser.add_argument("--out", type=Path, default=BUILD / "assignments")
    parser.add_argument("--unchecked", action="store_true", help="do not run the solutions")
    given = parser.parse_args()
    unknown = set(given.only) - set(names())
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}, only {', '.join(names())}")
    if given.names and not given.seed:
        parser.error("--names needs --seed: without a seed all students have the same numbers")
    build(given.out, given.seed, read_names(given.names) if given.names else [], given.only, not given.unchecked)
    say(f"in {given.out}: student/ to hand out, solution/ and autograder/ to keep")
    return 0


if __name__ == "__main__":
    sys.exit(main())
