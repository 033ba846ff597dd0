"""Everything that must hold before a change is merged. Goes through all stages and says at the end which failed.

Usage: run_tests.py [--fast]  (style, types and the fast tests alone: `make check`)
"""

import sys
import time
from collections.abc import Callable

from common import BUILD, NOTEBOOKS, fetch_model, run, say

SITE = BUILD / "html"
WORKERS = "2"  # each holds a model of half a gigabyte
PYTEST = ("pytest", "tests", "--ignore=tests/site", "-q", "-n", WORKERS, "--dist", "worksteal")


def style() -> int:
    return run("ruff", "check", "--output-format", "concise", ".") | run("ruff", "format", "--check", ".")


def types() -> int:
    return run("mypy", "minilib")


def fast_tests() -> int:
    return run(*PYTEST, "-m", "not slow and not long", workers=2)


def unit_tests() -> int:
    return run(*PYTEST, "-rs", workers=2)


def notebooks() -> int:
    # loadscope keeps the cells of a notebook on one worker, in order.
    parallel = ["-n", WORKERS, "--dist", "loadscope"]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "--nbval-sanitize-with=tools/nbval.cfg"]
    return run("pytest", NOTEBOOKS, *nbval, "-q", *parallel, workers=2)


def site() -> int:
    run("python", "tools/real_model.py")  # without it the site is built all the same, and its tests skip the real model
    return run("python", "tools/build_book.py", "--strict")


def browser() -> int:
    if not (SITE / "index.html").exists():
        print("there is no site to test: its build failed")
        return 1
    return run("pytest", "tests/site", "-q", "-rs", "-n", WORKERS, BOOK_HTML=str(SITE))


CHECK: dict[str, Callable[[], int]] = {"style (ruff)": style, "types (mypy)": types, "fast tests": fast_tests}
TEST: dict[str, Callable[[], int]] = {
    "the model": fetch_model,
    "style (ruff)": style,
    "types (mypy)": types,
    "unit tests": unit_tests,
    "notebooks in fresh kernels (nbval)": notebooks,
    "the site, every page current and no warning": site,
    "the site in a browser": browser,
}


def main() -> int:
    stages = CHECK if "--fast" in sys.argv else TEST
    results = []
    for number, (name, stage) in enumerate(stages.items(), 1):
        say(f"({number}/{len(stages)}) {name}")
        start = time.monotonic()
        results.append((name, stage() == 0, time.monotonic() - start))
    say("Summary")
    for name, passed, seconds in results:
        print(f"  {'passed' if passed else 'FAILED'}  {seconds:5.0f} s  {name}")
    return int(not all(passed for _, passed, _ in results))


if __name__ == "__main__":
    sys.exit(main())
