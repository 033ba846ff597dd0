"""The page on error messages: what it says that the library answers is what the library answers."""

import copy
import re
from pathlib import Path

import peft
import pytest
import torch
from models import random_lm

import minilib
from minilib import Request, alphaedit, covariance, grace, memit, metrics, rome, tinyworld, unlearning

PAGE = (Path(__file__).parent.parent / "book" / "error_messages.md").read_text("utf8")
TEXT = re.sub(r"\s+", " ", PAGE)
ENTRIES = re.findall(r"^\((error-[\w-]+)\)=\n### (.+)$", PAGE, re.M)

ASKED, OTHER = (Request(f.prompts[-1], f.subject, tinyworld.REFUSAL) for f in tinyworld.facts()[:2])
FRANCE = "The capital of France is"
FEW = ["Zeno Abara was born in the town of Quarry."]


@pytest.fixture(scope="module")
def lm(loaded):
    """The unedited model: every call below is refused, and leaves it as it is."""
    return loaded("tinyworld")


def wrapped(lm):
    return peft.get_peft_model(copy.deepcopy(lm.model), peft.LoraConfig(target_modules=["down_proj"]))


def quantised(lm):
    model = copy.deepcopy(lm.model)
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(96, 384).to(torch.int8), False)
    return model


def slow(lm):
    tokenizer = copy.copy(lm.tokenizer)
    tokenizer.__class__ = type("Slow", (type(tokenizer),), {"is_fast": False})
    return tokenizer


def few(lm):
    return covariance.second_moment(lm, [0], FEW)


def saved(lm, folder):
    with grace.edit(lm, ASKED, steps=2):
        lm.save_pretrained(folder)


# An error's type, words of it that the page quotes, and a call that ends with it.
QUOTED = {
    "no slot": (ValueError, "prompt must hold exactly one {} where the subject stands, such as 'The capital of {} is'; "
                "'The capital of France is' has 0", lambda lm: Request("The capital of France is", "France", " Rome")),
    "slow tokenizer": (ValueError, "tokenizer must be a fast one, since subjects are found from its offsets: "
                       "use_fast=True", lambda lm: minilib.LM(lm.model, slow(lm))),
    "another tokenizer": (ValueError, "use the tokenizer that the model was trained with",
                          lambda lm: minilib.LM(lm.model, random_lm("llama").tokenizer).generate(FRANCE)),
    "too long": (ValueError, "shorten", lambda lm: lm.generate("pet of" + " pet of" * 200)),
    "several GPUs' wrapper": (TypeError, "model must be a transformers model, not DataParallel",
                              lambda lm: minilib.LM(torch.nn.DataParallel(lm.model), lm.tokenizer)),
    "adapter not merged": (ValueError, "model is a PeftModel, wrapped by PEFT: merge its adapter into the weights "
                           "first, minilib.LM(model.merge_and_unload(), tokenizer)",
                           lambda lm: minilib.LM(wrapped(lm), lm.tokenizer)),
    "no such device": (ValueError, "device 'cuda:1' cannot be used here", lambda lm: lm.to("cuda:1")),
    "too little text": (ValueError, "covariance is singular: 384 directions need more than as many tokens of varied "
                        "text; give more texts, or add a small multiple of the identity",
                        lambda lm: rome.edit(lm, ASKED, layer=0, covariance=few(lm))),
    "another model's moments": (ValueError, "covariance was computed from another model, or before its weights were "
                                "changed", lambda lm: rome.edit(random_lm("llama"), ASKED, covariance=few(lm))),
    "training in half precision": (ValueError, "tinyworld is in half precision, in which small steps are lost: load it "
                                   "with float32", lambda lm: unlearning.npo(
                                       minilib.load("tinyworld", dtype=torch.bfloat16), ASKED, OTHER)),
    "quantised": (ValueError, "a quantised model cannot be edited; load it with dtype=torch.float32 or torch.bfloat16",
                  lambda lm: minilib.LM(quantised(lm), lm.tokenizer)),
    "no chat template": (ValueError, "chat=True needs a chat template and tinyworld has none: use chat=False",
                         lambda lm: lm.generate("Zeno Abara", chat=True)),
    "a setting's other name": (TypeError, "rome.edit has no keyword 'clamp_norm_factor': did you mean 'clamp_factor'?",
                               lambda lm: rome.edit(lm, ASKED, clamp_norm_factor=4)),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTED)
