"""One list of methods, and every module an attribute of minilib."""

import importlib
import inspect
import re
import sys
import unittest.mock
from pathlib import Path

import pytest

import minilib

ROOT = Path(__file__).resolve().parent.parent
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text("utf8")


@pytest.mark.parametrize("name", minilib.METHODS)
def test_each_method_has_its_kind_and_its_paper(name):
    method = minilib.METHODS[name]
    assert next(iter(inspect.signature(method.edit).parameters)) == "lm"
    assert method.edit.__module__ in (f"minilib.editors.{name}", "minilib.unlearning")
    assert method.kind in ("writes weights", "beside the weights", "trains")
    assert re.search(rf"eprint = {{{method.arxiv}}}", BIBLIOGRAPHY), f"{method.arxiv} is not in the bibliography"


def test_no_method_is_left_out():
    files = (ROOT / "minilib" / "editors").glob("*.py")
    editors = {path.stem for path in files if "\n@editor(Settings)\n" in path.read_text("utf8")}
    assert len(editors) == 5
    trained = {n for n, f in inspect.getmembers(minilib.unlearning, inspect.isfunction) if "forget" in str(f.__doc__)}
    named = set(minilib.METHODS)
    assert editors <= named
    public = {n for n in trained if "retain" in inspect.signature(getattr(minilib.unlearning, n)).parameters}
    assert {n for n in public if not n.startswith("_")} <= named


def test_every_module_is_an_attribute():
    with unittest.mock.patch.dict(sys.modules):  # put back at the end
        for name in [name for name in sys.modules if name.partition(".")[0] == "minilib"]:
            del sys.modules[name]  # as in a new process, none is imported yet
        new = importlib.import_module("minilib")
        assert new is not minilib and "minilib.attacks" not in sys.modules and "minilib.figures" not in sys.modules
        assert new.attacks.KINDS[-1] == "priming" and new.figures.BLUE and "tasks" in dir(new)
    assert sys.modules["minilib"] is minilib
    with pytest.raises(AttributeError, match="no attribute 'romee'; its modules are"):
        minilib.romee  # noqa: B018
