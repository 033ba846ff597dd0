"""Results of long runs: small files that a script in ``benchmarks/`` made, with where they come from.

A result is one JSON file (``load``, ``save``), or one line of JSON for each row (``lines``, ``append``).

A page that shows such a result computes one point of it anew and asserts that both agree. (The rows in
``comparison.jsonl`` and ``tuning.jsonl`` were made by a module that has been removed since; the commit that each row
names has it.)
"""

from __future__ import annotations

import dis
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock

RESULTS = Path(__file__).parents[1] / "data" / "results"


def load(name: str) -> dict[str, Any]:
    """What a script stored under a name: its results, and under ``"provenance"`` how they were made.

    Raises
    ------
    ValueError
        When nothing is stored under that name.
    """
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in RESULTS.glob("*.json")))
        raise ValueError(f"name {name!r}: no such result is stored, only {known}")
    results: dict[str, Any] = json.loads(file.read_text("utf8"))
    return results


def save(
    name: str,
    results: Mapping[str, Any],
    script: str,
    started: float,
    seed: int = 0,
    earlier: Mapping[str, Any] | None = None,
) -> Path:
    """Store results under a name, whole or not at all, with versions, commit, seed and seconds.

    Parameters
    ----------
    name : str
    results : mapping
        Of plain numbers, strings, lists and mappings.
    script : str
        What made them, as ``"benchmarks/trace_average.py"``.
    started : float
        ``time.perf_counter()`` at the start of the run.
    seed : int, default 0
    earlier : dict, optional
        The provenance of an earlier run that made a part of the results: its seconds are added, and where it was
        another day, commit or version, it is listed under ``"earlier"``.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    file, scratch = RESULTS / f"{name}.json", RESULTS / f"{name}.new"
    made = provenance(script, started, seed)
    if earlier:
        before = {key: value for key, value in earlier.items() if key not in ("seconds", "earlier")}
        runs = [*earlier.get("earlier", []), *([] if before.items() <= made.items() else [before])]
        made |= {"seconds": made["seconds"] + earlier["seconds"], **({"earlier": runs} if runs else {})}
    scratch.write_text(json.dumps({"provenance": made, **results}, indent=1, ensure_ascii=False) + "\n", "utf8")
    scratch.replace(file)
    return file


def provenance(script: str, started: float, seed: int = 0) -> dict[str, Any]:
    """Where a result comes from: script, date, commit, seed, seconds, threads, versions."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    made = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "script": script,
        "made": datetime.now(UTC).date().isoformat(),
        "commit": made.stdout.strip() or "unknown",
        "seed": seed,
        "seconds": round(time.perf_counter() - started),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def lines(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a file, or of a stored name; none where there is no file. What was cut off at its end is left out."""
    file = Path(file) if Path(file).suffix else RESULTS / f"{file}.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1] if line]


def append(file: str | Path, row: Mapping[str, Any]) -> None:
    """Add a row at the end of a file that several processes may write to; a cut line before it is dropped first."""
    file = Path(file)
    with FileLock(f"{file}.lock"), file.open("ab+") as f:
        f.seek(0)
        whole = f.read().rfind(b"\n") + 1
        f.truncate(whole)
        f.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` in minilib is where an error comes from: what Python or torch raise there is a fault.

    A method that cannot do something says so on purpose, and a row holds its reason in place of numbers.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    raised = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and Path(__file__).parents[1] in Path(code.co_filename).parents
