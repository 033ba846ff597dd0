"""AlphaEdit: equal to the authors' code, silent on what it protects, the minimiser it claims to be, undone exactly."""

import copy
import functools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same_weights, random_lm, weights

import minilib
from minilib import Request, alphaedit, covariance, guards, memit, refusals, tinyworld, window
from minilib.covariance import SecondMoments

LAYERS = [1, 2, 3]


@pytest.fixture
def arguments(reference, brief) -> dict:
    about = {"layers": LAYERS, "covariance": reference["covariance"], "l2": reference["alphaedit"]["l2"]}
    return {**about, "nullspace_threshold": reference["alphaedit"]["nullspace_threshold"], **brief}


def test_both_steps_are_those_of_the_authors_code(llama, reference, arguments):
    arguments |= reference["search"]
    first = alphaedit.edit(llama, reference["requests"][:2], **arguments)
    second = alphaedit.edit(llama, reference["requests"][2], previous=first, **arguments)
    so_far = {name: delta.clone() for name, delta in first.deltas.items()}
    for step, edit in enumerate((first, second)):
        for layer in LAYERS:
            name = llama.weight_name(layer)
            so_far[name] = edit.deltas[name] + (so_far[name] if step else 0)
            expected = reference["tensors"][f"alphaedit.step{step}.layer{layer}.delta_total"]
            assert (so_far[name] - expected).norm() <= 1e-4 * expected.norm()
    dims = dict(zip(map(str, LAYERS), reference["alphaedit"]["nullspace_dims"], strict=True))
    assert first.settings["directions"] == {layer: f"{n} of 96" for layer, n in dims.items()}
    logprobs = llama.logprobs(reference["requests"])
    torch.testing.assert_close(logprobs, reference["tensors"]["alphaedit.step1.logprobs"], rtol=0, atol=1e-3)


def test_a_sequence_is_undone_from_its_end(llama, reference, arguments):
    before = weights(llama)
    first = alphaedit.edit(llama, reference["requests"][:2], **arguments)
    between = weights(llama)
    second = alphaedit.edit(llama, reference["requests"][2], previous=[first], **arguments)
    with pytest.raises(ValueError, match="lies under a later edit"):
        first.undo()
    second.undo()
    assert_same_weights(llama, between)
    first.undo()
    assert_same_weights(llama, before)


def random_problem(seed: int, d_k: int = 9, d_out: int = 4, n: int = 3, earlier: int = 2, free: int = 6):
    """C with a null space of ``free`` directions, exactly."""
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(d_k, d_k - free, generator=random, dtype=torch.float64)
    K1, Kp = (torch.randn(d_k, m, generator=random, dtype=torch.float64) for m in (n, earlier))
    return A, K1, Kp, torch.randn(d_out, n, generator=random, dtype=torch.float64)


@given(seed=st.integers(0, 2**16), n=st.integers(1, 12), earlier=st.integers(0, 12), l2=st.floats(1e-2, 1e3))
def test_both_ways_of_solving_give_the_authors_equation(seed, n, earlier, l2):
    A, K1, Kp, R = random_problem(seed, n=n, earlier=earlier)
    P = alphaedit.projector({0: A @ A.T}, 0, 1e-4)
    left = P @ (K1 @ K1.T + Kp @ Kp.T) + l2 * torch.eye(9).double()
    expected = torch.linalg.solve(left, P @ K1 @ R.T).T
    torch.testing.assert_close(R @ alphaedit.spread(K1, Kp, P, l2), expected, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**16))
def test_preserved_keys_keep_their_values(seed):
    A, K1, Kp, R = random_problem(seed)
    P = alphaedit.projector({0: A @ A.T}, 0, 1e-4)
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-5)
    delta = R @ alphaedit.spread(K1, Kp, P, 1.0)
    assert (delta @ A).norm() <= 1e-5 * delta.norm() * A.norm(), "C's null space is exact, so ΔK₀ is zero"


