"""What the scripts in benchmarks/ share: rows that are kept, how a run goes on, and how it ends."""

import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from minilib import stored

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import architectures
import scores


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    return tmp_path


def test_a_row_that_is_there_is_not_made_again_and_says_who_made_it(results):
    rows = scores.Rows("some", time.perf_counter() - 5, {"facts": 3})
    rows.keep("runs", "first", lambda: {"score": 1})
    found = json.loads((results / "some.json").read_text())
    found["provenance"]["commit"] = "abc"
    (results / "some.json").write_text(json.dumps(found))
    again = scores.Rows("some", time.perf_counter() - 3, {"facts": 3})
    again.keep("runs", "first", lambda: pytest.fail("made again"))
    again.keep("runs", "second", lambda: {"score": 2})
    found = stored.load("some")
    assert [row["score"] for row in found["runs"]] == [1, 2]
    assert found["provenance"]["seconds"] == 8 and found["provenance"]["earlier"][0]["commit"] == "abc"
    with pytest.raises(ValueError, match="made with other facts"):
        scores.Rows("some", time.perf_counter(), {"facts": 4})


class Pool:
    """In the place of processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, name):
        future = Future()
        try:
            future.set_result(function(name))
        except Exception as error:
            future.set_exception(error)
        return future


def test_one_model_that_fails_costs_no_other_and_the_status_says_so(results, monkeypatch, capsys):
    def one(name):
        return {"about": 1 / (name != "gpt2-small")}

    monkeypatch.setattr(architectures, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(architectures, "one", one)
    monkeypatch.setattr(sys, "argv", ["architectures.py", "gpt2-small", "opt-small"])
    assert architectures.main() == 1
    assert [row["run"] for row in stored.load("architectures")["models"]] == ["opt-small"]
    assert "gpt2-small failed" in capsys.readouterr().err
    monkeypatch.setattr(architectures, "one", lambda name: {})
    assert architectures.main() == 0


@pytest.mark.slow
@pytest.mark.long
def test_a_stream_has_the_columns_that_are_stored(monkeypatch):
    import sequential

    from minilib import covariance, load, memit

    (first, *_) = stored.load("sequential")["MEMIT"]

    monkeypatch.setattr(sequential, "EDITS", 2)
    monkeypatch.setattr(sequential, "CHUNK", 1)
    monkeypatch.setattr(sequential, "ASKED", 3)
    monkeypatch.setitem(sequential.METHODS, "short", (memit.edit, {"steps": 2}))
    lm = load("smollm2-135m", progress=False)
    C = dict.fromkeys(memit.Settings.of(lm).layers, torch.eye(1536))
    made = sequential.stream(lm, "short", 0, C, [text[:100] for text in covariance.sample_texts()[:2]])
    assert made.keys() == first.keys() - {"run"} and [row["edits"] for row in made["rows"]] == [0, 1, 2]
    assert all(row.keys() == first["rows"][-1].keys() for row in made["rows"])
    assert not lm.edits, "undone at the end"
