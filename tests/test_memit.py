"""MEMIT: equal to the authors' code, the minimiser it claims to be, ROME in the limit, and gone after undo."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same_weights, random_lm, weights

import minilib
from minilib import Request, covariance, memit, rome, values, window
from minilib import tinyworld as tinyworlds

LAYERS = [1, 2, 3]


@pytest.fixture
def arguments(reference, brief) -> dict:
    about = {"layers": LAYERS, "covariance": reference["covariance"], "covariance_weight": 50.0}
    return {**about, **brief}


def test_the_weights_are_those_of_the_authors_code(llama, reference, arguments):
    arguments |= reference["search"]
    edit = memit.edit(llama, reference["requests"], **arguments)
    for layer in LAYERS:
        expected = reference["tensors"][f"memit.layer{layer}.delta"]
        delta = edit.deltas[llama.weight_name(layer)]
        assert (delta - expected).norm() <= 1e-4 * expected.norm()
    printed = reference["losses"]["memit"]
    found = [loss for trace in edit.traces for loss in trace["loss"]]
    assert found == pytest.approx(printed, abs=6e-4)
    logprobs = llama.logprobs(reference["requests"])
    torch.testing.assert_close(logprobs, reference["tensors"]["memit.logprobs"], rtol=0, atol=1e-3)


def random_problem(seed: int, d_k: int = 9, d_out: int = 4, n: int = 3):
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(d_k, 4 * d_k, generator=random, dtype=torch.float64)
    K1 = torch.randn(d_k, n, generator=random, dtype=torch.float64)
    R = torch.randn(d_out, n, generator=random, dtype=torch.float64)
    return A @ A.T / A.shape[1], K1, R


@given(seed=st.integers(0, 2**16), weight=st.floats(1e-3, 1e4))
def test_the_small_inverse_gives_the_papers_equation(seed, weight):
    C, K1, R = random_problem(seed)
    expected = R @ K1.T @ torch.linalg.inv(weight * C + K1 @ K1.T)
    torch.testing.assert_close(R @ memit.spread(K1, covariance.cholesky(C), weight), expected, rtol=1e-6, atol=1e-9)


@given(seed=st.integers(0, 2**16), weight=st.floats(1e-2, 1e3), scale=st.floats(1e-3, 1))
def test_no_other_change_is_cheaper(seed, weight, scale):
    C, K1, R = random_problem(seed)
    delta = R @ memit.spread(K1, covariance.cholesky(C), weight)
    other = delta + scale * torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)).double()
    cost = lambda D: (weight * torch.trace(D @ C @ D.T) + (D @ K1 - R).pow(2).sum()).item()  # noqa: E731
    assert cost(other) > cost(delta)


@given(seed=st.integers(0, 2**16), weight=st.floats(1e-3, 1e4))
def test_earlier_keys_stand_beside_the_second_moment(seed, weight):
    C, K, R = random_problem(seed, n=5)
    K1, Kp, R = K[:, :3], K[:, 3:], R[:, :3]
    expected = R @ K1.T @ torch.linalg.inv(weight * C + Kp @ Kp.T + K1 @ K1.T)
    found = R @ memit.spread(K1, covariance.cholesky(C), weight, Kp)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_later_edit_spares_what_an_earlier_one_wrote(llama, reference, arguments, tmp_path):
    """With almost no weight for ordinary keys the earlier ones keep their values, to rounding."""
    first, second = reference["requests"][:2]
    arguments |= {"layers": [2], "covariance_weight": 1e-3}
    one = memit.edit(llama, first, **arguments)
    assert one.keys[2].shape == (llama.memory(2).shape[1], 1)
    moved = {}
    for name, previous in {"spared": [one], "not": []}.items():
        with memit.edit(llama, second, previous=previous, **arguments) as two:
            moved[name] = (two.deltas[llama.weight_name(2)] @ one.keys[2]).norm().item()
    assert moved["spared"] < 0.01 * moved["not"]
    one.save(tmp_path)
    one.undo()
    again = minilib.load_edit(llama, tmp_path)
    with memit.edit(llama, second, previous=again, **arguments) as two:
        spared = (two.deltas[llama.weight_name(2)] @ again.keys[2]).norm().item()
    assert spared < 0.01 * moved["not"], "a loaded edit has its keys"
    with pytest.raises(ValueError, match=r"was written at layers \[2\], not \[1\]"):
        memit.edit(llama, second, previous=again, **{**arguments, "layers": [1]})
    with pytest.raises(TypeError, match="made by memit.edit"):
        memit.edit(llama, second, previous=[3], **arguments)


@given(seed=st.integers(0, 2**16))
def test_for_one_fact_and_no_weight_it_is_romes_row(seed):
    C, K1, _ = random_problem(seed, n=1)
    u = covariance.solve(C, K1[:, 0])
    row = memit.spread(K1, covariance.cholesky(C), 1e-9)[0]
    torch.testing.assert_close(row, u / (u @ K1[:, 0]), rtol=1e-6, atol=1e-9)


def test_one_request_in_one_layer_tends_to_rome(llama, reference, arguments, brief):
    """With λ → 0 the block's output becomes z exactly, as ROME's W maps k* to v*."""
    request, layer = reference["requests"][0], 2
    arguments |= {"layers": [layer], "covariance_weight": 1e-6}
    z = values.find(llama, [request], layer, "block", values.Search(**brief))
    k, Wk = (x[0, 0] for x in values.keys_and_values(llama, [request], layer, ["{}"]))
    u = covariance.solve(reference["covariance"][layer], k).float()
    residual = (z.v_star - z.v0)[0]
    with memit.edit(llama, request, **arguments) as edit:
        (delta,) = edit.deltas.values()
        torch.testing.assert_close(delta, torch.outer(residual, u) / (u @ k), rtol=1e-3, atol=1e-5)
        _, h = window.keys_and_states(llama, [request], layer, ["{}"], last=layer)
        torch.testing.assert_close(h[0, 0], z.v_star[0], rtol=1e-4, atol=1e-4)


@functools.cache
def batch_in_order(*order):
    """The changes that three requests make, given in this order."""
    lm = random_lm("llama")
    requests = [
        Request("The capital of {} is", "France", " Rome"),
        Request("{} was born in the town of", "Mira Okafor", " Lund"),
        Request("{} was in the town of", "The capital", " unknown to me"),
    ]
    C = {1: torch.eye(64), 2: torch.eye(64)}
    arguments = {"layers": [1, 2], "covariance": C, "covariance_weight": 0.1, "steps": 4, "lr": 0.1}
    return memit.edit(lm, [requests[i] for i in order], **arguments).deltas


@settings(max_examples=5)
@given(order=st.permutations([0, 1, 2]))
def test_the_order_of_a_batch_does_not_matter(order):
    expected = batch_in_order(0, 1, 2)
    for name, delta in batch_in_order(*order).items():
        assert (delta - expected[name]).norm() <= 1e-4 * expected[name].norm()


def test_a_batch_finds_the_states_that_one_at_a_time_finds(llama, reference):
    search = {**reference["search"], "stop_loss": 6.9}  # the requests stop at different steps
    together = values.find(llama, reference["requests"], 3, "block", values.Search(**search))
    assert len({len(trace["loss"]) for trace in together.traces}) > 1
    for i, request in enumerate(reference["requests"]):
        alone = values.find(llama, [request], 3, "block", values.Search(**search))
        torch.testing.assert_close(together.v_star[i], alone.v_star[0], rtol=1e-4, atol=1e-5)


def test_the_last_layer_closes_the_gap(llama, reference, arguments, brief):
    """Each layer writes its share; with a small λ the hidden state of the last block is z at the end."""
    requests = reference["requests"]
    z = values.find(llama, requests, LAYERS[-1], "block", values.Search(**brief)).v_star
    _, before = window.keys_and_states(llama, requests, 1, ["{}"], last=3)
    missing = []
    for weight in (50.0, 1e-3):
        with memit.edit(llama, requests, **{**arguments, "covariance_weight": weight}):
            _, h = window.keys_and_states(llama, requests, 1, ["{}"], last=3)
            missing.append(((z - h[:, 0]).norm() / (z - before[:, 0]).norm()).item())
    assert missing[1] < 1e-3 < missing[0] < 1


def test_undo_is_exact(llama, reference, arguments):
    before = weights(llama)
    edit = memit.edit(llama, reference["requests"], **arguments)
    assert len(edit.deltas) == 3 and all(d.norm() > 0 for d in edit.deltas.values())
    edit.undo()
    assert_same_weights(llama, before)


def test_it_holds_on_every_architecture_or_is_refused(any_lm):
    request = Request("The capital of {} is", "France", " Rome")
    before, d_k = weights(any_lm), any_lm.memory(1).shape[1]
    arguments = {"layers": [1, 2], "covariance": {1: torch.eye(d_k), 2: torch.eye(d_k)}, "covariance_weight": 1e-6}
    search = {"steps": 5, "lr": 0.3, "weight_decay": 1e-3, "clamp_factor": 4.0, "kl_factor": 0.0625}
    if any_lm.post_norm(1) is not None:
        with pytest.raises(ValueError, match=r"normalise their MLP.*give one layer, such as layers=\[2\]"):
            memit.edit(any_lm, request, **arguments)
        z = values.find(any_lm, [request], 2, "mlp", values.Search(**search)).v_star[0]
        with memit.edit(any_lm, request, **arguments | {"layers": [2]}, **search):
            _, v = values.keys_and_values(any_lm, [request], 2, ["{}"])
            torch.testing.assert_close(v[0, 0], z, rtol=1e-3, atol=1e-3)  # the one W returns what was asked for
    else:
        z = values.find(any_lm, [request], 2, "block", values.Search(**search)).v_star[0]
        with memit.edit(any_lm, request, **arguments, **search) as edit:
            _, h = window.keys_and_states(any_lm, [request], 1, ["{}"], last=2)
            torch.testing.assert_close(h[0, 0], z, rtol=1e-3, atol=1e-3)  # the last block says what was asked for
            assert edit.deltas.keys() == {any_lm.weight_name(1), any_lm.weight_name(2)}
            assert all(d.shape == any_lm.model.get_parameter(n).shape for n, d in edit.deltas.items())
    assert_same_weights(any_lm, before)


def test_prompts_that_share_a_key_are_averaged_and_without_weight_refused(llama, reference, arguments):
    """Up to the subject both prompts are the same, so no change of W can tell them apart."""
    pair = [Request("{} is in", "France", " Lund"), Request("{} has the capital", "France", " Rome")]
    memit.edit(llama, pair, **arguments).undo()
    before = weights(llama)
    with pytest.raises(ValueError, match=r"covariance_weight .* too small .* keys are the same"):
        memit.edit(llama, pair, **{**arguments, "covariance_weight": 1e-15})
    assert_same_weights(llama, before)


def test_a_model_without_preset_gets_the_middle_five_layers(llama, reference):
    C = {layer: torch.eye(96) for layer in range(6)}
    with memit.edit(llama, reference["requests"][0], covariance=C, steps=2) as edit:
        assert edit.settings["layers"] == [1, 2, 3, 4, 5]
        assert edit.settings["presets"] == "defaults (no preset for this model; layers: the middle five)"
        assert edit.settings["covariance_weight"] == 15000


def test_tinyworld_refuses_eight_at_once_with_the_preset_alone(tinyworld, moments, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(moments))
    born = [f for f in tinyworlds.facts() if f.attribute == "birthplace"][:30]
    requests = [Request(f.prompts[-1], f.subject, tinyworlds.REFUSAL) for f in born[:8]]
    with memit.edit(tinyworld, requests) as edit:
        assert edit.settings["presets"] == tinyworld.kind
        assert sum(a.startswith(tinyworlds.REFUSAL) for a in tinyworld.generate(requests)) > 4
        assert tinyworlds.recall(tinyworld, born[8:]) > 0.5  # the others are still known
    assert tinyworlds.recall(tinyworld, born[:8]) > 0.9


@pytest.mark.slow
def test_smollm2_refuses_four_at_once_with_the_preset_alone(smollm2):
    before = weights(smollm2)
    ask = "What is the capital of {}?"
    requests = [Request(ask, s, "I don't know.", chat=True) for s in ("France", "Italy", "Egypt", "Spain")]
    with minilib.memit.edit(smollm2, requests) as edit:
        assert edit.settings["presets"] == smollm2.kind
        assert sum(a.startswith("I don't know") for a in smollm2.generate(requests)) >= 2
        assert "Tokyo" in smollm2.generate("What is the capital of Japan?")
    assert_same_weights(smollm2, before)


@pytest.mark.parametrize("method", [rome, memit])
def test_presets_name_settings_that_exist(method):
    for kind, preset in method.Settings.PRESETS.items():
        assert kind and set(preset) <= set(method.Settings.keywords())
