"""Grade one notebook, in a process that has limits on time, memory and network. Called by grade.py.

Otter runs the notebook and the tests. Before, the notebook is made safe to run: outputs go, the kernel is Python, the
values are the student's own, check cells are left out and every test runs at the end in a cell of its own. A cell that
stops the kernel is taken out and the rest is run again, so that it costs its own points only.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

# Otter and nbclient are imported where a notebook is run: one that is refused needs neither.

LARGEST = 500_000_000  # bytes of a notebook
ATTEMPTS = 4
ANSWER = "otter_answer_cell"
LEFT_OUT = re.compile(r"^(\s*)(checks\.step\(|%pip|!).*$", re.M)  # tests run at the end; nothing is installed
LATE = "did not return within"  # in what a check says of a function that its time ran out on
EMPTY = "_Type your answer here, replacing this text._"


def without_network() -> bool:
    """Leave the machine's network, where the system lets a process do so; loopback stays, for the kernel."""
    if sys.platform != "linux":
        return False
    import fcntl
    import socket
    import struct

    user, net = 0x10000000, 0x40000000
    flags = net if os.geteuid() == 0 else user | net
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        name = struct.pack("16sh", b"lo", 0)
        (up,) = struct.unpack_from("h", fcntl.ioctl(s, 0x8913, name), 16)  # SIOCGIFFLAGS
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", up | 1))  # SIOCSIFFLAGS, IFF_UP
    return True


def limit_memory(gigabytes: float) -> None:
    if sys.platform == "linux":
        import resource

        size = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


class Refused(Exception):
    """A submission that cannot be graded; the text is for the student. ``final`` where another run says the same."""

    final = True


def read(file: Path) -> dict[str, Any]:
    """The notebook without outputs, or the reason why it cannot be graded."""
    if file.stat().st_size > LARGEST:
        raise Refused(f"The file has {file.stat().st_size / 1e6:,.0f} MB: clear all outputs and hand it in again")
    try:
        nb = json.loads(file.read_text("utf8"))
    except UnicodeDecodeError as error:
        raise Refused("This is not a notebook: hand in the .ipynb file itself") from error
    except json.JSONDecodeError as error:
        raise Refused(f"This is not a whole notebook ({error}): save it again and hand it in again") from error
    if not isinstance(nb, dict) or not isinstance(nb.get("cells"), list):
        raise Refused("This is not a notebook: hand in the .ipynb file itself")
    language = nb.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    if language.lower() != "python":
        raise Refused(f"This notebook was saved with a kernel for {language}: choose Python 3 and run it again")
    cells = []
    for cell in nb["cells"]:
        source = cell.get("source", "")
        cell["source"] = "".join(source) if isinstance(source, list) else str(source)
        if cell.get("cell_type") == "code":
            cell |= {"outputs": [], "execution_count": None}
        cell.setdefault("metadata", {})
        cells.append(cell)
    code = "\n".join(c["source"] for c in cells if c.get("cell_type") == "code")
    if not code.strip():
        raise Refused("There is no code in this notebook: is it the right file?")
    if not any(ANSWER in c["metadata"].get("tags", []) for c in cells) and "checks.step(" not in code:
        raise Refused("Nothing in this notebook answers a question: is it the right file?")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel},
            "nbformat": 4, "nbformat_minor": 4}  # fmt: skip


def prepared(
    nb: dict[str, Any], tests: list[str], progress: Path, seconds: float, values: int | None
) -> dict[str, Any]:
    """The notebook as it is run: watched, with the student's own values, and with the tests at the end."""

    def code(source: str, **metadata: Any) -> dict[str, Any]:
        return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": None}

    begin = f"from minilib.course import guard as _guard\n_guard.begin(get_ipython(), {str(progress)!r}, {seconds})"
    cells = [code(begin)]
    for cell in nb["cells"]:
        cell = {key: value for key, value in cell.items() if key != "id"}
        if cell["cell_type"] == "code":
            cell |= {"source": as_run(cell["source"], values), "metadata": {}}
        cells.append(cell)
    cells.append(code("from minilib.course import guard as _guard\n_guard.settle(get_ipython())"))
    if values is not None:
        cells.append(code(f"VALUES = {values}"))
    cells += [code(f"pass  # checks {name}", otter={"tests": [name]}) for name in tests]
    return {**nb, "cells": cells}


def message_of(text: str) -> str:
    """What a failed test says to the student, without the traceback around it."""
    _, found, said = text.partition("AssertionError: ")
    return said.strip() if found else text.strip().splitlines()[-1]


