"""Renew requirements.lock: one list of exact versions for Linux, macOS and Windows, Python 3.11 to 3.13.

PyTorch's CUDA libraries are left out. pip finds them from the metadata of the very torch wheel that it
installs: a CUDA wheel brings them along, a CPU wheel does not, and nobody downloads gigabytes for nothing.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, say

TORCH = "torch==2.13.0"
CUDA = re.compile(r"(nvidia-|cuda-|triton)")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        # uv is needed here only, so it is not among the packages of the book.
        say("Resolving versions (about a minute)")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = next(
            path for path in (Path(folder, "bin/python"), Path(folder, "Scripts/python.exe")) if path.exists()
        )
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        constraint = Path(folder, "constraint.txt")
        constraint.write_text(TORCH + "\n")
        command = [python, "-m", "uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11"]
        command += [f"--extra={extra}" for extra in ("book", "course", "test")] + ["--constraint", constraint]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
        lines = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    kept = [line for line in lines if not CUDA.match(line)]
    (ROOT / "requirements.lock").write_text("\n".join(kept) + "\n")
    say(f"requirements.lock holds {len(kept)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
