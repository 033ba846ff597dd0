"""Stored results: small, found by name, and with where they come from."""

import json
import threading
import time

import pytest
import torch

from minilib import Request, load, memit, stored

NAMES = sorted(file.stem for file in stored.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_result_says_how_it_was_made(name):
    found = stored.load(name)
    about = found["provenance"]
    assert {"script", "made", "commit", "seed", "seconds", "threads", "versions"} <= set(about)
    assert (stored.RESULTS.parents[2] / about["script"]).is_file()
    assert len(found) > 1
    assert (stored.RESULTS / f"{name}.json").stat().st_size < 300_000


def test_what_is_saved_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path / "results")
    stored.save("made", {"rows": [1.5, "é"]}, "benchmarks/none.py", time.perf_counter() - 3, seed=7)
    found = stored.load("made")
    assert found["rows"] == [1.5, "é"]
    assert found["provenance"]["seed"] == 7 and found["provenance"]["seconds"] == 3
    assert found["provenance"]["script"] == "benchmarks/none.py"


def test_a_result_that_was_gone_on_with_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    first = {**stored.provenance("benchmarks/none.py", time.perf_counter() - 5), "commit": "abc"}
    for _ in range(2):  # the same earlier run is listed once
        stored.save("made", {"rows": [1]}, "benchmarks/none.py", time.perf_counter() - 3, earlier=first)
        about = stored.load("made")["provenance"]
        assert about["seconds"] == 8 and [run["commit"] for run in about["earlier"]] == ["abc"]
    stored.save("made", {"rows": [1]}, "benchmarks/none.py", time.perf_counter(), earlier=about)
    again = stored.load("made")["provenance"]
    assert again["seconds"] == 8 and again["earlier"] == about["earlier"]
    assert [file.name for file in tmp_path.iterdir()] == ["made.json"], "no scratch file is left"


def test_a_result_is_stored_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    stored.save("made", {"rows": [1]}, "benchmarks/none.py", time.perf_counter())

    def full(self, text, *_):
        with self.open("w") as file:
            file.write(text[:5])
        raise OSError("no space left on device")

    monkeypatch.setattr(stored.Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        stored.save("made", {"rows": [1, 2]}, "benchmarks/none.py", time.perf_counter())
    assert stored.load("made")["rows"] == [1]


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(ValueError, match="name 'sped': no such result is stored, only speed"):
        stored.load("sped")


# ---- a row a line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["comparison", "tuning"])
def test_every_row_says_how_it_was_made(name):
    rows = stored.lines(name)
    assert rows and len({row["job"] for row in rows}) == len(rows)
    for row in rows:
        assert {"script", "made", "commit", "seed", "versions"} <= set(row["provenance"]), row["job"]
        assert "scores" in row or "error" in row, row["job"]
        assert json.dumps(row, allow_nan=False)


def test_a_line_that_was_cut_is_dropped_and_made_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    for i in range(3):
        stored.append(file, {"job": str(i), "text": "ä\u2028"})
    whole = file.read_bytes()
    for cut in (1, 5, len(whole) // 3 - 1):
        file.write_bytes(whole[:-cut])
        assert [row["job"] for row in stored.lines(file)] == ["0", "1"]
        stored.append(file, {"job": "2", "text": "ä\u2028"})
        assert file.read_bytes() == whole


def test_many_may_write_to_one_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    writers = [
        threading.Thread(target=lambda i=i: [stored.append(file, {"job": f"{i} {j}"}) for j in range(20)])
        for i in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({row["job"] for row in stored.lines(file)}) == 80


def test_no_file_has_no_rows(tmp_path):
    assert stored.lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda: list(zip([1], [], strict=True)),
        lambda: int("many"),
        lambda: torch.empty(0).max(),
        lambda: exec("raise ValueError('in a test, which is not the library')"),
    ],
    ids=["zip", "number", "torch", "elsewhere"],
)
def test_a_fault_of_the_program_is_not_on_purpose(fault):
    with pytest.raises((ValueError, RuntimeError, IndexError)) as caught:
        fault()
    assert not stored.on_purpose(caught.value)


def test_what_a_method_says_it_cannot_do_is_on_purpose():
    lm = load("tinyworld")
    with pytest.raises(ValueError, match="covariance_weight") as caught:
        memit.edit(lm, Request("What pet does {} have?", "Ann", " None."), covariance_weight=-1.0)
    assert stored.on_purpose(caught.value)
