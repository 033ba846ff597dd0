"""Stored results: small, found by name, and with where they come from."""

import time

import pytest

from minilib import stored

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
