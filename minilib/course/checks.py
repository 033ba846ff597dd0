"""Calling what a student wrote, and comparing what it returns with the right answer and with the likely wrong ones.

A check fails with an ``AssertionError`` whose message is for the student: it names the mistake where the answer is
one that a known mistake gives, and says how far it is off where it is not.
"""

from __future__ import annotations

import contextlib
import copy
import html
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SECONDS = 20.0  # for one call


class OutOfTime(BaseException):
    """Not an ``Exception``: code that catches all of those must not catch this."""


@dataclass(frozen=True)
class Verdict:
    """What a check says to a student; a notebook shows it when it is a cell's last value."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.message}"

    def _repr_html_(self) -> str:
        text = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(repr(self)))
        colour = "green" if self.passed else "firebrick"
        return f'<div style="border-left: 4px solid {colour}; padding-left: 1em">{text}</div>'


def step(check: Callable[..., str | None], *answers: Any) -> Verdict:
    """Run the check of a step on a student's answers, as the cell below each step of an assignment does.

    Parameters
    ----------
    check : callable
        A ``check_…`` function of an assignment's module.
    *answers
        What it takes: the student's functions or results, and the number behind its problem, ``VALUES``. With
        another number the check draws another problem, as grading does.

    What the check returns, a score for instance, stands in the message.
    """
    try:
        reached = check(*answers)
    except AssertionError as error:
        return Verdict(False, str(error) or "Not right yet")
    except Exception as error:
        return Verdict(False, f"The check itself stops with {type(error).__name__}: {error}")
    return Verdict(True, f"Right, for these numbers{f' ({reached})' if reached else ''}. Grading draws others.")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in what runs longer; where the system has no alarm (Windows, threads), there is no limit."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime(f"it did not end within {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def call(
    function: Any,
    *arguments: Any,
    name: str,
    seconds: float = SECONDS,
    may_change: Sequence[int] = (),
    returns: bool = True,
    late: str = "is there a loop that never ends?",
) -> Any:
    """What a student's function returns for copies of the arguments.

    Parameters
    ----------
    function : callable
        None where the notebook does not define it.
    name : str
        As the student knows it.
    seconds : float, default 20
    may_change : list of int
        Places of arguments that are handed over themselves, as models are, and that it may change.
    returns : bool, default True
        Whether it has to return something.
    late : str, default about a loop that never ends
        What a student is told to look for when the time is over.

    Raises
    ------
    AssertionError
        When it is missing, raises, leaves Python, does not end, asks for too much memory, returns nothing, or
        changes an argument in place.
    """
    assert function is not None, f"`{name}` is not defined: run the cell that defines it, and keep its name"
    assert callable(function), f"`{name}` must be a function, not {type(function).__name__}"
    given = [a if i in may_change else copy.deepcopy(a) for i, a in enumerate(arguments)]
    try:
        with limited(seconds):
            found = function(*given)
    except OutOfTime:
        raise AssertionError(f"`{name}` did not return within {seconds:.0f} s: {late}") from None
    except KeyboardInterrupt:
        raise
    except AssertionError as error:  # of a function that was handed to it
        raise AssertionError(str(error) or f"an `assert` in `{name}` does not hold") from error
    except MemoryError as error:
        raise AssertionError(f"`{name}` asks for more memory than it may have ({error})") from error
    except Exception as error:
        if "allocate memory" in str(error):
            raise AssertionError(f"`{name}` asks for more memory than it may have ({error})") from error
        raise AssertionError(f"`{name}` stops with {type(error).__name__}: {error}{_where(error, function)}") from error
    except BaseException as error:
        raise AssertionError(f"`{name}` leaves Python ({type(error).__name__}): a function returns") from error
    nothing = f"`{name}` returns nothing: is there a `return` with your answer?"
    assert not returns or (found is not None and found is not ...), nothing
    for i, (a, b) in enumerate(zip(arguments, given, strict=True)):
        kept = i in may_change or _same(a, b)
        assert kept, f"`{name}` changes its argument number {i + 1} in place: leave what you are given as it is"
    return found


def filled(found: Any, what: str) -> None:
    """Assert that something stands where the notebook had three dots."""
    assert found is not ..., f"{what} is not there yet: put your code in the place of `...`"


def hooked(model: nn.Module) -> int:
    """How many hooks a model has, without those that transformers leaves behind and that change nothing."""
    every = (hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return sum(not str(getattr(hook, "__module__", "")).startswith("transformers") for hook in every)


def trainable(function: Any, *arguments: Any, name: str) -> None:
    """Assert that what a student's function returns for arguments with a gradient has one too."""
    found = call(function, *arguments, name=name)
    assert isinstance(found, Tensor) and found.requires_grad, (
        f"`{name}` is right and has no gradient, so nothing can be trained with it: keep it a tensor, without "
        "`.item()`, `.detach()` and `torch.no_grad()`"
    )


def _where(error: Exception, function: Any) -> str:
    """The student's line in which it happened, where it can be told."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", in your line `{lines[-1]}`" if lines and lines[-1] else ""


def _same(a: Any, b: Any) -> bool:
    """Whether tensors, also in lists and dictionaries, are the same; of other things nothing is asked."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(x, b[key]) for key, x in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return True


def compare(
    found: Any, expected: Tensor, what: str, suspects: Sequence[tuple[str, Tensor]] = (), tolerance: float = 1e-3
) -> None:
    """Assert that an answer is the expected one, or say which mistake it looks like.

    Parameters
    ----------
    found : Tensor, or a number where one is expected
    expected : Tensor
    what : str
        What it is, at the beginning of a sentence, as ``"C"`` or ``"Your update"``.
    suspects : mapping, optional
    tolerance : float, default 1e-3
        Of ‖found − expected‖ against ‖expected‖.
    """
    filled(found, what)
    number = isinstance(found, (int, float)) and not expected.dim()
    assert number or isinstance(found, Tensor), f"{what} must be a tensor, not {type(found).__name__}"
    assert not (isinstance(found, Tensor) and found.is_complex()), f"{what} is complex: real numbers are asked for"
    found = torch.as_tensor(found).detach().cpu().to(expected.dtype)
    right = _distance(found, expected)
    # Mistakes come close to each other and to the right answer: the nearest is meant.
    near = [
        (_distance(found, wrong), message)
        for message, wrong in suspects
        if _near(found, wrong, tolerance) and not _near(wrong, expected, tolerance)
    ]
    if near and not min(near)[0] >= right:
        raise AssertionError(min(near)[1])
    shape, wanted = tuple(found.shape), tuple(expected.shape)
    assert shape == wanted, f"{what} has the shape {shape} and should have {wanted}"
    assert found.isfinite().all(), f"{what} holds NaN or infinity"
    if not _near(found, expected, tolerance):
        off = right / expected.norm().item()
        factor = ((found * expected).sum() / expected.square().sum()).item()
        other = f"it is {factor:.3g} times" if factor > 0 else f"its sign is wrong: it is {factor:.3g} times"
        hint = f"; {other} what it should be" if factor and _near(found, factor * expected, tolerance) else ""
        size = f"{100 * off:.2g}% of its size" if off < 1 else f"{off:.2g} times its size"
        raise AssertionError(f"{what} is off by {size}{hint}")


def _distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖, infinite for another shape."""
    return (found - expected).norm().item() if found.shape == expected.shape else float("inf")


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape or not found.isfinite().all():
        return False
    return bool((found - expected).norm() <= tolerance * expected.norm() + 1e-12)
