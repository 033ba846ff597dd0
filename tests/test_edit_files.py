"""Edits that are saved and applied on another day: the same weights, small files, and never another model."""

import html
import json
import os

import pytest
import torch
from models import REFERENCE, assert_same_weights, random_lm, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minilib
from minilib import Request, covariance, edits, memit, rome
from minilib import tinyworld as tinyworlds
from minilib.edits import Edit


def do(lm, reference, method=rome, requests=None, **changed):
    about = {"layer": 2} if method is rome else {"layers": [1, 2, 3], "covariance_weight": 50.0}
    about |= {"covariance": reference["covariance"], **reference["search"], "steps": 2, **changed}
    return method.edit(lm, requests or reference["requests"], **about)


@pytest.mark.parametrize("method", [rome, memit])
def test_what_is_loaded_is_what_was_saved(llama, reference, tmp_path, method):
    before = weights(llama)
    edit = do(llama, reference, method)
    expected = weights(llama)
    edit.save(tmp_path / "new" / "folder")
    edit.undo()
    again = minilib.load_edit(llama, tmp_path / "new" / "folder")
    for name, parameter in llama.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7)
    assert again.requests == edit.requests and again.settings == edit.settings and again.method == edit.method
    assert again.traces == edit.traces and again.notes == edit.notes
    assert repr(again) == repr(edit).replace(", undone", "")
    again.undo()
    assert_same_weights(llama, before)


