"""The comparison: every method × kind of knowledge × number of facts × seed, one line of JSON for each.

Run: python benchmarks/compare.py. It goes on where an earlier run stopped: a job whose line is in the file is
done, and a line that was cut off in the middle is dropped and made again. One process a core takes a few jobs of the
same facts at a time; a crash costs it no more than those. ``--list`` and ``--only`` hand jobs to any scheduler, and
several runs may write to one file. What a job is stands in ``minilib.benchmark``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm.auto import tqdm

from minilib.measure.benchmark import METHODS, TUNING, Job, append, cell_of, plan, read, run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a taste of it, in five minutes")
    parser.add_argument("--tune", action="store_true", help="try the settings, on other facts")
    parser.add_argument("--list", action="store_true", help="name the jobs that are left, one a line, and stop")
    parser.add_argument("--only", nargs="+", metavar="JOB", help="these jobs alone, by name, or part of a name")
    parser.add_argument("--out", type=Path, help="the file to go on with (default: benchmark.jsonl here)")
    parser.add_argument("--tuned", type=Path, default=TUNING, help="the trials that settings are chosen from")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1,
                        help="at once (default: one a core); 0 works in this process")  # fmt: skip
    given = parser.parse_args(arguments)
    out = given.out or Path("tuning.jsonl" if given.tune else "benchmark.jsonl")
    jobs = plan(given.quick, given.tune)
    if given.only:
        jobs = named(jobs, given.only, parser)
    done = {row["job"] for row in read(out)}
    jobs = [job for job in jobs if str(job) not in done]
    if given.list:
        print("\n".join(map(str, jobs)))
        return 0
    if given.processes:
        options = [f"--{name}" for name in ("quick", "tune") if getattr(given, name)]
        return int(work(jobs, out, given.tuned, given.processes, options) > 0)
    failed = False
    for job in jobs:
        try:
            row = run(job, given.tuned)
        except Exception:  # a fault of the program: reported, and tried again by the next call
            failed = True
            cell_of.cache_clear()
            print(f"{job} failed:\n{traceback.format_exc()}", file=sys.stderr)
        else:
            append(out, row)
    return int(failed)


def named(jobs: Sequence[Job], names: Sequence[str], parser: argparse.ArgumentParser) -> list[Job]:
    """The jobs of these names; a name that is no job's stands for all in whose names it occurs."""
    full = {str(job): job for job in jobs}
    found = [[full[name]] if name in full else [job for job in jobs if name in str(job)] for name in names]
    for name, some in zip(names, found, strict=True):
        if not some:
            parser.error(f"no job is named {name!r}: --list names them all; the methods are {', '.join(METHODS)}")
    return list(dict.fromkeys(job for some in found for job in some))


def work(jobs: Sequence[Job], out: Path, tuned: Path, processes: int, plan_of: Sequence[str] = ()) -> int:
    """Run jobs, a few of the same cell to a process, which writes its rows itself. Returns how many have no row.

    ``plan_of`` is handed on: the options that say in which plan the jobs are.
    """

    def start(some: Sequence[Job]) -> str:
        command = [sys.executable, __file__, "--processes", "0", "--out", str(out)]
        command += ["--tuned", str(tuned), *plan_of]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        names = [str(job) for job in some]
        ended = subprocess.run([*command, "--only", *names], env=os.environ | threads, capture_output=True, text=True)
        return f"ended with status {ended.returncode}:\n{ended.stderr[-4000:]}" if ended.returncode else ""

    with ThreadPoolExecutor(processes) as pool:
        running = {pool.submit(start, some): some for some in _batches(jobs)}
        with tqdm(total=len(jobs), desc="benchmark") as bar:
            for future in as_completed(running):
                bar.update(len(running[future]))
                if said := future.result():
                    print(f"{running[future][0]} or one after it {said}", file=sys.stderr)
    return len({str(job) for job in jobs} - {row["job"] for row in read(out)})


def _batches(jobs: Sequence[Job], size: int = 6) -> list[list[Job]]:
    """Neighbours in the plan that work on the same facts, at most so many together."""
    batches: list[list[Job]] = []
    for job in jobs:
        last = batches[-1] if batches else []
        cell = (job.knowledge, job.facts, job.seed)
        if last and len(last) < size and (last[0].knowledge, last[0].facts, last[0].seed) == cell:
            last.append(job)
        else:
            batches.append([job])
    return batches


if __name__ == "__main__":
    sys.exit(main())
