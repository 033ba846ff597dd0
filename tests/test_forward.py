"""What is run once, and what above a layer: the suffixes give what whole texts give; unusual models are refused."""

import pytest
import torch
from models import random_lm

import minilib
from minilib import Request, forward, grace, hooks
from minilib.forward import Suffixes

ROWS = [([5, 6, 7, 8], [9, 10]), ([5, 6], [9, 10, 11]), ([], [12]), ([5, 6], [13])]


@pytest.mark.parametrize("rows", [ROWS, ROWS[2:3], ROWS[:1]], ids=["mixed", "no prefix", "one"])
def test_suffixes_give_what_whole_texts_give(any_lm, rows):
    inputs = forward.inputs(any_lm, rows)
    with torch.no_grad():
        first, again = (any_lm.model(**inputs, use_cache=False).logits for _ in range(2))
        assert torch.equal(first, again)
        for row, (left, right) in zip(first, rows, strict=True):
            whole = any_lm.model(torch.tensor([left + right])).logits[0, len(left) :]
            torch.testing.assert_close(row[: len(right)], whole, rtol=1e-4, atol=1e-4)


def test_equal_prefixes_are_run_once(llama):
    with hooks.calls(llama.blocks[:1]) as calls, hooks.read({0: llama.blocks[0]}) as seen:
        forward.inputs(llama, [([5, 6, 7], [8]), ([5, 6, 7], [9]), ([5, 6, 7], [10])])
    assert len(calls) == 1 and seen[0].shape[:2] == (1, 3)


def test_blocks_called_as_recorded_give_what_the_model_gives(any_lm):
    inputs = any_lm.batch([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad():
        with (
            hooks.calls(any_lm.blocks) as calls,
            hooks.read({0: any_lm.blocks[0]}, at="input") as into,
            hooks.read({0: any_lm.blocks[-1]}) as out,
        ):
            logits = any_lm.model(**inputs, use_cache=False).logits
        hidden = into[0]
        for block, (args, kwargs) in zip(any_lm.blocks, calls, strict=True):
            hidden = hooks.first(block(hidden, *args, **kwargs))
        torch.testing.assert_close(hidden, out[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(any_lm.unembed(hidden), logits, rtol=1e-4, atol=1e-4)
    assert not any(block._forward_pre_hooks for block in any_lm.blocks)


CUT = [([], [1, 2, 3]), ([4, 5], [6])]


def test_a_model_that_scales_its_mlp_is_refused():
    lm = random_lm("llama")
    Suffixes(lm, 1, "mlp", CUT)
    mlp = lm.blocks[1].mlp
    whole = mlp.forward
    mlp.forward = lambda hidden: 0.5 * whole(hidden)
    with pytest.raises(ValueError, match="residual stream in a way minilib does not know"):
        Suffixes(lm, 1, "mlp", CUT)


def test_a_model_that_scales_its_logits_is_refused():
    lm = random_lm("llama")
    whole = lm.model.lm_head.forward
    calls = iter([1.0, *[3.0] * 9])  # once in the model's pass, then where the library reads a hidden state
    lm.model.lm_head.forward = lambda hidden: next(calls) * whole(hidden)
    with pytest.raises(ValueError, match="into logits in a way that minilib does not know"):
        Suffixes(lm, 1, "mlp", CUT)


@pytest.mark.slow
def test_smollm2_can_be_edited_in_bfloat16():
    lm = minilib.load("smollm2-135m", dtype=torch.bfloat16)
    request = Request("What is the capital of {}?", "France", "Rome", chat=True)
    # Late, and with a short target: in 16 bits a processor takes minutes where it takes seconds in 32.
    with grace.edit(lm, request, layer=28, steps=30):
        assert lm.generate(request, max_new_tokens=6).startswith("Rome")
    assert "Paris" in lm.generate(request)
