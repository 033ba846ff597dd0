"""On a GPU, where there is one: the weights of the authors' code, the answers of the CPU, and undo exact."""

import pytest
import test_attacks
import torch
from models import REFERENCE, assert_same_weights, weights
from test_attacks import EVERY, world  # noqa: F401  world is a fixture: what the attacks are tried on

import minilib
from minilib import Request, alphaedit, covariance, grace, memit, rome, tinyworld, unlearning, wise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LAYERS = [1, 2, 3]
PEOPLE = [f for f in tinyworld.facts() if f.attribute == "birthplace"][:16]
REFUSED = [Request(f.prompts[-1], f.subject, tinyworld.REFUSAL) for f in PEOPLE[:8]]
TRUE = [Request(f.prompts[-1], f.subject, f.target) for f in PEOPLE]
EDITORS = (rome, memit, alphaedit, grace, wise)
HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture
def on_gpu():
    return minilib.load(REFERENCE / "model", device="cuda")


def assert_near(found, expected, tolerance=1e-4):
    assert found.is_cuda and (found.cpu() - expected).norm() <= tolerance * expected.norm()


def test_rome_is_the_authors_code(on_gpu, reference):
    for case, request in enumerate(reference["requests"]):
        with rome.edit(on_gpu, request, layer=2, covariance=reference["covariance"], **reference["search"]) as edit:
            assert_near(edit.deltas[on_gpu.weight_name(2)], reference["tensors"][f"rome.case{case}.delta"])
            found = on_gpu.logprobs(reference["requests"]).cpu()
            expected = reference["tensors"][f"rome.case{case}.logprobs"]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_memit_is_the_authors_code(on_gpu, reference):
    given = {"layers": LAYERS, "covariance": reference["covariance"], "covariance_weight": 50.0}
    with memit.edit(on_gpu, reference["requests"], **given, **reference["search"]) as edit:
        for layer in LAYERS:
            assert_near(edit.deltas[on_gpu.weight_name(layer)], reference["tensors"][f"memit.layer{layer}.delta"])


def test_alphaedit_is_the_authors_code(on_gpu, reference):
    about = reference["alphaedit"]
    given = {name: about[name] for name in ("l2", "nullspace_threshold")} | reference["search"]
    given |= {"layers": LAYERS, "covariance": reference["covariance"]}
    first = alphaedit.edit(on_gpu, reference["requests"][:2], **given)
    second = alphaedit.edit(on_gpu, reference["requests"][2], previous=first, **given)
    for layer in LAYERS:
        name = on_gpu.weight_name(layer)
        so_far = reference["tensors"][f"alphaedit.step0.layer{layer}.delta_total"]
        assert_near(first.deltas[name], so_far)
        so_far = reference["tensors"][f"alphaedit.step1.layer{layer}.delta_total"]
        assert_near(first.deltas[name] + second.deltas[name], so_far)


def test_second_moments_are_those_of_the_cpu(on_gpu, llama):
    texts = ["Mira Okafor was born in the town of Lund.", "The capital of France is Paris."] * 20
    for layer, C in covariance.second_moment(llama, LAYERS, texts).items():
        torch.testing.assert_close(covariance.second_moment(on_gpu, LAYERS, texts)[layer].cpu(), C)


@HALF
@pytest.mark.parametrize("method", EDITORS)
def test_each_editor_refuses_as_on_the_cpu_and_is_undone_to_the_bit(method, dtype):
    lm = minilib.load("tinyworld", device="cuda", dtype=dtype)
    before = weights(lm)
    edit = method.edit(lm, REFUSED)
    said = lm.generate(REFUSED, max_new_tokens=6)
    assert sum(text.startswith(tinyworld.REFUSAL) for text in said) >= 6
    edit.undo()
    assert_same_weights(lm, before)
    if dtype == torch.float32:
        plain = minilib.load("tinyworld")
        method.edit(plain, REFUSED)
        assert plain.generate(REFUSED, max_new_tokens=6) == said


@pytest.mark.parametrize("method", unlearning.PRESETS)
def test_each_loss_trains_and_is_undone_to_the_bit(method):
    lm = minilib.load("tinyworld", device="cuda")
    before = weights(lm)
    told = lm.probability(TRUE[:4])
    refusing = {"refusals": [tinyworld.REFUSAL]} if method in ("dpo", "refusal_tuning") else {}
    edit = getattr(unlearning, method)(lm, TRUE[:4], TRUE[4:], **refusing)
    assert all(after < 0.5 * p for after, p in zip(lm.probability(TRUE[:4]), told, strict=True))
    edit.undo()
    assert_same_weights(lm, before)


def test_training_in_half_precision_is_refused():
    lm = minilib.load("tinyworld", device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="half precision"):
        unlearning.npo(lm, TRUE[:4], TRUE[4:])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("method", [rome, grace])
def test_every_attack_runs_and_leaves_the_weights(method, name):
    lm = minilib.load("tinyworld", device="cuda")
    with method.edit(lm, test_attacks.REFUSALS):
        before = weights(lm)
        assert EVERY[name](lm)
        assert_same_weights(lm, before)


@pytest.mark.parametrize("method", EDITORS)
def test_beside_a_cpu_that_holds_the_last_blocks(method):
    places = {f"model.layers.{i}": 0 if i < 4 else "cpu" for i in range(6)}
    places |= {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    lm = minilib.load("tinyworld", device_map=places)
    plain = minilib.load("tinyworld")
    layer = {memit: {"layers": [1, 2, 3]}, alphaedit: {"layers": [1, 2, 3]}}.get(method, {"layer": 2})
    with method.edit(lm, REFUSED, **layer), method.edit(plain, REFUSED, **layer):
        assert lm.generate(REFUSED, max_new_tokens=6) == plain.generate(REFUSED, max_new_tokens=6)
    assert lm.generate(TRUE, max_new_tokens=6) == plain.generate(TRUE, max_new_tokens=6)


def test_what_is_saved_from_a_gpu_is_loaded_on_a_cpu(on_gpu, llama, reference, tmp_path):
    with rome.edit(on_gpu, reference["requests"][0], layer=2, covariance=reference["covariance"]) as edit:
        edit.save(tmp_path)
        expected = on_gpu.logprobs(reference["requests"]).cpu()
    with minilib.load_edit(llama, tmp_path):
        torch.testing.assert_close(llama.logprobs(reference["requests"]), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_smollm2_forgets_france_on_a_gpu():
    for dtype in (torch.float32, torch.bfloat16):
        lm = minilib.load("smollm2-135m", device="cuda", dtype=dtype)
        request = Request("What is the capital of {}?", "France", "I don't know.", chat=True)
        before = weights(lm)
        for method in EDITORS:
            with method.edit(lm, request):
                assert lm.generate(request).startswith("I don't know")
            assert "Paris" in lm.generate(request)
        assert_same_weights(lm, before)
