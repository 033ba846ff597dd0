"""A model that accelerate has spread: what is in memory is edited as ever, what is not says so."""

from __future__ import annotations

import pytest
import torch

import minilib
from minilib import Request, alphaedit, attacks, covariance, grace, memit, rome, tinyworld, unlearning, wise

FACTS = [f for f in tinyworld.facts() if f.attribute == "birthplace"][:8]
REFUSED = [Request(f.prompts[-1], f.subject, tinyworld.REFUSAL) for f in FACTS]
TRUE = [Request(f.prompts[-1], f.subject, f.target) for f in FACTS]
ABOVE = 3  # the first block that is not in memory


@pytest.fixture
def spread(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path))
    places = {f"model.layers.{i}": "cpu" if i < ABOVE else "disk" for i in range(6)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    lm = minilib.load("tinyworld", device_map=places)
    assert any(p.is_meta for p in lm.model.parameters()), "something is offloaded"
    return lm


@pytest.fixture
def plain():
    return minilib.load("tinyworld")


def in_memory(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters() if not p.is_meta}


def test_it_is_the_same_model(spread, plain):
    assert spread.fingerprint == plain.fingerprint
    assert spread.generate(TRUE, max_new_tokens=6) == plain.generate(TRUE, max_new_tokens=6)
    C, expected = (covariance.second_moment(lm, [0, 2])[2] for lm in (spread, plain))
    torch.testing.assert_close(C, expected)


@pytest.mark.parametrize("method", [rome, memit, alphaedit, grace, wise])
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
        "rome": lambda lm: rome.edit(lm, REFUSED, layer=ABOVE),
        "memit": lambda lm: memit.edit(lm, REFUSED, layers=[2, 3]),
        "alphaedit": lambda lm: alphaedit.edit(lm, REFUSED, layers=[4]),
        "wise": lambda lm: wise.edit(lm, REFUSED, layer=4),
        "unlearning": lambda lm: unlearning.npo(lm, TRUE[:4]),
        "attack": lambda lm: attacks.quantisation(lm, TRUE[:4]),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_offloaded_cannot_be_changed_and_the_error_says_what_to_do(spread, edit):
    before = in_memory(spread)
    with pytest.raises(ValueError, match="is offloaded, so it can be run but not edited .* load the model with"):
        edit[1](spread)
    assert not spread.edits
    assert all(torch.equal(before[n], p) for n, p in in_memory(spread).items())


def test_bad_device_maps():
    for given in ({"device_map": 3}, {"device_map": "auto", "device": "meta"}):
        with pytest.raises(ValueError, match="device"):
            minilib.load("tinyworld", **given)
