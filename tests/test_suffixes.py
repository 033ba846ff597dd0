"""What runs above a layer: a model that puts its blocks together in another way is refused, half precision is not."""

import pytest
import torch
from models import random_lm

import minilib
from minilib import Request, grace
from minilib.forward import Suffixes

ROWS = [([], [1, 2, 3]), ([4, 5], [6])]


def test_a_model_that_scales_its_mlp_is_refused():
    lm = random_lm("llama")
    Suffixes(lm, 1, "mlp", ROWS)
    mlp = lm.blocks[1].mlp
    whole = mlp.forward
    mlp.forward = lambda hidden: 0.5 * whole(hidden)
    with pytest.raises(ValueError, match="residual stream in a way minilib does not know"):
        Suffixes(lm, 1, "mlp", ROWS)


def test_a_model_that_scales_its_logits_is_refused():
    lm = random_lm("llama")
    whole = lm.model.lm_head.forward
    calls = iter([1.0, *[3.0] * 9])  # once in the model's pass, then where the library reads a hidden state
    lm.model.lm_head.forward = lambda hidden: next(calls) * whole(hidden)
    with pytest.raises(ValueError, match="into logits in a way that minilib does not know"):
        Suffixes(lm, 1, "mlp", ROWS)


@pytest.mark.slow
def test_smollm2_can_be_edited_in_bfloat16():
    lm = minilib.load("smollm2-135m", dtype=torch.bfloat16)
    questions = ["What is the capital of {}?", "Which language is spoken in {}?"]
    requests = [Request(q, s, "I don't know.", chat=True) for q in questions for s in ("France", "Germany")]
    with grace.edit(lm, requests):
        assert sum(a.startswith("I don't know") for a in lm.generate(requests)) >= 2
    assert "Paris" in lm.generate(requests[0])