@given(seed=st.integers(0, 2**16), l2=st.floats(1e-2, 1e2), scale=st.floats(1e-3, 1))
def test_no_other_change_in_the_free_directions_is_cheaper(seed, l2, scale):
    A, K1, Kp, R = random_problem(seed)
    P = alphaedit.projector({0: A @ A.T}, 0, 1e-4)
    delta = R @ alphaedit.spread(K1, Kp, P, l2)
    other = delta + scale * torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)).double() @ P
    cost = lambda D: ((D @ K1 - R).pow(2).sum() + (D @ Kp).pow(2).sum() + l2 * D.pow(2).sum()).item()  # noqa: E731
    assert cost(other) > cost(delta)


@given(seed=st.integers(0, 2**16), l2=st.floats(1e-2, 1e2))
def test_without_p_and_earlier_keys_it_is_ridge_regression(seed, l2):
    _, K1, Kp, R = random_problem(seed)
    expected = R @ K1.T @ torch.linalg.inv(K1 @ K1.T + l2 * torch.eye(9).double())
    torch.testing.assert_close(R @ alphaedit.spread(K1, Kp[:, :0], None, l2), expected, rtol=1e-6, atol=1e-9)


def test_without_p_it_is_memit_with_an_even_spectrum(llama, reference, arguments, brief):
    """C = I and λ = L2 make MEMIT's penalty the same."""
    requests = reference["requests"]
    even = {layer: torch.eye(96) for layer in LAYERS}
    with alphaedit.edit(llama, requests, **{**arguments, "project": False, "l2": 3.0}) as edit:
        found = edit.deltas
        assert "directions" not in edit.settings and edit.settings["project"] is False
    search = {**brief, "layers": LAYERS, "covariance": even, "covariance_weight": 3.0}
    with memit.edit(llama, requests, **search) as edit:
        for name, delta in edit.deltas.items():
            torch.testing.assert_close(found[name], delta, rtol=1e-4, atol=1e-6)


@functools.cache
def batch_in_order(*order):
    """The changes that three requests make, given in this order."""
    lm = random_lm("llama")
    requests = [
        Request("The capital of {} is", "France", " Rome"),
        Request("{} was born in the town of", "Mira Okafor", " Lund"),
        Request("{} was in the town of", "The capital", " unknown to me"),
    ]
    C = {layer: torch.diag(torch.linspace(0.001, 1, 64)) for layer in (1, 2)}
    arguments = {"layers": [1, 2], "covariance": C, "nullspace_threshold": 0.5, "l2": 0.1, "steps": 4, "lr": 0.1}
    return alphaedit.edit(lm, [requests[i] for i in order], **arguments).deltas


@settings(max_examples=5)
@given(order=st.permutations([0, 1, 2]))
def test_the_order_of_a_batch_does_not_matter(order):
    expected = batch_in_order(0, 1, 2)
    for name, delta in batch_in_order(*order).items():
        assert (delta - expected[name]).norm() <= 1e-4 * expected[name].norm()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "opt"])
def test_other_layouts_are_written_the_right_way_round(kind):
    """What is protected is the model's own: keys of text that was kept aside hardly notice the change."""
    lm = random_lm(kind)
    text = ["The capital of France is Paris.", "Mira Okafor was born in the town of Lund.", "A river flows to the sea."]
    C = covariance.second_moment(lm, [1, 2], text)
    request = Request("{} was in the town of", "The capital", " unknown to me")
    with warnings.catch_warnings(action="ignore"):
        made = alphaedit.edit(lm, request, C, layers=[1, 2], nullspace_energy=1e-4, l2=1e-3, steps=8, lr=0.1)
    loss = made.traces[0]["loss"]
    assert loss[-1] < loss[0]
    for layer in (1, 2):
        delta = made.deltas[lm.weight_name(layer)]
        delta = delta.T if lm.transposed(layer) else delta
        root = torch.linalg.eigh(C[layer].double())
        K0 = root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt()
        assert (delta.double() @ K0).norm() <= 0.0101 * delta.norm() * K0.norm()
    made.undo()


