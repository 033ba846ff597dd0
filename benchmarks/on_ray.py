"""The comparison's jobs on Ray: on the cores of this machine, or on a cluster that Ray already runs on.

Each job is a task of its own that brings back its row; this process alone writes to the file, so the workers need no
disk in common. A task whose worker dies is started again by Ray, and a job whose row is there is not given out, so
nothing is lost and nothing is there twice. Run:
pip install "ray>=2.9", then python benchmarks/on_ray.py --out rows.jsonl [--only JOB ...] [--tune] [--address auto].
The same jobs in a Slurm array: ``python benchmarks/compare.py --list > jobs`` and, in the job script,
``python benchmarks/compare.py --processes 0 --out rows.jsonl --only "$(sed -n "${SLURM_ARRAY_TASK_ID}p" jobs)"``.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import ray
from compare import named
from tqdm.auto import tqdm

from minilib import benchmark, tasks


@ray.remote(num_cpus=1, max_retries=5)
def row_of(job: tasks.Job) -> dict[str, Any]:
    """One job, on one thread; a worker that takes another of the same facts has them loaded already."""
    return benchmark.run(job)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the file of rows to go on with")
    parser.add_argument("--only", nargs="+", metavar="JOB", help="these jobs alone, by name or part of a name")
    parser.add_argument("--tune", action="store_true", help="the trials in place of the comparison")
    parser.add_argument("--address", help="of a running cluster; without it Ray starts on this machine")
    parser.add_argument("--workers", type=int, help="how many at once on this machine (default: one a core)")
    given = parser.parse_args()
    done = {row["job"] for row in benchmark.read(given.out)}
    jobs = benchmark.plan(tune=given.tune)
    left = [job for job in named(jobs, given.only or [""], parser) if str(job) not in done]
    ray.init(address=given.address, **({} if given.address else {"num_cpus": given.workers}))
    running = {row_of.remote(job): job for job in left}
    failed = 0
    with tqdm(total=len(left), desc="benchmark") as bar:
        while running:
            ended, _ = ray.wait(list(running))
            job = running.pop(ended[0])
            try:
                benchmark.append(given.out, ray.get(ended[0]))
            except ray.exceptions.RayError as error:
                failed += 1
                print(f"{job}: {error}", file=sys.stderr)
            bar.update()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
