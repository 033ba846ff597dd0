"""Does the book say the same on other processors? Runs notebooks and tests under settings that imitate some.

No assertion stops a notebook here: each is checked, those that fail are listed with what was found and what was
asked for, and the run goes on. Usage::

    python tools/processors.py                                  # every notebook and test under every setting: hours
    python tools/processors.py --setting default notebooks/04_rome.ipynb tests/test_rome.py
    python tools/processors.py --all --setting native notebooks/04_rome.ipynb    # also the values that hold

A setting imitates another processor in part: an assertion needs slack, and not only a setting under which it holds.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from common import NOTEBOOKS, ROOT, environment
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

SETTINGS = {
    "native": {"OMP_NUM_THREADS": "1"},
    "two-threads": {"OMP_NUM_THREADS": "2"},
    "avx2": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "default": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    # Not a processor: every weight that is loaded is off by a millionth, more than rounding and far less than an edit.
    "noise": {"OMP_NUM_THREADS": "1", "PROCESSORS_NOISE": "1e-6"},
}
TOOLS = Path(__file__).resolve().parent
FLOATS = re.compile(r"approx|allclose|assert_close|[<>]=? *\d*\.\d")  # what a test that asserts floats has in it


def run_notebook(path: Path, setting: str, everything: bool) -> tuple[list[dict], float]:
    """Its assertions that fail (or all), its cells that raise, and its seconds."""
    notebook = nbformat.read(path, as_version=4)
    first = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import report_assertions"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    variables = {**environment(), "PYTHONPATH": str(ROOT), **SETTINGS[setting]}
    if everything:
        variables["PROCESSORS_ALL"] = "1"
    client = NotebookClient(notebook, timeout=3600, kernel_name="python3", allow_errors=True, record_timing=False)
    began = time.monotonic()
    rows = []
    try:
        client.execute(cwd=str(path.parent), env=variables)
    except (DeadKernelError, CellTimeoutError) as error:
        rows.append({"where": path.stem, "setting": setting, "assertion": str(error), "values": "", "holds": False})
    for number, cell in enumerate(notebook.cells[1:]):
        for output in cell.get("outputs", []):
            row = output.get("data", {}).get("application/json", {})
            if output["output_type"] == "error":
                row = {"assertion": f"{output['ename']}: {output['evalue']}", "values": "", "holds": False}
            if "assertion" in row:
                rows.append({"where": f"{path.stem} [{number}]", "setting": setting, **row})
    return rows, time.monotonic() - began


def run_tests(path: Path, setting: str, everything: bool) -> tuple[list[dict], float]:
    """The tests of a file that fail; pytest says with which values."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-rfE", "-p", "no:cacheprovider"]
    variables = {**environment(), "PYTHONPATH": str(ROOT), "COLUMNS": "250", **SETTINGS[setting]}
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?", ended.stdout, flags=re.M)
    if ended.returncode and not failed:
        failed = [("pytest", f"ended with status {ended.returncode}: {ended.stderr.strip()[-200:]}")]
    rows = [{"assertion": name, "values": why, "holds": False} for name, why in failed]
    return [{"where": path.stem, "setting": setting, **row} for row in rows], time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks and files of tests (default: all)")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="once or more often (default: each)")
    parser.add_argument("--all", action="store_true", help="of notebooks, show the assertions that hold, too")
    parser.add_argument("--out", type=Path, help="keep all rows in this file, as lines of JSON")
    given = parser.parse_args()
    found = [p for folder in ("tests", "tests/course") for p in sorted((ROOT / folder).glob("test_*.py"))]
    tests = [p for p in found if FLOATS.search(p.read_text("utf8"))]
    paths = [p.resolve() for p in given.paths] or [*sorted(NOTEBOOKS.glob("*.ipynb")), *tests]
    failed = 0
    for setting in given.setting or SETTINGS:
        threads = int(SETTINGS[setting]["OMP_NUM_THREADS"])
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // threads)) as pool:
            jobs = {p: pool.submit(run_notebook if p.suffix == ".ipynb" else run_tests, p, setting, given.all)
                    for p in paths}  # fmt: skip
            for path, job in jobs.items():
                rows, seconds = job.result()
                bad = sum(not row["holds"] for row in rows)
                failed += bad
                print(f"{setting:12} {path.stem:28} {seconds:5.0f} s  {f'{bad} FAILED' if bad else 'holds'}")
                for row in rows:
                    mark = " " if row["holds"] else "!"
                    print(f"  {mark} {row['where']}: {row['assertion']}\n        {row['values']}", flush=True)
                if given.out:
                    with given.out.open("a", encoding="utf8") as file:
                        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{failed} failed" if failed else "everything holds")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
