"""In half precision a row's result does not depend on the rows that are asked beside it."""

import pytest
import torch
from models import random_lm

import minilib
from minilib import facts, grace, metrics

HALF = [torch.bfloat16, torch.float16]
ASKED = ["The capital of France is", "A dog", "In the year of the flood my friend said that he", "Five", "One and two"]
ASKED += [f"{text} and" for text in ASKED]


@pytest.fixture(params=HALF)
def half(request):
    lm = random_lm("llama")
    lm.model.to(request.param)
    return lm


def same(lm, prompts, **how):
    """Answers that were given alone, together, and in another order; each compared with the others by ``locality``."""
    one_by_one = [lm.generate(prompt, **how) for prompt in prompts]
    together = lm.generate(prompts, **how)
    assert one_by_one == together == lm.generate(prompts[::-1], **how)[::-1]
    assert metrics.locality(lm, prompts, [lm.generate(prompt) for prompt in prompts]).generated == 1


@pytest.mark.long
def test_answers_do_not_depend_on_what_is_asked_beside_them(half):
    same(half, ASKED, max_new_tokens=8)


def test_no_score_depends_on_it(half):
    requests = [minilib.Request("The {} is", "town" if i % 2 else "river of all rivers", f" {i} a") for i in range(9)]
    for score in (metrics.answer_probability, metrics.reciprocal_rank, lambda lm, r: lm.logprobs(r).tolist()):
        assert score(half, requests) == [x for r in requests for x in score(half, [r])]
    assert metrics.fluency(half, ASKED, ASKED[::-1]) == [
        x for p, a in zip(ASKED, ASKED[::-1], strict=True) for x in metrics.fluency(half, [p], [a])
    ]
    long = [text for text in ASKED if " " in text]
    assert metrics.divergence(half, long) == 0
    assert metrics.perplexity(half, long) == pytest.approx(metrics.perplexity(half, long[::-1]), rel=1e-9)


def test_what_a_guard_says_of_a_prompt_does_not_depend_on_it(half):
    made = grace.edit(half, minilib.Request("The capital of {} is", "France", " a"), layer=2, epsilon=0.1, steps=3)
    assert made.explain(ASKED) == [row for text in ASKED for row in made.explain(text)]
    said = [answer for _, _, answer in made.answers()]
    assert said == [half.generate(made.requests[0], max_new_tokens=16).strip()]


def test_full_precision_runs_rows_together_and_a_number_is_taken_at_its_word(half):
    llama = random_lm("llama")
    assert llama.together() == 32 and llama.together(most=8) == 8 and llama.together(4) == 4
    assert half.together() == 1 and half.together(most=8) == 1 and half.together(4) == 4
    assert len(half.generate(ASKED, 2, batch_size=4)) == len(ASKED)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF)
def test_the_real_model_without_an_edit_is_as_before(dtype):
    lm = minilib.load("smollm2-135m", dtype=dtype, progress=False)
    known = facts.recorded()
    questions = [known[i].asked.text for i in (2, 4, 7)]  # asked in one batch, they get other answers in either format
    before = [lm.generate(question) for question in questions]
    score = metrics.locality(lm, questions, before)
    assert score.generated == 1 and score.teacher_forced > 0.9
