"""Run notebooks and store their outputs in them. Usage: run_notebooks.py [notebook ...] (default: all)."""

import sys
from pathlib import Path

import nbformat
from common import NOTEBOOKS, environment, fetch_model, say
from nbclient import NotebookClient


def main() -> int:
    if fetch_model():
        return 1
    paths = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        say(f"Running {path.name} (up to three minutes)")
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
        client.execute(cwd=str(path.parent), env=environment())
        for output in [output for cell in notebook.cells for output in cell.get("outputs", [])]:
            # A live widget dies with its kernel; the same output as HTML stays.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        # What changes with every machine would make every commit differ.
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
