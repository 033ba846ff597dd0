"""The tool that runs notebooks as other processors would: what it shows of an assertion."""

import ast
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "report_assertions.py"


@pytest.fixture
def report():
    spec = importlib.util.spec_from_file_location("report_assertions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("test", "values"),
    [
        ("x[0] > 0.5", "0.3 > 0.5"),
        ("0.2 < x[0] < 0.25 and not x[1] < 0.5", "0.2 < 0.3 < 0.25; 0.9 < 0.5"),
        ("all(v > 0.5 for v in x)", "[0.3, 0.9] > [0.5, 0.5]"),
        ("'Paris' in text", "Paris in the capital of France"),
        ("len(x) == 3, 'a message'", "2 == 3"),
    ],
)
def test_an_assertion_that_fails_shows_what_it_found_and_the_rest_runs(report, monkeypatch, test, values):
    shown = []
    monkeypatch.setattr(report, "display", lambda bundle, raw: shown.append(bundle["application/json"]))
    code = f"x, text = [0.3, 0.9], 'the capital of France'\nassert {test}\nassert x\ndone = True"
    names = {"_check_assertion": report.check}
    exec(compile(report.Assertions().visit(ast.parse(code)), "cell", "exec"), names)
    assert names["done"] and [row["values"] for row in shown] == [values]
