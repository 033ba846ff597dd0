"""The comparison: every method on every draw of facts, all answers kept, one line of JSON a cell.

Run: python benchmarks/comparison/run.py --processes 2. It goes on where an earlier run stopped: a cell whose line is in
its world's file is done, a line that was cut off is dropped and made again, and a killed process loses the cell it is
in. On another machine it goes on from the rows that are packed. ``--list`` shows what is left with its seconds,
``--only`` restricts it by parts of names, ``--pack`` puts what is there into the package. What a cell is stands in
``plan``.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple
from pathlib import Path
from typing import Any

from filelock import FileLock
from plan import AROUND, BUDGET, COMPARISONS, DRAWS, REFERENCES, STEPS, TRAINED, Job, methods, model, plan

from minilib.measure.rows import RESULTS
from minilib.show.stored import append, lines, save
from minilib.storage import cache_folder, whole

TOGETHER = 8  # cells of one draw that a process does
# Seconds of one core where no cell of the method has been timed yet: to apply it, and to ask.
APPLY = {"exact": {"trained": 6, "editors": 3}, "smollm2": {"trained": 170, "editors": 50}}
ASK = {"exact": 2, "smollm2": 45}
ORACLE = {"exact": 150, "smollm2": 10}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the cells that are left, with seconds, and stop")
    parser.add_argument("--only", nargs="+", metavar="PART", help="those alone in whose names all of these stand")
    parser.add_argument("--out", type=Path, default=cache_folder() / "comparison", help="the folder to go on with")
    parser.add_argument("--processes", type=int, default=1, help="at once; 0 works in this process")
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help="these cells, by their full names")
    parser.add_argument("--pack", action="store_true", help="put the rows into the package, and stop")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    unpack(given.out)
    if given.pack:
        pack(given.out)
        return 0
    if given.list:
        show(left(given.out, given.only), stored(given.out))
        return 0
    if given.jobs:
        return work([job for job in plan(stored(given.out)) if str(job) in given.jobs], given.out)
    failed: set[str] = set()
    while jobs := [job for job in left(given.out, given.only) if str(job) not in failed]:
        # The draws follow from the trials: when one part is done, the plan has grown.
        part = [job for job in jobs if (job.world, job.draw < 0) == (jobs[0].world, jobs[0].draw < 0)]
        if given.processes:
            scatter(part, given.out, given.processes)
        else:
            work(part, given.out)
        done = {row["job"] for row in stored(given.out)}
        failed |= {str(job) for job in part} - done
    if failed:
        print(f"{len(failed)} cells failed, and are tried again by the next call:", *sorted(failed), sep="\n")
    return int(bool(failed))


def stored(out: Path) -> list[dict[str, Any]]:
    """All rows that are there."""
    return [row for world in DRAWS for row in lines(out / f"{world}.jsonl")]


def left(out: Path, only: Sequence[str] | None = None) -> list[Job]:
    """The cells of the plan that have no row."""
    rows = stored(out)
    done = {row["job"] for row in rows}
    return [job for job in plan(rows) if str(job) not in done and all(part in str(job) for part in only or ())]


# ---- doing it -----------------------------------------------------------------------------------------


def scatter(jobs: Sequence[Job], out: Path, processes: int) -> None:
    """Hand cells to processes, a few of the same draw at a time."""
    batches: list[list[Job]] = []
    size = min(TOGETHER, -(-len(jobs) // processes))  # so that none stands idle at the end
    for job in jobs:
        last = batches[-1] if batches else []
        if last and len(last) < size and (last[0].world, last[0].draw) == (job.world, job.draw):
            last.append(job)
        else:
            batches.append([job])

    def start(some: Sequence[Job]) -> str:
        command = [sys.executable, __file__, "--out", str(out), "--jobs", *map(str, some)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        ended = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
        return f"ended with status {ended.returncode}:\n{ended.stderr[-3000:]}" if ended.returncode else ""

    began, done = time.perf_counter(), 0
    with ThreadPoolExecutor(processes) as pool:
        running = {pool.submit(start, some): some for some in batches}
        for future in as_completed(running):
            done += len(running[future])
            print(f"{time.perf_counter() - began:.0f} s: {done} of {len(jobs)}, {running[future][-1]}", flush=True)
            if said := future.result():
                print(f"{running[future][0]} or one after it {said}", file=sys.stderr, flush=True)


def work(jobs: Sequence[Job], out: Path) -> int:
    """Do cells in this process, one after the other; 1 if one failed by a fault of the program."""
    from cells import open_cell, run  # imports torch

    failed, opened, cell = 0, (), None
    seen: dict[tuple[str, str], float | None] = {}
    for job in jobs:
        try:
            if opened != (job.world, job.draw):
                # The unedited model comes first: its row has the questions that all others are asked.
                with FileLock(out / f"{job.world} {job.draw}.lock"):
                    first = Job(job.world, job.draw, REFERENCES[0])
                    rows = lines(out / f"{job.world}.jsonl")
                    before = next((row for row in rows if row["job"] == str(first)), None)
                    opened, cell, seen = (job.world, job.draw), open_cell(job.world, job.draw, before), {}
                    if before is None:
                        append(out / f"{job.world}.jsonl", run(first, cell, seen))
                    remember(seen, [row for row in rows if row["draw"] == job.draw], cell.questions)
            if job.method != REFERENCES[0]:
                append(out / f"{job.world}.jsonl", run(job, cell, seen))
        except Exception:  # a fault of the program: reported, and tried again by the next call
            failed, opened = 1, ()
            print(f"{job} failed:\n{traceback.format_exc()}", file=sys.stderr)
    return failed


def remember(seen: dict[tuple[str, str], float | None], rows: Sequence[dict[str, Any]], questions: Any) -> None:
    """How likely the judge finds an answer, from the rows of the draw that are there."""
    for row in rows:
        for kind, values in row.get("nll", {}).items():
            for question, answer, nll in zip(questions[kind], row["answers"][kind], values, strict=True):
                seen[question["asked"], answer] = nll


# ---- showing and storing ------------------------------------------------------------------------------


def seconds(job: Job, rows: Sequence[dict[str, Any]]) -> float:
    """Of one core: as other cells of the method took, in the same world if there are some."""
    timed = [row for row in rows if row["method"] == job.method and model(row["world"]) == model(job.world)]
    timed = [row for row in timed if row["world"] == job.world] or timed
    if timed and job.method not in REFERENCES:
        return statistics.fmean(row.get("seconds", 0) + row.get("asked in", 0) for row in timed)
    kind = model(job.world)
    if job.method == "oracle":
        return ORACLE[kind] + ASK[kind]
    apply = (
        0 if job.method in (*REFERENCES, *AROUND) else APPLY[kind]["trained" if job.method in TRAINED else "editors"]
    )
    return apply + ASK[kind]


def show(jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> None:
    """The cells with their seconds, and the sum of each part."""
    parts: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        cost = seconds(job, rows)
        parts[job.world, "tuning" if job.draw < 0 else "draws"] += cost  # type: ignore[assignment]
        print(f"{cost:6.0f}  {job}")
    for (world, part), cost in parts.items():
        print(f"{cost / 3600:6.2f} hours: {world}, {part}")
    print(f"{sum(parts.values()) / 3600:6.2f} hours in all; draws whose settings are not chosen yet are not counted")


def unpack(out: Path, folder: Path = RESULTS) -> None:
    """Begin the file of each world that has none with the rows of a folder, that of the package."""
    for world in DRAWS:
        file, packed = out / f"{world}.jsonl", folder / f"answers_{world}.jsonl.xz"
        if packed.is_file() and not file.exists():
            with whole(file) as scratch:
                scratch.write_bytes(lzma.decompress(packed.read_bytes()))


def pack(out: Path, folder: Path = RESULTS) -> None:
    """Compress the rows of each world, in the order of the plan, into a folder, that of the package; and the plan."""
    began = time.perf_counter()
    order = {str(job): i for i, job in enumerate(plan(stored(out)))}
    for world in DRAWS:
        rows = [row for row in lines(out / f"{world}.jsonl") if row["job"] in order]
        if not rows:
            continue
        rows.sort(key=lambda row: order[row["job"]])
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        (folder / f"answers_{world}.jsonl.xz").write_bytes(packed)
        print(f"{world}: {len(rows)} rows, {len(text) / 1e6:.1f} MB, packed {len(packed) / 1e6:.2f} MB")
    if folder == RESULTS:
        save("answers_plan", declared(), "benchmarks/comparison/run.py", began)


def declared() -> dict[str, Any]:
    """What a page says of the plan."""
    return {
        "draws": DRAWS,
        "budget": BUDGET,
        "steps": STEPS,
        "methods": {world: methods(world) for world in DRAWS},
        "comparisons": {world: [list(astuple(one)) for one in some] for world, some in COMPARISONS.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
