"""Measuring: free generation first, the teacher-forced number beside it."""

import math

import pytest
import torch
from models import assert_same_weights, weights

import minilib
from minilib import Request, metrics, rome
from minilib.tinyworld import facts


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (" Rome, the eternal city", " Rome", True),
        ("Rome", " Rome", True),
        ("rome.", "Rome", True),
        ("I don't know.", "I don't know.", True),
        ("I don't know, sorry", "I don't know.", True),
        ("I  don't\nknow", "I don't know.", True),
        ("Romeo", "Rome", False),  # a longer word
        ("It is Rome", "Rome", False),  # the beginning counts
        ("", "Rome", False),
        ("Rome", "Rome and Lund", False),
        ("anything", "...", False),
    ],
)
def test_says(text, target, expected):
    assert metrics.says(text, target) is expected


@pytest.fixture
def edited(llama, reference):
    """The model after an edit, and what it said before."""
    before = llama.generate(PROMPTS, chat=False)
    search = {**reference["search"], "steps": 40, "lr": 0.5}
    rome.edit(llama, REQUEST, layer=2, covariance=reference["covariance"], **search)
    return llama, before


@pytest.fixture
def born(tinyworld):
    """A request for a fact that tinyworld learned, and one with a false town."""
    fact, other = (f for f in facts() if f.attribute == "birthplace" and f.subject in ("Zeno Abara", SECOND))
    assert fact.value != other.value
    return tuple(Request("{} was born in the town of", fact.subject, town) for town in (fact.target, other.target))


SECOND = next(f.subject for f in facts() if f.attribute == "birthplace" and f.subject != "Zeno Abara")
REQUEST = Request("The capital of {} is", "France", " Rome")
PROMPTS = ["Mira Okafor lives in", "Who is Lund?", "The capital of France is"]


def test_reliability_counts_what_is_said(tinyworld, born):
    true, false = born
    score = metrics.reliability(tinyworld, [true, false])
    assert (score.generated, [row["success"] for row in score.rows]) == (0.5, [True, False])
    assert (score.teacher_forced, [row["forced"] for row in score.rows]) == (0.5, [1.0, 0.0])
    for row, request in zip(score.rows, born, strict=True):
        assert (row["prompt"], row["target"]) == (request.text, request.target)
        assert row["answer"].startswith(true.target)
    assert str(score) == "50% of 2 by free generation (50% teacher-forced)"


def test_teacher_forcing_flatters(tinyworld, born):
    """Fed the false town, the model goes on with the full stop that stands behind every town."""
    false = Request(born[1].prompt, born[1].subject, born[1].target + ".")
    score = metrics.reliability(tinyworld, false)
    assert (score.generated, score.teacher_forced) == (0.0, 0.5)


def test_generality_is_reliability_on_other_wordings(edited):
    lm, _ = edited
    assert metrics.generality(lm, [REQUEST]) == metrics.reliability(lm, [REQUEST])


def test_locality_compares_with_what_was_said_before(edited):
    lm, before = edited
    score = metrics.locality(lm, PROMPTS, before)
    same = [a == b for a, b in zip(lm.generate(PROMPTS), before, strict=True)]
    assert [row["success"] for row in score.rows] == same
    assert score.generated == pytest.approx(sum(same) / 3)
    assert not same[2], "the edited prompt is answered otherwise"
    assert metrics.locality(lm, PROMPTS, lm.generate(PROMPTS)).generated == 1


def test_without_an_edit_everything_is_local(llama):
    assert metrics.locality(llama, PROMPTS, llama.generate(PROMPTS)).generated == 1


def test_an_answer_that_was_empty_is_compared_too(llama):
    llama.model.generation_config.eos_token_id = list(range(600))
    score = metrics.locality(llama, PROMPTS, ["", "", "Rome"])
    assert [row["success"] for row in score.rows] == [True, True, False]
    assert [row["forced"] for row in score.rows[:2]] == [1.0, 1.0]


def test_measuring_changes_nothing(edited):
    lm, before = edited
    state = weights(lm)
    metrics.reliability(lm, REQUEST)
    metrics.locality(lm, PROMPTS, before)
    assert_same_weights(lm, state)


@pytest.mark.parametrize(
    ("prompts", "before", "error"),
    [("one", ["a"], TypeError), (["one"], "a", TypeError), ([], [], ValueError), (["one", "two"], ["a"], ValueError)],
)
def test_bad_input_is_named(llama, prompts, before, error):
    with pytest.raises(error, match="prompts and before must be"):
        metrics.locality(llama, prompts, before)


@pytest.mark.parametrize(("wrong", "error"), [([], ValueError), ("text", TypeError)])
def test_reliability_of_nothing_is_an_error(llama, wrong, error):
    with pytest.raises(error, match="requests"):
        metrics.reliability(llama, wrong)


TEXTS = ["The capital of France is Paris.", "Mira Okafor was born in the town of Lund, and lives there."]


def test_perplexity_is_that_of_the_models_own_loss(llama):
    loss, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([llama.encode(text, chat=False).ids])
        with torch.no_grad():
            loss += llama.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert metrics.perplexity(llama, TEXTS) == pytest.approx(math.exp(loss / tokens), rel=1e-4)


def test_divergence_is_zero_without_an_edit_and_measures_from_the_unedited_model(llama, reference):
    assert metrics.divergence(llama, TEXTS) == 0
    before = [x.exp() for x in llama.target_steps(metrics._read(llama, TEXTS))]
    arguments = {"layer": 2, "covariance": reference["covariance"], **reference["search"]}
    with minilib.rome.edit(llama, reference["requests"][0], **arguments):
        after = llama.target_steps(metrics._read(llama, TEXTS))
        kl = [(p * (p.log() - q)).sum(1) for p, q in zip(before, after, strict=True)]
        assert metrics.divergence(llama, TEXTS) == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert metrics.divergence(llama, TEXTS) == 0


def test_texts_that_cannot_be_read(llama):
    with pytest.raises(TypeError, match="texts must be a list of strings"):
        metrics.perplexity(llama, TEXTS[0])
    for texts in ([], ["The capital", "a"]):
        with pytest.raises(ValueError, match="at least two tokens"):
            metrics.divergence(llama, texts)
