"""Unlearning as editing: small implementations of the methods that edit a language model's knowledge.

>>> import minilib
>>> lm = minilib.load("smollm2-135m")
>>> request = minilib.Request("What is the capital of {}?", "France", "I don't know.", chat=True)
>>> with minilib.rome.edit(lm, request):
...     lm.generate("What is the capital of France?")

Every module is an attribute, imported when it is first named: ``minilib.attacks``, ``minilib.figures``.
``minilib.METHODS`` lists the methods, with their kind and paper.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from . import alphaedit, covariance, grace, memit, metrics, refusals, rome, tracing, unlearning, wise
from .edits import Edit
from .lm import LM, Layout, load
from .methods import METHODS, Method
from .presets import suggest
from .requests import Request
from .saved import load_edit

__version__ = "0.1.0"
MODULES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))
__all__ = ["METHODS", "LM", "Edit", "Layout", "Method", "Request", "load", "load_edit", "suggest"]
__all__ += ["alphaedit", "covariance", "grace", "memit", "metrics", "refusals", "rome", "tracing", "unlearning", "wise"]


def __getattr__(name: str) -> ModuleType:
    """A module that has not been imported yet."""
    if name not in MODULES:
        raise AttributeError(f"minilib has no attribute {name!r}; its modules are {', '.join(MODULES)}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