def test_one_write_comes_back_bit_for_bit(llama, reference, tmp_path):
    edit = do(llama, reference, requests=reference["requests"][0])
    expected = weights(llama)
    edit.save(tmp_path)
    other = minilib.load(REFERENCE / "model")
    minilib.load_edit(other, tmp_path)
    assert_same_weights(other, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_file_holds_thin_factors(kind, tmp_path):
    """Rank one, 32 outputs and 64 (GPT-2: 128) keys: two vectors instead of a matrix."""
    lm = random_lm(kind)
    d_out, d_k = lm.memory(1).shape
    request = Request("The capital of {} is", "France", " Rome")
    edit = rome.edit(lm, request, layer=1, covariance={1: torch.eye(d_k)}, steps=3)
    expected = weights(lm)
    edit.save(tmp_path)
    numbers = 4 * (d_out + d_k)
    assert numbers <= (tmp_path / "edit.safetensors").stat().st_size < numbers + 2500
    edit.undo()
    minilib.load_edit(lm, tmp_path)
    assert_same_weights(lm, expected)


def test_a_change_without_factors_is_saved_whole(llama, tmp_path):
    """Any parameter, such as the gradient methods change."""
    name = "model.norm.weight"
    delta = torch.linspace(-1, 1, 48)
    with edits.changing(llama, [name]) as originals:
        llama.model.get_parameter(name).data += delta
        edit = Edit(llama, "test", [], {}, originals, {name: delta})
    expected = weights(llama)
    edit.save(tmp_path)
    edit.undo()
    minilib.load_edit(llama, tmp_path)
    assert_same_weights(llama, expected)


def test_an_undone_edit_can_still_be_saved_and_a_folder_used_again(llama, reference, tmp_path):
    first = do(llama, reference, requests=reference["requests"][0])
    first.undo()
    first.save(tmp_path)
    second = do(llama, reference, requests=reference["requests"][1])
    second.undo()
    second.save(tmp_path)
    assert minilib.load_edit(llama, tmp_path).requests == second.requests
    assert sorted(file.name for file in tmp_path.iterdir()) == ["edit.safetensors"]


def test_edits_that_lie_on_one_another_are_loaded_in_order(llama, reference, tmp_path):
    for i in range(2):
        do(llama, reference, requests=reference["requests"][i]).save(tmp_path / str(i))
    expected = weights(llama)
    other = minilib.load(REFERENCE / "model")
    for i in range(2):
        minilib.load_edit(other, tmp_path / str(i))
    assert_same_weights(other, expected)


def test_another_model_refuses_it(llama, reference, tmp_path):
    do(llama, reference).save(tmp_path)
    other = random_lm("llama")
    before = weights(other)
    with pytest.raises(ValueError, match=r"holds an edit of another model .*load the model that was edited"):
        minilib.load_edit(other, tmp_path)
    assert_same_weights(other, before)
    assert other.edits == []


def rewritten(folder, change):
    """The file with what it says of the edit put through ``change``, or with another text in its place."""
    file = folder / "edit.safetensors"
    with safe_open(file, "pt") as stored:
        text = stored.metadata()["edit"]
    if not isinstance(change, str):
        about = json.loads(text)
        change(about)
        change = json.dumps(about)
    save_file(load_file(file), file, {"edit": change})


DAMAGE = {
    "no JSON": lambda folder: rewritten(folder, "{"),
    "a list": lambda folder: rewritten(folder, "[]"),
    "a missing key": lambda folder: rewritten(folder, lambda about: about.pop("requests")),
    "a request without subject": lambda folder: rewritten(folder, lambda about: about["requests"][0].pop("subject")),
    "another format": lambda folder: rewritten(folder, lambda about: about.update(format=99)),
    "cut short": lambda folder: (folder / "edit.safetensors").write_bytes(
        (folder / "edit.safetensors").read_bytes()[:-10]
    ),
    "empty": lambda folder: (folder / "edit.safetensors").write_bytes(b""),
    "of another kind": lambda folder: (folder / "edit.safetensors").write_bytes(b"no tensors at all"),
    "a model's weights": lambda folder: save_file({"x": torch.ones(3)}, folder / "edit.safetensors", {"format": "pt"}),
}


@pytest.mark.parametrize("when", ["while it is written", "before it takes its place"])
def test_a_save_that_is_interrupted_leaves_the_edit_before(llama, reference, tmp_path, monkeypatch, when):
    first = do(llama, reference, requests=reference["requests"][0])
    first.save(tmp_path)
    first.undo()
    second = do(llama, reference, requests=reference["requests"][1])

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((minilib.saving, "save_file") if when == "while it is written" else (os, "fsync")), stop)
        with pytest.raises(KeyboardInterrupt):
            second.save(tmp_path)
    second.undo()
    assert minilib.load_edit(llama, tmp_path).requests == first.requests
    assert [file.name for file in tmp_path.iterdir()] == ["edit.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="modes are those of Unix")
def test_what_is_written_is_readable_like_any_new_file(llama, reference, tmp_path):
    (tmp_path / "plain").touch()
    do(llama, reference).save(tmp_path)
    covariance.SecondMoments({1: torch.eye(3)}, "x", 1, "y").save(tmp_path / "C.safetensors")
    llama.save_pretrained(tmp_path / "model")
    modes = {oct(file.stat().st_mode) for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {oct((tmp_path / "plain").stat().st_mode)}


def test_a_model_that_was_changed_by_hand_refuses_it(llama, reference, tmp_path):
    edit = do(llama, reference)
    edit.save(tmp_path)
    edit.undo()
    llama.memory(3).data[5, 7] += 1e-3
    with pytest.raises(ValueError, match="holds an edit of another model"):
        minilib.load_edit(llama, tmp_path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_named(llama, reference, tmp_path, damage):
    edit = do(llama, reference)
    edit.save(tmp_path)
    edit.undo()
    before = weights(llama)
    DAMAGE[damage](tmp_path)
    with pytest.raises(ValueError, match="holds no edit that can be read"):
        minilib.load_edit(llama, tmp_path)
    assert_same_weights(llama, before)
    assert llama.edits == []


@pytest.mark.parametrize("wrong", ["shape", "name", "nan"])
def test_a_change_that_does_not_fit_is_refused(llama, reference, tmp_path, wrong):
    edit = do(llama, reference)
    edit.undo()
    (name,) = edit.factors
    left, right = edit.factors.pop(name)
    delta = left @ right * (torch.nan if wrong == "nan" else 1)
    edit._deltas = {"no.such.weight" if wrong == "name" else name: delta[:-1] if wrong == "shape" else delta}
    edit.save(tmp_path)
    before = weights(llama)
    with pytest.raises(ValueError, match="is damaged: the change of .* does not fit, or is not finite"):
        minilib.load_edit(llama, tmp_path)
    assert_same_weights(llama, before)


def test_a_folder_without_an_edit_is_named(llama, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"has no edit\.safetensors: write it by edit\.save"):
            minilib.load_edit(llama, folder)


def test_a_folder_that_cannot_be_made_is_an_oserror(llama, reference, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        do(llama, reference).save(tmp_path / "file")


@pytest.mark.parametrize("method", [rome, memit])
def test_a_target_that_is_said_already_is_allowed_and_noted(tinyworld, method):
    known, other = [f for f in tinyworlds.facts() if f.attribute == "birthplace"][:2]
    wanted = Request(known.prompts[0], known.subject, known.target)
    refused = Request(other.prompts[0], other.subject, tinyworlds.REFUSAL)
    C = {layer: torch.eye(tinyworld.memory(0).shape[1]) for layer in range(3)}
    where = {"layer": 1} if method is rome else {"layers": [0, 1], "covariance_weight": 1.0}
    with method.edit(tinyworld, [wanted, refused], covariance=C, **where) as edit:
        (note,) = [note for note in edit.notes if "already" in note]
        assert note == f"the model said {wanted.target!r} after {wanted.text!r} already, before the edit"
        assert html.escape(note) in edit._repr_html_()
