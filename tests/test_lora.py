"""An edit as a LoRA adapter: PEFT puts it on a fresh model, and the model answers as the edited one."""

import peft
import pytest
import torch
import transformers
from models import ARCHITECTURES, random_lm

import minilib
from minilib import Request, alphaedit, grace, memit, rome, tinyworld, unlearning

ASKED = [Request("The capital of {} is", "France", " Rome"), Request("{} is known for", "Japan", " the")]


def identity(lm, layers):
    return {layer: torch.eye(lm.memory(layer).shape[1]) for layer in layers}


EDITS = {
    "rome": lambda lm: rome.edit(lm, ASKED, layer=1, covariance=identity(lm, [1]), steps=4),
    "memit": lambda lm: memit.edit(lm, ASKED, layers=[1, 2], covariance=identity(lm, [1, 2]), steps=4),
    "alphaedit": lambda lm: alphaedit.edit(lm, ASKED, layers=[1, 2], project=False, steps=4),
}


def logits(model, lm):
    with torch.no_grad():
        return model(**lm.batch([lm.encode(r.text).ids for r in ASKED]), use_cache=False).logits


@pytest.mark.parametrize("method", EDITS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_on_a_fresh_model_it_is_the_edit(kind, method, tmp_path):
    lm, fresh = random_lm(kind), random_lm(kind)
    edit = EDITS[method](lm)
    expected = logits(lm.model, lm)
    assert not torch.allclose(logits(fresh.model, lm), expected, atol=1e-3), "the edit changes something"
    edit.save_as_lora(tmp_path / "a" / "folder")
    adapted = peft.PeftModel.from_pretrained(fresh.model, tmp_path / "a" / "folder")
    torch.testing.assert_close(logits(adapted, lm), expected, rtol=1e-4, atol=1e-4)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, lm), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_every_architecture_has_its_names(tmp_path):
    for kind in ARCHITECTURES:
        lm, fresh = random_lm(kind), random_lm(kind)
        edit = rome.edit(lm, ASKED[0], layer=1, covariance=identity(lm, [1]), steps=2)
        edit.save_as_lora(tmp_path / kind)
        merged = peft.PeftModel.from_pretrained(fresh.model, tmp_path / kind).merge_and_unload()
        name = lm.weight_name(1)
        torch.testing.assert_close(merged.get_parameter(name), lm.model.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_its_answers_are_the_edited_models(tmp_path):
    lm = minilib.load("tinyworld")
    facts = tinyworld.facts()[:4]
    requests = [Request(f.prompts[-1], f.subject, tinyworld.REFUSAL) for f in facts]
    with memit.edit(lm, requests) as edit:
        said = lm.generate(requests, max_new_tokens=6)
        edit.save_as_lora(tmp_path)
    fresh = minilib.load("tinyworld")
    merged = peft.PeftModel.from_pretrained(fresh.model, tmp_path).merge_and_unload()
    assert minilib.LM(merged, fresh.tokenizer).generate(requests, max_new_tokens=6) == said


def test_what_is_no_product_of_thin_matrices_says_so(tmp_path):
    lm = minilib.load("tinyworld")
    facts = tinyworld.facts()
    true = [Request(f.prompts[-1], f.subject, f.target) for f in facts[:12]]
    with grace.edit(lm, true[0], steps=2) as edit, pytest.raises(ValueError, match="it changed no weights; edit.save"):
        edit.save_as_lora(tmp_path / "no")
    with unlearning.npo(lm, true[:2], true[6:], steps=1) as edit, pytest.raises(ValueError, match="not of low rank"):
        edit.save_as_lora(tmp_path / "no")
    assert not (tmp_path / "no").exists()