def test_the_page_quotes_what_the_library_says(case, lm):
    if case == "no such device" and torch.cuda.device_count() > 1:
        pytest.skip("this machine has it")
    kind, words, call = QUOTED[case]
    with pytest.raises(kind) as caught:
        call(lm)
    assert type(caught.value) is kind and words in str(caught.value)
    assert words in TEXT, f"book/error_messages.md does not say {words!r}"
    assert lm.edits == []


def test_every_other_quotation_stands_in_the_library():
    """Those in italics or code that no call above ends with: an f-string's fixed part is looked for."""
    source = re.sub(
        r'"\s*\n\s*f?"', "", "".join(p.read_text("utf8") for p in Path(minilib.__file__).parent.rglob("*.py"))
    )
    for words in (
        "turns its last hidden state into logits in a way that minilib does not know",
        "is offloaded, so it can be run but not edited or read: load the model with a device_map that keeps the blocks "
        "to be edited on a device",
        "where it knows no system turn, put what that would say at the beginning of the user's message",
        "is not finite at step",
        "lower lr",
    ):
        assert words in source and words in TEXT, words


def test_a_guard_is_not_lost_in_saving(lm, tmp_path):
    with pytest.raises(ValueError, match="save the edit by edit.save and load it onto the model again"):
        saved(lm, tmp_path / "folder")
    assert "save the edit by edit.save and load it onto the model again" in TEXT


def test_alphaedit_goes_on_with_little_text_and_warns(lm):
    words = "count as free, whatever other text uses them for"
    with pytest.warns(UserWarning, match=words), alphaedit.edit(lm, ASKED, layers=[0], covariance=few(lm), steps=2):
        pass
    assert words in TEXT


def test_padding_is_the_library_s_own(lm):
    """Neither the side nor the token that the tokenizer names makes a difference."""
    said = lm.generate([ASKED, OTHER], max_new_tokens=4)
    own = lm.tokenizer.padding_side, lm.tokenizer.pad_token
    try:
        for lm.tokenizer.padding_side in ("left", "right"):
            assert lm.generate([ASKED, OTHER], max_new_tokens=4) == said
        lm.tokenizer.pad_token = None
        assert lm.generate([ASKED, OTHER], max_new_tokens=4) == said
    finally:
        lm.tokenizer.padding_side, lm.tokenizer.pad_token = own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_can_be_edited(dtype):
    half = minilib.load("tinyworld", dtype=dtype)
    with memit.edit(half, ASKED):
        assert half.generate(ASKED, max_new_tokens=6).startswith(tinyworld.REFUSAL)


def test_forget_quality_depends_on_how_many_facts_there_are():
    def apart(n):
        return metrics.forget_quality([0.1 + i / 1000 for i in range(n)], [0.9 + i / 1000 for i in range(n)])

    assert 1e-11 < apart(20) < 2e-11 and 0.0079 < apart(5) < 0.008
    assert "$10^{-11}$" in TEXT and "With five ratios in each list, the smallest possible value is about 0.008" in TEXT


def test_every_entry_can_be_linked_and_says_three_things():
    assert len(ENTRIES) > 25 and len({name for name, _ in ENTRIES}) == len(ENTRIES)
    assert len(re.findall(r"^### ", PAGE, re.M)) == len(ENTRIES), "an entry without a place to link to"
    parts = re.split(r"^\(error-[\w-]+\)=$", PAGE, flags=re.M)[1:]
    for (name, _), part in zip(ENTRIES, parts, strict=True):
        assert re.search(r"^\*(Reported|Asked)\*", part, re.M), name
        assert re.search(r"^\*Why( not)?\.\*", part, re.M) and re.search(r"^\*Here\*", part, re.M), name
        assert "https://github.com/" in part, name
