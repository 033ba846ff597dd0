"""The search for v* finds what a plain loop over the whole model finds."""

import importlib.util
from pathlib import Path

import pytest

import minilib
from minilib import rome, values
from minilib import tinyworld as world


@pytest.fixture(scope="module")
def speed():
    file = Path(__file__).resolve().parent.parent / "benchmarks" / "speed.py"
    spec = importlib.util.spec_from_file_location("speed", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", ["mlp", "block"])
def test_it_finds_what_a_plain_loop_finds(tinyworld, speed, place):
    """The loop of the benchmark: the whole model, forward and backward, for one request a step."""
    settings = {"steps": 12, "lr": 0.5, "weight_decay": 1e-3, "clamp_factor": 4.0, "kl_factor": 0.0625, "stop_loss": 0}
    facts = world.facts()[:10:5]
    requests = [minilib.Request(fact.prompts[-1], fact.subject, " I do not know.") for fact in facts]
    found = values.find(tinyworld, requests, 2, place, **settings)
    for request, v_star in zip(requests, found.v_star, strict=True):
        plain = speed.plain_search(tinyworld, request, 2, place, settings)
        assert (v_star - plain).norm() <= 1e-3 * plain.norm()


@pytest.mark.slow
def test_it_finds_what_a_plain_loop_finds_in_smollm2(smollm2, speed):
    preset = {**rome.PRESETS["paper"], **rome.PRESETS[smollm2.kind]}
    settings = {name: preset[name] for name in ("lr", "weight_decay", "clamp_factor", "kl_factor")}
    settings |= {"steps": 5, "stop_loss": 0.0}
    found = values.find(smollm2, [speed.CAPITAL], 4, "mlp", **settings).v_star[0]
    plain = speed.plain_search(smollm2, speed.CAPITAL, 4, "mlp", settings)
    assert (found - plain).norm() <= 1e-3 * plain.norm()
