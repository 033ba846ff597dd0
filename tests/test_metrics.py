"""Measuring: free generation first, the teacher-forced number beside it."""

import math

import pytest
import torch
from models import assert_same_weights, weights

import minilib
from minilib import Request, metrics, rome
from minilib import facts as real_facts
from minilib.worlds.facts import Fact
from minilib.worlds.tinyworld import facts


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
    search = {**reference["search"], "steps": 10, "lr": 0.5}
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


def test_divergence_is_zero_without_an_edit_and_measures_from_the_unedited_model(llama, reference, brief):
    assert metrics.divergence(llama, TEXTS) == 0
    before = [x.exp() for x in llama.target_steps(metrics._read(llama, TEXTS))]
    arguments = {"layer": 2, "covariance": reference["covariance"], **brief}
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


# ---- unlearning ----


def test_probabilities_and_ranks_of_true_answers(tinyworld):
    lm = tinyworld
    fact = facts()[0]
    request = minilib.Request(fact.prompts[0], fact.subject, fact.target)
    (p,) = metrics.answer_probability(lm, request)
    assert p == pytest.approx(lm.probability(request) ** (1 / len(lm.encode_target(fact.target))), rel=1e-4)
    assert metrics.reciprocal_rank(lm, request) == [1.0]
    wrong = minilib.Request(fact.prompts[0], fact.subject, " goat")
    order = lm.logprobs(wrong)[0].argsort(descending=True).tolist()
    rank = 1 + order.index(lm.encode_target(" goat")[0])
    assert metrics.reciprocal_rank(lm, wrong) == [pytest.approx(1 / rank)]


def test_rouge_counts_the_words_of_the_answer():
    texts = ["Mira was born in Graz.", "She was born elsewhere.", ""]
    assert metrics.rouge_l(texts, ["Mira was born in Graz."] * 3) == [1.0, pytest.approx(2 / 5), 0.0]
    # Words count in their order, and each once; what is no word is no part of it.
    assert metrics.rouge_l(["in Graz, Mira was born"], ["Mira was born in GRAZ!"]) == [pytest.approx(3 / 5)]
    assert metrics.rouge_l(["the the the"], ["the cat and the dog"]) == [pytest.approx(2 / 5)]
    assert metrics.rouge_l(["anything"], ["…"]) == [0.0]


def test_truth_ratio_is_small_where_the_truth_is_known(tinyworld):
    world = facts()
    values = [fact.value for fact in world[:20:5]]

    def fact(i, right):
        f = world[i]
        wrong = tuple(f" {v}" for v in values if v != f.value)[:3]
        return Fact("birthplace", f.subject, f.value, (), f.prompts[0], f.prompts[-1], (), (), None, wrong=wrong,
                    paraphrase=f" {f.value}" if right else wrong[0])  # fmt: skip

    known, unknown = metrics.truth_ratio(tinyworld, [fact(0, True), fact(0, False)])
    assert known < 0.05 and unknown > 0.3
    p = metrics.answer_probability(
        tinyworld, [fact(0, True).request(a, False) for a in (f" {world[0].value}", *fact(0, True).wrong)]
    )
    assert known == pytest.approx(sum(p[1:]) / 3 / p[0], rel=1e-4)
    (ofcode,) = metrics.truth_ratio(tinyworld, [fact(0, True)], mean="geometric")
    assert ofcode == pytest.approx((p[1] * p[2] * p[3]) ** (1 / 3) / p[0], rel=1e-4) and ofcode <= known


def test_truth_ratio_says_what_is_missing(tinyworld):
    for known in (real_facts.load("capital")[:1], facts()[:1]):
        with pytest.raises(ValueError, match=r"facts\[0\] needs wrong answers"):
            metrics.truth_ratio(tinyworld, known)
    with pytest.raises(ValueError, match="mean must be 'arithmetic' or 'geometric', not 'median'"):
        metrics.truth_ratio(tinyworld, [], mean="median")
    for ratios in (([], [0.5]), ([0.5], [])):
        with pytest.raises(ValueError, match="forget_quality needs truth ratios of both models"):
            metrics.forget_quality(*ratios)


def test_forget_quality_and_utility():
    same = [0.1 * i for i in range(20)]
    assert metrics.forget_quality(same, same) == 1.0
    assert metrics.forget_quality(same, [x + 5 for x in same]) < 1e-6
    assert metrics.model_utility({"a": {"p": 0.5, "r": 1.0}, "b": {"p": 1.0}}) == pytest.approx(3 / (2 + 1 + 1))
    assert metrics.model_utility({"a": {"p": 0.0, "r": 1.0}}) == 0.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.model_utility({"a": {"p": 2.0}})


def test_fluency_is_that_of_the_unedited_model(tinyworld):
    lm = tinyworld
    fact = facts()[0]
    request = minilib.Request(fact.prompts[0], fact.subject, " I do not know.")
    answers = [fact.target + ".", " lute lute lute", ""]
    before = metrics.fluency(lm, [request.text] * 3, answers)
    assert before[0] < 2 < before[1] and before[2] == math.inf
    with minilib.rome.edit(lm, request, layer=1):
        assert metrics.fluency(lm, [request.text] * 3, answers) == pytest.approx(before)


def test_an_interval_narrows_with_more_values():
    mean, low, high = metrics.interval([0, 1] * 10)
    _, closer, nearer = metrics.interval([0, 1] * 200)
    assert mean == 0.5 and low < closer < 0.5 < nearer < high
    assert metrics.interval([1.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="must not be empty"):
        metrics.interval([])


def test_kappa_is_agreement_beyond_chance():
    yes, no = ["yes"] * 5, ["no"] * 5
    assert metrics.cohens_kappa(yes + no, yes + no) == 1
    assert metrics.cohens_kappa(yes + no, no + yes) == -1
    assert metrics.cohens_kappa(yes, yes) == 1
    first, second = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert metrics.cohens_kappa(first, second) == pytest.approx(0.4)  # p = 0.7, e = 0.5 · 0.6 + 0.5 · 0.4
    with pytest.raises(ValueError, match="must not be empty"):
        metrics.cohens_kappa([], [])
