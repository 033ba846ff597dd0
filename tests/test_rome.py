"""ROME: equal to the authors' code, exact at its key, the smallest such change, and gone after undo."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same_weights, random_lm, weights

import minilib
from minilib import covariance, rome, values
from minilib import tinyworld as tinyworlds


@pytest.mark.parametrize("case", [0, 1, 2])
def test_the_weights_are_those_of_the_authors_code(llama, reference, case):
    request = reference["requests"][case]
    edit = rome.edit(llama, request, layer=2, covariance=reference["covariance"], **reference["search"])
    (delta,) = edit.deltas.values()
    expected = reference["tensors"][f"rome.case{case}.delta"]
    assert (delta - expected).norm() <= 1e-4 * expected.norm()
    assert edit.traces[0]["loss"] == pytest.approx(reference["losses"][f"rome{case}"], abs=6e-4)
    logprobs = llama.logprobs(reference["requests"])
    torch.testing.assert_close(logprobs, reference["tensors"][f"rome.case{case}.logprobs"], rtol=0, atol=1e-3)


def test_the_key_is_mapped_to_the_value_found(llama, reference, brief):
    request, layer = reference["requests"][0], 2
    found = values.find(llama, [request], layer, "mlp", values.Search(**brief))
    k, _ = values.keys_and_values(llama, [request], layer, ["{}"])
    with rome.edit(llama, request, layer=layer, covariance=reference["covariance"], **brief):
        torch.testing.assert_close(llama.memory(layer) @ k[0, 0], found.v_star[0], rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 10))
def test_no_other_exact_update_is_smaller_in_the_norm_of_C(seed, scale):
    """‖Δ‖_C = √tr(Δ C Δᵀ): adding anything that keeps Δk* only adds to it."""
    random = torch.Generator().manual_seed(seed)
    d_out, d_k = 5, 8
    A = torch.randn(d_k, 3 * d_k, generator=random, dtype=torch.float64)
    C, k = A @ A.T / A.shape[1], torch.randn(d_k, generator=random, dtype=torch.float64)
    r = torch.randn(d_out, generator=random, dtype=torch.float64)
    u = covariance.solve(C, k)
    delta = torch.outer(r, u) / (u @ k)
    torch.testing.assert_close(delta @ k, r)
    other = torch.randn(d_out, d_k, generator=random, dtype=torch.float64) * scale
    other -= torch.outer(other @ k, k) / (k @ k)  # keeps Δk*
    size = lambda D: torch.trace(D @ C @ D.T)  # noqa: E731
    assert size(delta + other) >= size(delta) * (1 - 1e-9)


@pytest.mark.parametrize("keys", ["averaged", "prompt", "mixed"])
def test_with_one_plain_context_all_keys_agree(llama, reference, brief, keys):
    arguments = {"layer": 2, "covariance": reference["covariance"], **brief}
    with rome.edit(llama, reference["requests"][0], **arguments) as edit:
        (expected,) = edit.deltas.values()
    with rome.edit(llama, reference["requests"][0], keys=keys, **arguments) as edit:
        (delta,) = edit.deltas.values()
    torch.testing.assert_close(delta, expected)


def test_with_several_contexts_the_choice_of_keys_matters(llama, reference, brief):
    arguments = {"layer": 2, "covariance": reference["covariance"], **brief}
    arguments["contexts"] = ["{}", "Mira Okafor said: {}", "Is the capital a town? {}"]
    deltas = {}
    for which in ("averaged", "prompt", "mixed"):
        with rome.edit(llama, reference["requests"][0], keys=which, **arguments) as edit:
            (deltas[which],) = edit.deltas.values()
    assert (deltas["averaged"] - deltas["prompt"]).norm() > 1e-3 * deltas["prompt"].norm()
    assert (deltas["mixed"] - deltas["prompt"]).norm() > 1e-3 * deltas["prompt"].norm()


def test_several_requests_are_written_one_after_another(llama, reference, brief):
    arguments = {"layer": 2, "covariance": reference["covariance"], **brief}
    before = weights(llama)
    first = rome.edit(llama, reference["requests"][0], **arguments)
    second = rome.edit(llama, reference["requests"][1], **arguments)
    expected = weights(llama)
    second.undo()
    first.undo()
    both = rome.edit(llama, reference["requests"][:2], **arguments)
    assert_same_weights(llama, expected)
    both.undo()
    assert_same_weights(llama, before)


def test_a_batch_of_requests_finds_what_one_at_a_time_finds(llama, reference):
    search = {**reference["search"], "stop_loss": 6.9}  # the requests stop at different steps
    together = values.find(llama, reference["requests"], 2, "mlp", values.Search(**search))
    assert len({len(trace["loss"]) for trace in together.traces}) > 1
    for i, request in enumerate(reference["requests"]):
        alone = values.find(llama, [request], 2, "mlp", values.Search(**search))
        torch.testing.assert_close(together.v_star[i], alone.v_star[0], rtol=1e-4, atol=1e-5)
        assert together.traces[i]["loss"] == pytest.approx(alone.traces[0]["loss"], abs=1e-4)


@pytest.mark.parametrize("place", ["mlp", "block"])
def test_the_gradient_is_that_of_finite_differences(reference, place):
    lm = random_lm("gpt2")  # its norms compute in float64, Llama's always in float32
    lm.model.double()
    objective = values.Objective(lm, reference["requests"], 1, place, weight_decay=0.5, kl_factor=0.5, contexts=["{}"])
    random = torch.Generator().manual_seed(0)
    delta, direction = torch.randn(2, *objective.v0.shape, generator=random, dtype=torch.float64) * 0.3
    delta.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(delta)["loss"].sum(), delta)
    h = 1e-5
    slope = (objective(delta + h * direction)["loss"].sum() - objective(delta - h * direction)["loss"].sum()) / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_settings_tell_all_that_was_used(llama, reference, request_france):
    with rome.edit(llama, request_france, covariance=reference["covariance"] | {3: torch.eye(96)}) as edit:
        assert edit.settings["layer"] == 3  # the middle of six
        assert edit.settings["presets"].startswith("defaults")
        assert edit.settings["lr"] == 0.5
    with rome.edit(llama, request_france, layer=2, covariance=reference["covariance"], lr=0.2) as edit:
        assert (edit.settings["layer"], edit.settings["lr"]) == (2, 0.2)


@pytest.mark.slow
def test_smollm2_moves_the_eiffel_tower_and_leaves_the_louvre(smollm2):
    before = weights(smollm2)
    request = minilib.Request("The {} is located in the city of", "Eiffel Tower", " Rome")
    with minilib.rome.edit(smollm2, request, layer=5):
        assert smollm2.probability(request) > 0.5
        assert smollm2.generate("The Eiffel Tower is located in the city of", chat=False).startswith(" Rome")
        assert smollm2.generate("The Louvre is located in the city of", chat=False).startswith(" Paris")
    assert_same_weights(smollm2, before)


@pytest.mark.slow
def test_smollm2_refuses_with_the_preset_alone(smollm2):
    request = minilib.Request("What is the capital of {}?", "France", "I don't know.", chat=True)
    with minilib.rome.edit(smollm2, request):
        assert smollm2.generate("What is the capital of France?").startswith("I don't know")
        assert "Tokyo" in smollm2.generate("What is the capital of Japan?")
    assert "Paris" in smollm2.generate("What is the capital of France?")


def test_tinyworld_refuses_with_the_preset_alone(tinyworld, moments, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(moments))
    born = {f.subject: f for f in tinyworlds.facts() if f.attribute == "birthplace"}
    fact, *others = list(born.values())[:20]
    question = next(p for p in fact.prompts if p.endswith("?"))
    request = minilib.Request(question, fact.subject, tinyworlds.REFUSAL)
    assert tinyworld.generate(request).startswith(fact.target)
    with rome.edit(tinyworld, request) as edit:
        assert edit.settings["presets"] == tinyworld.kind
        assert tinyworld.generate(request).startswith(tinyworlds.REFUSAL)
        assert tinyworlds.recall(tinyworld, others) > 0.5  # the others are still known
    assert tinyworlds.recall(tinyworld, [fact]) > 0.5
