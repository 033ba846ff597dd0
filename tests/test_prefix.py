"""Prefixes that are run once: the suffixes give what whole texts give, again and again."""

import pytest
import torch

from minilib import forward, hooks

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
