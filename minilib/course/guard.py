"""In the kernel that runs a submission: a limit on each cell, and a note of what ran last, in case it stops the kernel.

The grader puts ``guard.begin(...)`` before the student's first cell and ``guard.end()`` behind the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
from pathlib import Path
from typing import Any

from .checks import OutOfTime

AGAIN = 2  # a cell that fails because of the order is run again, so often at most


def name_of(source: str) -> str:
    """A cell's name by what stands in it."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:16]


def begin(shell: Any, progress: str, seconds: float) -> None:
    """Watch every cell from now on.

    Parameters
    ----------
    shell : IPython shell
    progress : str
        A file that holds the name of the cell that is running.
    seconds : float
        For one cell.
    """
    shell.course_failed = []

    def ring(*_: Any) -> None:
        raise OutOfTime(f"this cell did not end within {seconds:.0f} seconds")

    def before(info: Any) -> None:
        Path(progress).write_text(name_of(info.raw_cell or ""))
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def after(result: Any) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(result.error_in_exec or result.error_before_exec, NameError):
            shell.course_failed.append(result.info.raw_cell)

    shell.course_hooks = before, after
    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)


def end(shell: Any) -> None:
    """Run again what failed because a name came later, lift the limit, and forget changes to the checks themselves."""
    for _ in range(AGAIN):
        failed, shell.course_failed = shell.course_failed, []
        for source in failed:
            shell.run_cell(source)
    before, after = shell.course_hooks
    with contextlib.suppress(ValueError):
        shell.events.unregister("pre_run_cell", before)
        shell.events.unregister("post_run_cell", after)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for name in [name for name in sys.modules if name.startswith("minilib.course")]:
        del sys.modules[name]