def test_the_keys_are_remembered_and_saved(llama, reference, arguments, tmp_path):
    requests = reference["requests"]
    first = alphaedit.edit(llama, requests[:2], **arguments)
    assert {layer: k.shape for layer, k in first.keys.items()} == dict.fromkeys(LAYERS, (96, 2))
    first.save(tmp_path)
    after = weights(llama)
    with alphaedit.edit(llama, requests[2], previous=first, **arguments) as second:
        expected = second.deltas
    first.undo()
    first = minilib.load_edit(llama, tmp_path)
    assert_same_weights(llama, after)
    with alphaedit.edit(llama, requests[2], previous=first, **arguments) as second:
        for name, delta in second.deltas.items():
            torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-8)


def test_earlier_keys_keep_their_values_better(llama, reference, arguments):
    requests = [Request("The capital of {} is", "France", " Rome"), Request("The capital of {} is", "Mira", " Lund")]
    first = alphaedit.edit(llama, requests[0], **arguments)
    moved = []
    for previous in ([], [first]):
        with alphaedit.edit(llama, requests[1], previous=previous, **{**arguments, "l2": 0.01}) as second:
            moved.append((second.deltas[llama.weight_name(1)] @ first.keys[1]).norm().item())
    assert moved[1] < 0.5 * moved[0]


def test_anchor_norm_gives_z_the_length_of_the_unedited_state(llama, reference, arguments):
    request, last = reference["requests"][0], LAYERS[-1]
    _, h = window.keys_and_states(llama, [request], last, ["{}"], last=last)
    exact = {**arguments, **reference["search"], "project": False, "l2": 1e-8}
    lengths = []
    for anchor in (False, True):
        with alphaedit.edit(llama, request, anchor_norm=anchor, **exact):
            _, now = window.keys_and_states(llama, [request], last, ["{}"], last=last)
            lengths.append((now.norm() / h.norm()).item())
    assert lengths[0] > 1.02 and lengths[1] == pytest.approx(1, abs=1e-3)


def test_second_moments_keep_their_eigenvectors(llama):
    C = covariance.second_moment(llama, [1], ["The capital of France is Paris."] * 3)
    w, U = covariance.spectrum(C, 1)
    assert covariance.spectrum(C, 1)[1] is U
    assert covariance.spectrum(covariance.checked(llama, C, [1]), 1)[1] is U, "what an edit is given keeps them too"
    torch.testing.assert_close(U @ w.diag() @ U.T, C[1], rtol=1e-4, atol=1e-5)
    C[1].mul_(2.0)
    torch.testing.assert_close(covariance.spectrum(C, 1)[0], 2 * w, rtol=1e-4, atol=1e-5)
    C[1] = torch.eye(96)
    assert torch.equal(covariance.spectrum(C, 1)[0], torch.ones(96))


def test_few_tokens_are_warned_of(llama, reference, arguments):
    with pytest.warns(UserWarning, match=r"from 5 tokens, fewer than keys have dimensions \(96\)"):
        C = SecondMoments(reference["covariance"], llama.fingerprint, 5, "x")
        alphaedit.edit(llama, reference["requests"][0], **{**arguments, "covariance": C}).undo()


def test_a_threshold_that_leaves_all_is_allowed_and_said(llama, reference, arguments):
    with alphaedit.edit(llama, reference["requests"][0], **{**arguments, "nullspace_threshold": 1e9}) as edit:
        assert set(edit.settings["directions"].values()) == {"96 of 96"}
        everything = edit.deltas
    with alphaedit.edit(llama, reference["requests"][0], project=False, **arguments) as edit:
        for name, delta in edit.deltas.items():
            torch.testing.assert_close(delta, everything[name], rtol=1e-4, atol=1e-6)


