"""In the kernel that runs a submission: a limit on each cell, and a note of what ran last, in case it stops the kernel.

The grader puts a cell with ``begin`` before the student's first, and one with ``settle`` behind the last and before
the checks.
"""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path
from typing import Any

from .checks import OutOfTime

AGAIN = 2  # a cell that fails because a name comes later is run again, so often at most


def begin(shell: Any, progress: str, seconds: float) -> None:
    """Watch every cell from now on, and let nothing connect to another machine.

    Parameters
    ----------
    shell : IPython shell
    progress : str
        A file that will hold the source of the cell that is running. ``<progress>.late`` is made when one runs out of
        time.
    seconds : float
        For one cell.
    """
    shell.course_failed = []
    known: dict[str, int] = {}  # the names that there were before the cell, and which objects they had

    def ring(*_: Any) -> None:
        Path(f"{progress}.late").touch()
        raise OutOfTime(f"this cell did not end within {seconds:.0f} seconds")

    def before(info: Any) -> None:
        Path(progress).write_text(info.raw_cell or "", encoding="utf8")
        known.clear()
        known.update((name, id(value)) for name, value in shell.user_ns.items())
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def after(result: Any) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(result.error_in_exec, NameError):
            shell.course_failed.append(result.info.raw_cell)
        if isinstance(result.error_in_exec, (MemoryError, OutOfTime)):  # what it has filled is let go
            for name in [name for name, value in shell.user_ns.items() if known.get(name) != id(value)]:
                del shell.user_ns[name]
            result.error_in_exec = None
            sys.last_value = sys.last_traceback = None
            gc.collect()

    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)
    sys.addaudithook(_stay_here)


def settle(shell: Any) -> None:
    """Run again what failed because a name came later, and forget what was done to the checks themselves."""
    for _ in range(AGAIN):
        failed, shell.course_failed = shell.course_failed, []
        for source in failed:
            shell.run_cell(source)
    for name in [name for name in sys.modules if name.startswith("minilib.course")]:
        del sys.modules[name]


def _stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise PermissionError(f"no network while grading: {address[0]} was asked for")
