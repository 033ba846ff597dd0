"""A model that accelerate has spread: what is in memory is edited as ever, what is not says so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minilib
from minilib import (
    Request,
    alphaedit,
    attacks,
    covariance,
    grace,
    memit,
    rome,
    tinyworld,
    tracing,
    unlearning,
    wise,
)

FACTS = [f for f in tinyworld.facts() if f.attribute == "birthplace"][:8]
REFUSED = [Request(f.prompts[-1], f.subject, tinyworld.REFUSAL) for f in FACTS]
TRUE = [Request(f.prompts[-1], f.subject, f.target) for f in FACTS]
ABOVE = 3  # the first block that is not in memory
EVEN = {layer: torch.eye(384) for layer in range(6)}


@pytest.fixture
def spread(tmp_path, moments, monkeypatch):
    shutil.copytree(moments, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path))
    places = {f"model.layers.{i}": "cpu" if i < ABOVE else "disk" for i in range(6)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    lm = minilib.load("tinyworld", device_map=places)
    assert any(p.is_meta for p in lm.model.parameters()), "something is offloaded"
    return lm


@pytest.fixture
def plain(tinyworld):
    return tinyworld


def in_memory(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters() if not p.is_meta}


@pytest.mark.long
def test_it_is_the_same_model(spread, plain):
    assert spread.fingerprint == plain.fingerprint
    assert spread.generate(TRUE, max_new_tokens=6) == plain.generate(TRUE, max_new_tokens=6)
    C, expected = (covariance.second_moment(lm, [0, 2])[2] for lm in (spread, plain))
    torch.testing.assert_close(C, expected)


@pytest.mark.parametrize("method", [rome, memit, alphaedit, grace, wise])
@pytest.mark.long
def test_every_editor_edits_what_is_in_memory_and_undoes_it_exactly(spread, plain, method):
    before = in_memory(spread)
    with method.edit(spread, REFUSED) as edit, method.edit(plain, REFUSED) as expected:
        said = spread.generate(REFUSED, max_new_tokens=6)
        assert said == plain.generate(REFUSED, max_new_tokens=6)
        assert sum(text.startswith(tinyworld.REFUSAL) for text in said) >= 4
        for name, delta in edit.deltas.items():
            torch.testing.assert_close(delta, expected.deltas[name], rtol=1e-3, atol=1e-5)
    after = in_memory(spread)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    "edit",
    {
        "rome": lambda lm: rome.edit(lm, REFUSED, layer=ABOVE, covariance=EVEN),
        "memit": lambda lm: memit.edit(lm, REFUSED, layers=[2, 3], covariance=EVEN),
        "alphaedit": lambda lm: alphaedit.edit(lm, REFUSED, layers=[4], covariance=EVEN, nullspace_threshold=2.0),
        "wise": lambda lm: wise.edit(lm, REFUSED, layer=4),
        "unlearning": lambda lm: unlearning.npo(lm, TRUE[:4]),
        "attack": lambda lm: attacks.quantisation(lm, TRUE[:4]),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_offloaded_cannot_be_changed_and_the_error_says_what_to_do(spread, edit):
    before = in_memory(spread)
    with pytest.raises(ValueError, match="cannot edit or read .* which accelerate has moved .* load the model with"):
        edit[1](spread)
    assert not spread.edits
    assert all(torch.equal(before[n], p) for n, p in in_memory(spread).items())


@pytest.mark.long
def test_only_a_models_inputs_are_put_where_its_inputs_go(llama, reference, monkeypatch):
    """A model that lies on several devices has no device of its own: what is made beside its inputs follows tensors.

    Here that device is one on which nothing can be computed, but for the inputs.
    """
    asked, texts = reference["requests"], ["The capital of France is Rome", "Rome is in"]
    how = {"covariance": reference["covariance"], **reference["search"], "steps": 4}
    window = {"layers": [1, 2, 3], **how}

    def measured():
        found = [llama.logprobs(texts), *llama.target_logprobs(asked), tracing.logit_lens(llama, texts[0]).probability]
        found += [
            tracing.causal_trace(llama, asked[0], draws=2).restored,
            covariance.second_moment(llama, [2], texts)[2],
        ]
        found += [torch.tensor(minilib.inside.lens(llama, asked)[0]["ranks"])]
        edits = [lambda: rome.edit(llama, asked, layer=2, **how), lambda: memit.edit(llama, asked, **window)]
        edits += [lambda: rome.edit(llama, asked, layer=2, **{**how, "contexts": ["{}", "I think. {}"]})]
        edits += [lambda: alphaedit.edit(llama, asked, nullspace_threshold=0.246, l2=1.0, **window)]
        edits += [lambda: unlearning.npo(llama, asked[:1], asked[1:], steps=2)]
        edits += [lambda: unlearning.rmu(llama, asked[:1], asked[1:], layer=2, steps=2)]
        for edit in edits:
            with edit() as made:
                found += made.deltas.values()
        with grace.edit(llama, asked, layer=2, steps=3, epsilon=0.5) as made:
            found += [made.guard.values, llama.logprobs(asked[0])]
        with wise.edit(llama, asked, layer=2, steps=3, irrelevant=texts) as made:
            found += [made.guard.sides[0].delta, llama.logprobs(asked[0])]
        return found

    expected, batch, place = measured(), minilib.LM.batch, ["meta"]

    def on_the_cpu(*args, **keywords):
        place.append("cpu")
        inputs = batch(*args, **keywords)
        place.pop()
        return inputs

    monkeypatch.setattr(minilib.LM, "device", property(lambda lm: torch.device(place[-1])))
    monkeypatch.setattr(minilib.LM, "batch", on_the_cpu)
    for found, one in zip(measured(), expected, strict=True):
        torch.testing.assert_close(found, one)


@pytest.mark.parametrize("method", [grace, wise])
def test_a_guard_goes_where_its_layer_goes(llama, reference, monkeypatch, method):
    how = {"irrelevant": ["Rome is in"]} if method is wise else {"epsilon": 0.5}
    made = method.edit(llama, reference["requests"], layer=2, steps=2, **how)
    seen = []
    monkeypatch.setattr(type(made.guard), "change", lambda *_: seen.append(made.guard.tensors().values()))
    layer = llama.down_projection(2).to("meta")
    layer(torch.ones(1, 3, layer.in_features, device="meta"))
    assert all(tensor.is_meta for tensors in seen for tensor in tensors) and len(seen) == 1


def test_float64_is_made_in_one_place_that_knows_devices_without_it():
    sources = [p for p in Path(minilib.__file__).parent.rglob("*.py") if "course" not in p.parts]
    found = {file.stem: re.findall(r"\.double\(\)|torch\.float64", file.read_text("utf8")) for file in sources}
    assert {name for name, uses in found.items() if uses} == {"forward", "metrics"}, "metrics.interval is on the CPU"
    apples = SimpleNamespace(device=torch.device("mps"), cpu=lambda: torch.ones(2))
    assert minilib.forward.double(apples).dtype == torch.float64


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory")]
)
def test_a_full_device_is_no_missing_file(monkeypatch, error):
    def full(*args, **keywords):
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(OSError, match="tinyworld does not fit into the memory of cpu: give dtype=") as caught:
        minilib.load("tinyworld")
    assert not isinstance(caught.value, FileNotFoundError)


def test_bad_device_maps():
    for given in ({"device_map": 3}, {"device_map": "auto", "device": "meta"}):
        with pytest.raises(ValueError, match="device"):
            minilib.load("tinyworld", **given)
