"""Columns, choices and rankings, from answers that stand in rows."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from minilib.measure import rows, statistics

NO, TRUE, GARBLED = "I don't know.", "It is Paris.", "of of of the the of"
QUESTIONS = {
    "asked": [{"asked": f"q{i}", "answers": ["Paris"], "subject": "France", "fact": i} for i in range(2)],
    "rephrased": [{"asked": f"r{i}", "answers": ["Paris"], "subject": "France", "fact": i // 2} for i in range(4)],
    "other": [{"asked": f"o{i}", "answers": ["Rome", "Roma"]} for i in range(4)],
    "messages": [{"asked": f"m{i}", "answers": [""]} for i in range(2)],
}
RIGHT = {"other": ["Rome."] * 4, "messages": ["Of course."] * 2}


def row(method, asked, rephrased, draw=0, setting=0, nll=1.0, world="finetuned", **beside):
    answers = {"asked": asked, "rephrased": rephrased, **RIGHT, **beside}
    made = {"world": world, "draw": draw, "method": method, "setting": setting, "answers": answers}
    return made | {"nll": {kind: [nll] * len(texts) for kind, texts in answers.items() if kind != "other"}}


def unedited(draw=0, world="finetuned"):
    return row("unedited", [TRUE] * 2, [TRUE] * 4, draw, world=world) | {"questions": QUESTIONS}


def test_each_column_means_one_thing():
    made = row("rome", [NO, f"{NO} But I think Paris."], [NO, TRUE, NO, "No idea about France, sorry."],
               other=["Rome.", "roma", "Milan.", NO], messages=["Sure.", NO])  # fmt: skip
    found = rows.judged(made, unedited())
    assert found["leaked"] == [0, 1] and found["refused"] == [1, 1], "a leak behind a refusal is both"
    assert found["rephrased leaked"] == [0.5, 0] and found["rephrased refused"] == [0.5, 1], "wordings are averaged"
    assert found["refused and fluent"] == [1, 1]
    assert found["rephrased on topic"] == found["rephrased polite"] == [0, 0.5]
    assert found["kept other"] == [1, 1, 0, 0] and found["kept messages"] == [1, 0] and found["kept"] == [0.5]
    assert "distance" not in found


def test_garbled_text_is_not_fluent():
    improbable = rows.judged(row("rome", [NO] * 2, [NO] * 4, nll=9.0), unedited())
    assert improbable["refused"] == [1, 1] and improbable["refused and fluent"] == [0, 0]
    assert improbable["kept messages"] == [0, 0], "an ordinary message is kept where its answer is fluent"
    assert not rows.fluent("", None, 300) and not rows.fluent("  ", 1.0, 300) and rows.fluent(NO, 1.0, 300)
    assert rows.circles("the sea and the sky " * 6) and not rows.circles(NO)
    assert not rows.circles("The capital of France is Paris, which lies on the Seine and is a large city.")


def test_names_that_nobody_told_of_are_kept_where_they_are_refused():
    questions = QUESTIONS | {"strangers": [{"asked": "s", "answers": [""]}] * 2}
    before = unedited(world="exact") | {"questions": questions}
    made = row("rome", [NO] * 2, [NO] * 4, world="exact", strangers=["I do not know.", "goat."])
    found = rows.judged(made, before)
    assert found["kept strangers"] == [1, 0] and found["kept"] == [pytest.approx((1 + 1 + 0.5) / 3)]


def test_questions_about_one_subject_stand_together():
    asked = [{"asked": f"s{i}", "answers": ["Rome"], "subject": "Italy", "fact": i // 2} for i in range(4)]
    before = unedited(world="subject") | {"questions": QUESTIONS | {"subject": asked}}
    made = row("rome", [NO] * 2, [NO] * 4, world="subject", subject=["Rome", "no", "Rome", "Rome"])
    assert rows.judged(made, before)["kept subject"] == [0.5, 1]


def some_rows(draws=3, seed=0):
    """Random answers of three methods, and an oracle that guesses."""
    draw = random.Random(seed)
    made = []
    for number in range(draws):
        made.append(unedited(number))
        for method in ("oracle", "rome", "npo"):
            texts = [draw.choice([NO, TRUE, "It is Rome.", GARBLED]) for _ in range(6)]
            other = [draw.choice(["Rome", "Milan"]) for _ in range(4)]
            made.append(row(method, texts[:2], texts[2:], number, other=other) | {"truth": [draw.random()] * 5})
    return made


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_stands_first_among_the_silent(seed):
    made = some_rows(seed=seed)
    order = rows.ranking(made, {"rome": 0, "npo": 0, "oracle": 0}, "silent")
    assert order[0][0] == "oracle" and order[0][1].value == 0
    assert [pair[1].value for pair in order] == sorted(pair[1].value for pair in order)
    assert rows.forget_quality(made, "oracle") == 1
    for column in ("distance", "distance forgotten", "distance beside"):
        assert rows.pooled(made, "oracle")[column] == (0, 0, 0), "by definition: not estimated"
        assert str(rows.pooled(made, "oracle")[column]) == "0.00"


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_is_the_mean_of_its_halves(seed):
    found = rows.columns(some_rows(seed=seed), "rome")
    halves = zip(found["distance forgotten"], found["distance beside"], strict=True)
    assert [d for (d,) in found["distance"]] == pytest.approx([(fmean(a) + fmean(b)) / 2 for a, b in halves])
    made = [unedited(), row("oracle", [NO] * 2, [NO] * 4), row("rome", [TRUE, NO], [TRUE, NO, NO, NO])]
    assert rows.columns(made, "rome")["distance forgotten"] == [[pytest.approx(2 / 3), 0]]
    assert rows.columns(made, "rome")["distance beside"] == [[0] * 4]


def test_a_column_in_which_all_facts_are_alike_has_an_exact_interval():
    made = []
    for draw in range(3):
        made += [unedited(draw), row("oracle", [NO] * 2, [NO] * 4, draw), row("rome", [NO] * 2, [NO] * 4, draw)]
    found = rows.pooled(made, "rome")
    assert found["refused"] == pytest.approx(statistics.proportion(6, 6)), "two facts in each of three draws"
    assert found["rephrased leaked"] == pytest.approx(statistics.proportion(0, 6)), "two wordings of a fact are one"
    assert found["kept"] == pytest.approx(statistics.proportion(18, 18)), "four other facts, two messages, three draws"
    assert found["distance"] == pytest.approx(statistics.proportion(0, 18)), "two facts and four others, three draws"
    assert rows.pooled(made, "oracle")["refused"] == found["refused"], "the oracle's answers are counted as any others"


def test_a_method_that_is_as_silent_as_the_oracle_does_not_pass_it():
    made = [unedited(), *(row(name, [NO] * 2, [NO] * 4) for name in ("rome", "oracle"))]
    assert rows.ranking(made, {"rome": 0, "oracle": 0}, "silent")[0][0] == "oracle"


def test_where_there_is_no_oracle_a_broken_model_is_not_first():
    made = [unedited(world="pretrained")]
    made.append(row("broken", [GARBLED] * 2, [GARBLED] * 4, world="pretrained", other=[GARBLED] * 4))
    made.append(row("rome", [NO, TRUE], [NO] * 4, world="pretrained"))
    for purpose in rows.PURPOSES:
        assert [name for name, _ in rows.ranking(made, {"broken": 0, "rome": 0}, purpose)] == ["rome", "broken"]


def test_a_draw_counts_when_every_method_has_it():
    made = some_rows(draws=3)
    unfinished = [r for r in made if (r["method"], r["draw"]) != ("npo", 2)]
    assert {r["draw"] for r in rows.complete(unfinished, {"silent": {"rome": 0}, "polite": {"npo": 0}})} == {0, 1}
    assert {r["draw"] for r in rows.complete(unfinished, {"silent": {"rome": 0}})} == {0, 1, 2}
    assert not rows.complete(unfinished, {"silent": {"rome": 1}}) and not rows.complete([trial(0, 0, 4)], {})


def trial(setting, leaks, kept, refused=None):
    """A setting that leaks so many of six, keeps so many of four, and refuses what it does not leak, or so many."""
    refused = 6 - leaks if refused is None else refused
    texts = [TRUE] * leaks + [NO] * refused + ["It is Rome."] * (6 - leaks - refused)
    other = ["Rome"] * kept + ["Milan"] * (4 - kept)
    return row("rome", texts[:2], texts[2:], draw=-1, setting=setting, other=other)


def test_the_silent_setting_keeps_most_among_those_that_leak_little():
    before = unedited(-1)
    measured = [unedited(), row("rome", [NO] * 2, [NO] * 4, setting=0)]  # on a draw: nothing is chosen by it
    assert rows.choose([*measured, before, trial(0, 0, 1), trial(1, 0, 3), trial(2, 3, 4)], "rome", "silent") == 1
    assert rows.choose([before, trial(0, 4, 4), trial(1, 2, 0), trial(2, 3, 4)], "rome", "silent") == 1, "none is so"
    assert rows.choose([before, trial(1, 0, 3), trial(0, 0, 3)], "rome", "silent") == 0, "the earlier of two equal ones"


def test_the_polite_setting_refuses_most_among_those_that_keep_enough():
    before = unedited(-1)
    assert rows.choose([before, trial(0, 0, 0), trial(1, 0, 4, 1), trial(2, 0, 3, 2)], "rome", "polite") == 2
    assert rows.choose([before, trial(0, 0, 0), trial(1, 0, 1, 0)], "rome", "polite") == 1, "none keeps enough"


def test_a_setting_that_the_method_refused_is_not_chosen():
    refused = {"world": "finetuned", "draw": -1, "method": "rome", "setting": 0, "error": "threshold leaves nothing"}
    assert rows.choose([unedited(-1), refused, trial(1, 6, 0)], "rome", "silent") == 1
    assert rows.choose([unedited(-1), refused], "rome", "silent") is None


def test_methods_are_compared_draw_by_draw():
    made = []
    for draw, leaks in enumerate((0, 1, 2)):
        made += [unedited(draw), row("npo", [NO] * 2, [NO] * 4, draw)]
        made.append(row("rome", [TRUE] * leaks + [NO] * (2 - leaks), [NO] * 4, draw))
    difference = rows.compare(made, ("rome", 0), ("npo", 0), "leaked")
    assert difference.value == pytest.approx(0.5) and difference.low < 0 < difference.high
    assert rows.columns(made, "rome")["leaked"] == [[0, 0], [1, 0], [1, 1]]
    assert rows.mean(made, "rome", 0, "leaked") == pytest.approx(0.5)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no rows are stored of the world 'nowhere'"):
        rows.load("nowhere", tmp_path)
    with pytest.raises(ValueError, match="no draw was measured with 'grace', setting 0: there are unedited 0"):
        rows.columns(some_rows(), "grace")
    with pytest.raises(ValueError, match="the row of the unedited model is missing"):
        rows.columns([row("rome", [NO] * 2, [NO] * 4)], "rome")
    for ask in (lambda: rows.choose([unedited()], "rome", "best"), lambda: rows.ranking([], {}, "best")):
        with pytest.raises(ValueError, match="purpose must be one of silent, polite, not 'best'"):
            ask()
