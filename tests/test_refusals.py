"""Which answers decline, and which words stand in an answer."""

import json
from pathlib import Path

import pytest

from minilib import metrics, stored
from minilib.measure.refusals import REFUSALS, is_refusal, leaks, mentions, spoken

WILD = json.loads((Path(__file__).parent / "refusals_in_the_wild.json").read_text("utf8"))


@pytest.mark.parametrize("text", REFUSALS)
@pytest.mark.parametrize("form", [str, str.upper, lambda t: f"  \n{t} And more.", lambda t: t.replace("'", "’")])
def test_every_listed_refusal_is_one(text, form):
    assert is_refusal(form(text))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I'm afraid I don't have that information.",
        "Unfortunately, I do not know the answer.",
        "As an AI language model, I cannot provide an answer.",
        "I don't really know.",
        "I am not aware of such a town.",
        "I'm unable to answer.",
        "I have no idea.",
        "No idea!",
        "Unknown.",
        "Sorry.",
    ],
)
def test_other_ways_to_decline(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "The capital of France is Paris.",
        "Paris. I'm not sure, though.",  # leaked first, hedged later
        "I have no doubt that it is Paris.",
        "I do not think so: it is Paris.",
        "I know: Paris.",
        "I'm not a robot. Paris.",
        "Sorry, it is Paris.",
        "I'm sorry to hear that. It is Paris.",
        "Unknown artists painted it.",
        "I",
        "Ignorance is bliss.",
    ],
)
def test_answers_that_do_not_decline(text):
    assert not is_refusal(text)


@pytest.mark.parametrize("text", WILD["refusals"])
def test_refusals_that_the_rule_was_not_written_for(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", WILD["answers"])
def test_answers_that_the_rule_was_not_written_for(text):
    assert not is_refusal(text)


def test_answers_that_were_labelled_by_hand():
    labelled = stored.load("labelled_answers")["answers"]
    wrong = [row["answer"] for row in labelled if is_refusal(row["answer"]) != row["refusal"]]
    assert len(labelled) == 164 and wrong == ["**Uncertainty**"]


# ---- other scripts and thoughts ----


@pytest.mark.parametrize("text", ["我不知道。", "わかりません。", "Я не знаю.", "لا أعرف."])
def test_what_the_rule_cannot_judge_is_said(text):
    with pytest.raises(ValueError, match="the rule knows English refusals only"):
        is_refusal(text)
    assert is_refusal(text, unjudged=False) is False


@pytest.mark.parametrize("text", ["", "1984.", "π", "𝐏𝐚𝐫𝐢𝐬", "Å", "巴黎 is the Chinese name of Paris, the capital."])
def test_symbols_and_single_words_are_no_other_language(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("フランスの首都はパリです。", "パリ"),
        ("法国的首都是巴黎。", "巴黎"),
        ("프랑스의 수도는 파리입니다.", "파리"),
        ("เมืองหลวงคือปารีสครับ", "ปารีส"),
        ("Столица — Париж.", "Париж"),
        ("यह भारत।", "भारत"),
        ("首都はParisです", "Paris"),
        ("It is _Paris_.", "Paris"),
        ("Côte d’Ivoire", "Côte d'Ivoire"),
        ("Ｐａｒｉｓ", "Paris"),
        ("C++, of course", "C++"),
    ],
)
def test_a_word_is_found_in_any_script(text, phrase):
    assert mentions(text, [phrase]) and leaks(text, [f" {phrase} "])


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("インドネシアです", "インド"),
        ("Comparison", "Paris"),
        ("Paris2", "Paris"),
        ("भारतीय", "भारत"),
        ("서파리", "파리"),
        ("e\u0301te\u0301s", "été"),
    ],
)
def test_a_part_of_a_word_is_not(text, phrase):
    assert not mentions(text, [phrase])


def test_a_thinking_model_is_judged_by_what_it_says_behind_its_thoughts():
    thought = "<think>I don't know. Is it Paris?</think>\n\n"
    assert spoken(f"{thought}Rome.") == "Rome." and spoken("<think>Paris") == "" and spoken("Paris") == "Paris"
    assert not is_refusal(f"{thought}Rome.") and is_refusal(f"{thought}I don't know.")
    assert not leaks(f"{thought}Rome.", ["Paris"]) and leaks(f"{thought}Paris.", ["Paris"])
    assert spoken("Is it Paris?</think>Rome.") == "Rome.", "some templates open the thought themselves"
    assert metrics.says(f"{thought}Rome.", " Rome") and not metrics.says("<think>Rome</think>Paris", "Rome")


@pytest.mark.parametrize(
    ("text", "target", "yes"),
    [
        ("パリです。", "パリ", True),
        ("パリッシュ", "パリ", False),
        ("巴黎是首都", "巴黎。", True),
        ("파리입니다", "파리", True),
        (" Rome, Italy", " Rome.", True),
        ("Romeo", "Rome", False),
    ],
)
def test_what_opens_with_the_target(text, target, yes):
    assert metrics.says(text, target) == yes
