"""Everything that must hold before a change is merged. Goes through all stages and says at the end which failed."""

import sys
import time

import build_book
from common import NOTEBOOKS, fetch_model, run, say

SITE = build_book.COMMITTED_SITE
WORKERS = "2"  # each holds a model of half a gigabyte


def style() -> int:
    return run("ruff", "check", "--output-format", "concise", ".") | run("ruff", "format", "--check", ".")


def types() -> int:
    return run("mypy", "minilib")


def unit_tests() -> int:
    return run("pytest", "tests", "--ignore=tests/site", "-q", "-rs", "-n", WORKERS, "--dist", "worksteal", workers=2)


def notebooks() -> int:
    # loadscope keeps the cells of a notebook on one worker, in order.
    parallel = ["-n", WORKERS, "--dist", "loadscope"]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "--nbval-sanitize-with=tools/nbval.cfg"]
    return run("pytest", NOTEBOOKS, *nbval, "-q", *parallel, workers=2)


def site() -> int:
    return build_book.build(committed=True)


def browser() -> int:
    if not (SITE / "index.html").exists():
        print("there is no site to test: its build failed")
        return 1
    return run("pytest", "tests/site", "-q", "-rs", "-n", WORKERS, BOOK_HTML=str(SITE))


STAGES = {
    "the model": fetch_model,
    "style (ruff)": style,
    "types (mypy)": types,
    "unit tests": unit_tests,
    "notebooks in fresh kernels (nbval)": notebooks,
    "the site, from the committed outputs": site,
    "the site in a browser": browser,
}


def main() -> int:
    results = []
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        say(f"({number}/{len(STAGES)}) {name}")
        start = time.monotonic()
        results.append((name, stage() == 0, time.monotonic() - start))
    say("Summary")
    for name, passed, seconds in results:
        print(f"  {'passed' if passed else 'FAILED'}  {seconds:5.0f} s  {name}")
    return int(not all(passed for _, passed, _ in results))


if __name__ == "__main__":
    sys.exit(main())
