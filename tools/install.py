"""Make .venv and install the locked packages into it. Usage: install.py book|all

Run by any Python that fits (see python_fits.py), with the standard library alone. ``book`` is what builds the site from
stored outputs, without PyTorch; ``all`` is everything.
"""

import subprocess
import sys
from pathlib import Path

from common import LOG, ROOT, logged, show_failure, stage

VENV = ROOT / ".venv"
FITS = ROOT / "tools" / "python_fits.py"


def python() -> Path:
    """The Python of .venv."""
    return next((p for p in (VENV / "bin" / "python", VENV / "Scripts" / "python.exe") if p.exists()), VENV / "missing")


def fits() -> bool:
    """Whether .venv is there and its Python is one that the project allows."""
    return python().exists() and subprocess.run([python(), FITS], capture_output=True).returncode == 0


def steps(what: str) -> list[tuple[str, list[str | Path]]]:
    """Each step's name, and its command."""
    pip: list[str | Path] = [python(), "-m", "pip", "install", "--progress-bar", "off"]
    if what == "book":  # the lock is complete, so that nothing has to be resolved
        return [("packages that build the site", [*pip, "--no-deps", "-r", "requirements-book.lock"])]
    # pip resolves PyTorch's own dependencies: a CUDA wheel brings its libraries along, a CPU wheel has none.
    return [
        ("packages of the library, the tests and the course", [*pip, "-r", "requirements.lock"]),
        ("minilib", [*pip, "--no-deps", "--no-build-isolation", "-e", "."]),
    ]


def main() -> int:
    what = sys.argv[1]
    LOG.unlink(missing_ok=True)
    print(f"Installing into {VENV.name} (once)")
    if not fits():
        with stage(f"a virtual environment with Python {sys.version_info.major}.{sys.version_info.minor}"):
            status, said = logged([sys.executable, "-m", "venv", "--clear", VENV])
        if status:
            show_failure(said)
            return 1
    for name, command in steps(what):
        with stage(name):
            status, said = logged(command)
        if status:
            show_failure(said)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
