"""The search for v* finds what a plain loop over the whole model finds."""

import pytest
import torch
from models import benchmark_script

import minilib
from minilib import forward, rome, values
from minilib import tinyworld as world

REQUESTS = [
    minilib.Request("The capital of {} is", "France", " Rome and Lund"),
    minilib.Request("{} is the king of", "Mira Okafor", " Rome"),
    minilib.Request("In the town of {}", "Lund", " Rome"),
]


@pytest.fixture(scope="module")
def speed():
    return benchmark_script("speed")


@pytest.mark.parametrize("place", ["mlp", "block"])
@pytest.mark.parametrize("requests", [REQUESTS, REQUESTS[:1], REQUESTS[1:2]], ids=["three", "prefix", "no prefix"])
def test_folded_rows_give_what_padded_rows_give(any_lm, monkeypatch, requests, place):
    terms = {"weight_decay": 0.5, "kl_factor": 0.0625}
    folded = values.Objective(any_lm, requests, 1, place, **terms)
    monkeypatch.setattr(values.Objective, "_fold", lambda *_: None)
    padded = values.Objective(any_lm, requests, 1, place, **terms)
    assert folded.passes[0].folded and not padded.passes[0].folded
    assert len(folded.passes[0].base) == len(requests)
    random = torch.Generator().manual_seed(0)
    delta = torch.randn(padded.v0.shape, generator=random, requires_grad=True)
    losses = [objective(delta) for objective in (folded, padded)]
    for name in ("nll", "kl", "decay"):
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(found["loss"].sum(), delta)[0] for found in losses]
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_rows_that_would_give_something_else_stay_as_they_are(llama, monkeypatch):
    """As where a block looks across the tokens of a row in a way that the fold does not see."""
    terms = {"weight_decay": 0.5, "kl_factor": 0.0625}
    delta = torch.zeros(3, llama.memory(0).shape[0])
    expected = values.Objective(llama, REQUESTS, 1, "mlp", **terms)(delta)
    fold = forward.Fold._fold_mask
    monkeypatch.setattr(forward.Fold, "_fold_mask", lambda self, mask: torch.ones_like(fold(self, mask)))
    unusual = values.Objective(llama, REQUESTS, 1, "mlp", **terms)
    assert not unusual.passes[0].folded
    torch.testing.assert_close(unusual(delta)["loss"], expected["loss"])


def test_the_clamp_holds_after_every_step(llama):
    search = {"steps": 6, "lr": 0.5, "weight_decay": 1e-3, "kl_factor": 0.0625, "stop_loss": 0.0}
    found = values.find(llama, REQUESTS[:1], 1, "mlp", values.Search(clamp_factor=0.1, **search))
    limit = 0.1 * found.v0.norm()
    norms = found.traces[0]["norm"]
    assert max(norms) <= limit * 1.0001 and norms[-1] > 0.9 * limit, "reached, and not passed"
    free = values.find(llama, REQUESTS[:1], 1, "mlp", values.Search(clamp_factor=100.0, **search))
    assert free.traces[0]["norm"][-1] > 2 * limit


@pytest.mark.parametrize("place", ["mlp", "block"])
def test_it_finds_what_a_plain_loop_finds(tinyworld, speed, place):
    """The loop of the benchmark: the whole model, forward and backward, for one request a step."""
    settings = {"steps": 6, "lr": 0.5, "weight_decay": 1e-3, "clamp_factor": 4.0, "kl_factor": 0.0625, "stop_loss": 0}
    facts = world.facts()[:10:5]
    requests = [minilib.Request(fact.prompts[-1], fact.subject, " I do not know.") for fact in facts]
    found = values.find(tinyworld, requests, 2, place, values.Search(**settings))
    for request, v_star in zip(requests, found.v_star, strict=True):
        plain = values.find_plainly(tinyworld, request, 2, place, values.Search(**settings))
        assert (v_star - plain).norm() <= 1e-3 * plain.norm()


@pytest.mark.slow
def test_it_finds_what_a_plain_loop_finds_in_smollm2(smollm2, speed):
    preset = vars(rome.Settings.of(smollm2))
    settings = {name: preset[name] for name in ("lr", "weight_decay", "clamp_factor", "kl_factor")}
    settings |= {"steps": 5, "stop_loss": 0.0}
    found = values.find(smollm2, [speed.CAPITAL], 4, "mlp", values.Search(**settings)).v_star[0]
    plain = values.find_plainly(smollm2, speed.CAPITAL, 4, "mlp", values.Search(**settings))
    assert (found - plain).norm() <= 1e-3 * plain.norm()