WRONG = {
    "no direction": (
        {"nullspace_threshold": 1e-12},
        ValueError,
        r"leaves no direction of layer 1.*eigenvalues go from",
    ),
    "no energy": (
        {"nullspace_threshold": None, "nullspace_energy": 1e-12},
        ValueError,
        "nullspace_energy 1e-12 leaves",
    ),
    "both": ({"nullspace_energy": 0.1}, ValueError, "give one of them"),
    "more than all": ({"nullspace_threshold": None, "nullspace_energy": 1.5}, ValueError, "share in"),
    "l2": ({"l2": 0.0}, ValueError, "l2 must be finite and above 0"),
    "layers": ({"layers": [2, 1]}, ValueError, "ascending"),
    "keyword": ({"nullspace_treshold": 1.0}, TypeError, "did you mean 'nullspace_threshold'"),
    "previous": ({"previous": 3}, TypeError, "previous must be a list of edits"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(llama, reference, arguments, name):
    changed, error, message = WRONG[name]
    before = weights(llama)
    with pytest.raises(error, match=message):
        alphaedit.edit(llama, reference["requests"][0], **{**arguments, **changed})
    assert_same_weights(llama, before)
    assert not llama.edits


def test_previous_that_cannot_be_used(llama, reference, arguments, brief):
    requests, search = reference["requests"], brief
    other = random_lm("llama")
    C = {1: torch.eye(64)}
    theirs = alphaedit.edit(other, requests[0], C, layers=[1], nullspace_threshold=2.0, steps=2)
    elsewhere = alphaedit.edit(llama, requests[0], **{**arguments, "layers": [1]})
    after = weights(llama)
    undone = alphaedit.edit(llama, requests[1], **arguments)
    undone.undo()
    with memit.edit(
        llama, requests[1], reference["covariance"], layers=LAYERS, covariance_weight=50.0, **search
    ) as kind:
        for previous, error, message in (
            (theirs, ValueError, "edit of another model"),
            (undone, ValueError, "was undone"),
            (elsewhere, ValueError, r"was written at layers \[1\], not \[1, 2, 3\]"),
            ([kind], TypeError, "made by alphaedit.edit"),
        ):
            with pytest.raises(error, match=message):
                alphaedit.edit(llama, requests[2], previous=previous, **arguments)
    with pytest.raises(ValueError, match="twice"):
        alphaedit.edit(llama, requests[2], previous=[elsewhere] * 2, **{**arguments, "layers": [1]})
    assert_same_weights(llama, after)


def test_tinyworld_refuses_eight_at_once_with_the_preset_alone(loaded, moments, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(moments))
    lm = copy.deepcopy(loaded("tinyworld"))
    born = [f for f in tinyworld.facts() if f.attribute == "birthplace"][:30]
    requests = [Request(f.prompts[-1], f.subject, tinyworld.REFUSAL) for f in born[:8]]
    with alphaedit.edit(lm, requests) as edit:
        assert edit.settings["presets"] == lm.kind
        assert sum(a.startswith(tinyworld.REFUSAL) for a in lm.generate(requests)) > 4
        assert tinyworld.recall(lm, born[8:]) > 0.5, "the others are still known"


@pytest.mark.slow
def test_on_smollm2_text_kept_aside_notices_less(smollm2):
    """C is computed from some text, and the damage measured on other text."""
    sample = [text[:1000] for text in covariance.sample_texts()]
    C = covariance.second_moment(smollm2, [4], sample[20:60])
    assert C.tokens > 3 * 1536
    rows = [smollm2.encode(text, chat=False).ids for text in sample[:10]]
    K0 = torch.cat(guards.keys(smollm2, 4, rows)).T
    request = Request("What is the capital of {}?", "France", "I don't know.", chat=True)
    hurt = {}
    for project in (True, False):
        with alphaedit.edit(smollm2, request, C, layers=[4], project=project, l2=0.1) as edit:
            (delta,) = edit.deltas.values()
            hurt[project] = ((delta @ K0).norm() / delta.norm()).item()
            assert refusals.is_refusal(smollm2.generate(request))
    assert hurt[True] < 0.75 * hurt[False], "for its size"
