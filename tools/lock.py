"""Renew the two lists of exact versions for Linux, macOS and Windows, Python 3.11 to 3.13.

requirements.lock has every package, requirements-book.lock those of them that build the site.

PyTorch's CUDA libraries are left out. pip finds them from the metadata of the very torch wheel that it
installs: a CUDA wheel brings them along, a CPU wheel does not, and nobody downloads gigabytes for nothing.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from common import ROOT, say

TORCH = "torch==2.13.0"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
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
        pinned = Path(folder, "pinned.txt")
        pinned.write_text(TORCH + "\n")
        uv: list[str | Path] = [python, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11"]
        uv += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
        extras = [f"--extra={extra}" for extra in ("book", "course", "test")]
        everything = compiled([*uv, "pyproject.toml", *extras, "--constraint", pinned])
        everything = [line for line in everything if not CUDA.match(line)]
        write("requirements.lock", everything)
        site = Path(folder, "site.in")
        site.write_text("\n".join(PROJECT["optional-dependencies"]["book"]) + "\n")
        write("requirements-book.lock", compiled([*uv, site, "--constraint", ROOT / "requirements.lock"]))
    return 0


def compiled(command: list[str | Path]) -> list[str]:
    """The lines of a lock file, as uv resolves them."""
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def write(name: str, lines: list[str]) -> None:
    (ROOT / name).write_text("\n".join(lines) + "\n")
    say(f"{name} holds {len(lines)} packages")


if __name__ == "__main__":
    sys.exit(main())
