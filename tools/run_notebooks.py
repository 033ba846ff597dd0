"""Run the notebooks whose outputs are stale, several at once, and store their outputs in them.

Usage: run_notebooks.py [--all] [notebook ...]  (default: the stale ones)
"""

import argparse
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import fresh
import nbformat
from common import LOG, NOTEBOOKS, environment, fetch_model
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}  # what changes with every machine would make every commit differ


def execute(path: Path, workers: int) -> tuple[int, str]:
    """Run one notebook and store it; returns its seconds, and what failed. A notebook that fails stays as it was."""
    start = time.monotonic()
    before, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    try:
        run_cells(notebook, path.parent, workers)
    except CellExecutionError as error:
        cell = next(i for i, c in enumerate(notebook.cells, 1) if any(is_error(o) for o in c.get("outputs", [])))
        with LOG.open("a", encoding="utf8") as log:
            log.write(f"\n{path.name}, cell {cell}:\n{error}\n")
        return round(time.monotonic() - start), f"cell {cell}: {error.ename}: {error.evalue}"
    for cell, old in zip(notebook.cells, before.cells, strict=True):
        for output in cell.get("outputs", []):
            # A live widget dies with its kernel; the same output as HTML stays.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_bar(output)]
        if cell.cell_type == "code" and old.execution_count and same_outputs(cell, old):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    for cell in notebook.cells:
        fold(cell)
    notebook.metadata = {**METADATA, fresh.KEY: fresh.digests(notebook)}
    nbformat.write(notebook, path)
    return round(time.monotonic() - start), ""


def fold(cell: Any) -> None:
    """What the site leaves out of a code cell, by its tag, is folded in Jupyter and on Colab."""
    hidden = {"remove-cell", "remove-input", "hide-input", "hide-cell"} & set(cell.metadata.get("tags", []))
    if cell.cell_type == "code" and hidden:
        cell.metadata["jupyter"] = {**cell.metadata.get("jupyter", {}), "source_hidden": True}
        cell.metadata["cellView"] = "form"


def run_cells(notebook: Any, folder: Path, workers: int) -> None:
    """Run all cells in a fresh kernel."""
    for attempts_left in (2, 1, 0):
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
        try:
            # Bars of progress are no outputs to be stored.
            client.execute(cwd=str(folder), env={**environment(workers), "TQDM_DISABLE": "1"})
            return
        except RuntimeError as error:  # two kernels that start at once may take the same port
            if isinstance(error, DeadKernelError) or not attempts_left:
                raise


def quiet() -> None:
    """What kernels say beside their outputs goes to the log file."""
    with LOG.open("a") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())


def is_error(output: Any) -> bool:
    return bool(output["output_type"] == "error")


def is_bar(output: Any) -> bool:
    """Whether it is what is left of a progress bar, which a search shows when it takes long."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return re.search(r"\d+%\|.*\| \d+/\d+ \[", text) is not None


def same_outputs(new: Any, old: Any) -> bool:
    """Whether a cell says and shows what it did before."""

    def shown(cell: Any) -> list[Any]:  # a glued value has its name in the metadata
        return [(out.get("text"), out.get("data"), out.get("metadata", {})) for out in cell.get("outputs", [])]

    return shown(new) == shown(old)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true", help="run every notebook")
    given = parser.parse_args()
    everything = sorted(NOTEBOOKS.glob("*.ipynb"))
    paths = given.notebooks or (everything if given.all else list(fresh.all_stale()))
    if not paths:
        print("The outputs of all notebooks are current: nothing to run (--all runs them all the same)")
        return 0
    if fetch_model():
        return 1
    LOG.parent.mkdir(exist_ok=True)
    workers = min(len(paths), os.cpu_count() or 1)
    failures = 0
    # The longest first, by the size of what it stores: none is left to run alone at the end.
    paths.sort(key=lambda path: -path.stat().st_size)
    with ProcessPoolExecutor(workers, initializer=quiet) as pool:
        running = {pool.submit(execute, path, workers): path for path in paths}
        for number, future in enumerate(as_completed(running), 1):
            try:
                seconds, failure = future.result()
            except Exception as error:  # a dead kernel, say: the other notebooks go on
                seconds, failure = 0, f"{type(error).__name__}: {error}"
            failures += bool(failure)
            print(f"  {number:2}/{len(paths)} {running[future].stem:<32}{seconds:5} s  {failure}", flush=True)
    if failures:
        print(f"  {failures} failed and keep their outputs; the whole messages are in {LOG.name}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
