"""The moving picture of the landing page shows what the model does."""

import json
from pathlib import Path

import pytest
from models import benchmark_script

from minilib import refusals

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "book" / "_static"


@pytest.fixture(scope="module")
def script():
    return benchmark_script("landing_picture")


def stored() -> dict:
    return json.loads((STATIC / "landing.json").read_text())


def test_the_pictures_are_made_from_the_stored_numbers(script):
    rows = stored()["rows"]
    assert (STATIC / "landing.html").read_text() == script.page(rows)
    assert (STATIC / "readme.svg").read_text() == script.picture(rows, script.STYLE) + "\n"
    assert set(stored()["provenance"]) == {"made", "commit", "versions", "seconds", "seed"}


@pytest.mark.slow
def test_the_stored_numbers_are_the_models(script, smollm2):
    expected = [row for row in stored()["rows"] if row["strength"] in (0.0, 1.0)]
    for row, now in zip(expected, script.measure(smollm2, [0.0, 1.0]), strict=True):
        assert refusals.is_refusal(now["answer"]) == refusals.is_refusal(row["answer"])
        assert now["former"] == pytest.approx(row["former"], abs=0.25)
        assert now["refusal"] == pytest.approx(row["refusal"], abs=0.25)
