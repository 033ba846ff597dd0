"""Unlearning as editing: small implementations of the methods that edit a language model's knowledge.

>>> import minilib
>>> lm = minilib.load("smollm2-135m")
>>> request = minilib.Request("What is the capital of {}?", "France", "I don't know.", chat=True)
>>> with minilib.rome.edit(lm, request):
...     lm.generate("What is the capital of France?")

Every module is an attribute, whichever folder it lives in, and is imported when it is first named:
``minilib.attacks``, ``minilib.figures``. ``minilib.METHODS`` lists the methods, with their kind and paper.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from . import covariance, unlearning
from .architectures import Layout
from .edit_files import load_edit
from .editors import alphaedit, grace, memit, rome, wise
from .edits import Edit
from .loading import load
from .measure import metrics, refusals, tracing
from .methods import METHODS, Method
from .model import LM
from .requests import Request
from .show.reporting import report
from .suggesting import suggest

__version__ = "0.1.0"
_FOLDER = Path(__file__).parent
MODULES = {
    path.stem: ".".join(("", *path.relative_to(_FOLDER).with_suffix("").parts))
    for folder in (".", "editors", "unlearning", "measure", "worlds", "show")
    for path in sorted((_FOLDER / folder).glob("[a-z]*.py"))
}
"""Each module's name, and where it lives."""
__all__ = ["METHODS", "LM", "Edit", "Layout", "Method", "Request", "load", "load_edit", "report", "suggest"]
__all__ += ["alphaedit", "covariance", "grace", "memit", "metrics", "refusals", "rome", "tracing", "unlearning", "wise"]


def __getattr__(name: str) -> ModuleType:
    """A module that has not been imported yet."""
    if name not in MODULES:
        raise AttributeError(f"minilib has no attribute {name!r}; its modules are {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name], __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
