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


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(ValueError, match="name 'sped': no such result is stored, only speed"):
        stored.load("sped")