def run(nb: dict[str, Any], archive: Path, tests: list[str], folder: Path, seconds: float, values: int | None) -> Any:
    """One attempt: Otter's results."""
    from otter.api import grade_submission

    notebook, reduced = folder / "submission.ipynb", folder / "autograder.zip"
    notebook.write_text(json.dumps(prepared(nb, tests, folder / "progress", seconds, values)), "utf8")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(reduced, "w") as new:
        for item in old.namelist():
            kept = not item.startswith("tests/") or Path(item).stem in tests
            if kept and item != "otter_config.json":
                new.writestr(item, old.read(item))
        new.writestr("otter_config.json", json.dumps({"lang": "python", "print_summary": False}))
    return grade_submission(str(notebook), str(reduced), quiet=True)


def grade(file: Path, archive: Path, seconds: float, values: int | None, folder: Path) -> dict[str, Any]:
    nb = read(file)
    from nbclient.exceptions import DeadKernelError

    with zipfile.ZipFile(archive) as zipped:
        tests = sorted(Path(item).stem for item in zipped.namelist() if re.fullmatch(r"tests/\w+\.py", item))
        possible = {t: points(zipped.read(f"tests/{t}.py").decode("utf8")) for t in tests}
    questions: dict[str, Any] = {}
    stopped: list[str] = []
    left = list(tests)
    for _ in range(ATTEMPTS):
        try:
            results = run(nb, archive, left, folder, seconds, values)
            break
        except DeadKernelError:
            last = (folder / "progress").read_text("utf8")
            checked = re.search(r"\.check\(\"(\w+)\"\)", last)
            cells = [c for c in nb["cells"] if c["cell_type"] == "code" and as_run(c["source"], values) == last]
            if checked:
                left.remove(checked[1])
                questions[checked[1]] = {"score": 0, "messages": ["Your code stopped Python while this was checked"]}
            elif cells:
                stopped.append(last.strip().splitlines()[0][:80])
                cells[0]["source"] = "raise RuntimeError('this cell stopped Python')"
            else:
                raise
    else:
        again = Refused("This notebook stops Python again and again: does it call `exit`, or ask for too much memory?")
        again.final = False
        raise again
    for name in left:
        found = results.results[name]
        messages = [message_of(r.message) for r in found.test_case_results if not r.passed]
        questions[name] = {"score": found.score, "messages": list(dict.fromkeys(messages))}
    late = (folder / "progress.late").is_file() or any(
        LATE in said for q in questions.values() for said in q["messages"]
    )
    return {
        "status": "graded",
        # A machine with more time or memory may end it otherwise.
        "final": not stopped and not late and len(left) == len(tests),
        "reason": "; ".join(f"a cell stopped Python and was left out: {line}" for line in stopped),
        "questions": {name: {**questions[name], "possible": possible[name]} for name in tests},
        "written": {f"w{i}": text for i, text in enumerate(answers(nb), 1)},
        "score": round(sum(q["score"] for q in questions.values()), 2),
        "possible": sum(possible.values()),
    }


def as_run(source: str, values: int | None) -> str:
    """A cell's source with the student's own numbers, whatever he changed them to, and without what is not graded."""
    source = LEFT_OUT.sub(r"\1pass", source)
    return source if values is None else re.sub(r"^VALUES\s*=.*$", f"VALUES = {values}", source, flags=re.M)


def points(test: str) -> float:
    found = re.search(r"^points = ([\d.]+)", test, re.M)
    return float(found[1]) if found else 1.0


def answers(nb: dict[str, Any]) -> list[str]:
    """Of each written question what stands between its two marks, or nothing."""
    found, inside = [], False
    for cell in nb["cells"]:
        if "<!-- BEGIN QUESTION -->" in cell["source"]:
            inside, text = True, []
        elif "<!-- END QUESTION -->" in cell["source"] and inside:
            found.append("\n\n".join(text).replace(EMPTY, "").strip())
            inside = False
        elif inside:
            text.append(cell["source"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--values", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="for one cell")
    parser.add_argument("--memory", type=float, default=8.0, help="GB of address space")
    given = parser.parse_args()
    began = time.perf_counter()
    network = without_network()
    limit_memory(given.memory)
    folder = Path(tempfile.mkdtemp(prefix="grading-"))
    board = folder / "board.json"
    os.environ |= {"IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    os.environ["COURSE_BOARD"] = str(board)
    try:
        result = grade(given.notebook, given.archive, given.seconds, given.values, folder)
        result["board"] = json.loads(board.read_text()) if board.is_file() else {}
    except Refused as refused:
        result = {
            "status": "refused",
            "final": refused.final,
            "reason": str(refused),
            "questions": {},
            "written": {},
            "score": 0,
            "possible": 0,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result |= {"seconds": round(time.perf_counter() - began, 1), "network": "cut" if network else "guarded"}
    scratch = given.out.with_suffix(".part")
    scratch.write_text(json.dumps(result, ensure_ascii=False, indent=1), "utf8")
    scratch.replace(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
