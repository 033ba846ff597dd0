"""Unlearning as editing: small implementations of the methods that edit a language model's knowledge.

>>> import minilib
>>> lm = minilib.load("smollm2-135m")
>>> request = minilib.Request("What is the capital of {}?", "France", "I don't know.", chat=True)
>>> with minilib.rome.edit(lm, request):
...     lm.generate("What is the capital of France?")
"""

from . import (
    alphaedit,
    authors,
    contexts,
    covariance,
    edits,
    grace,
    hooks,
    keys,
    memit,
    metrics,
    readers,
    recipes,
    refusals,
    requests,
    rome,
    sequence,
    tracing,
    unlearning,
    values,
    wise,
)
from .edits import Edit
from .lm import LM, Layout, load
from .requests import Request
from .saved import load_edit

__version__ = "0.1.0"
__all__ = ["LM", "Edit", "Layout", "Request", "load", "load_edit"]
__all__ += [
    "alphaedit",
    "authors",
    "contexts",
    "covariance",
    "edits",
    "grace",
    "hooks",
    "keys",
    "memit",
    "metrics",
    "readers",
    "recipes",
    "refusals",
    "requests",
    "rome",
    "sequence",
    "tracing",
    "unlearning",
    "values",
    "wise",
]
