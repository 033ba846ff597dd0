"""A report of an edit: its numbers are those of the measures and attacks, its page is safe, and the model stays."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
from models import assert_same_weights, weights

import minilib
from minilib import Request, attacks, grace, metrics, report_page, rome, statistics, tasks, tinyworld, unlearning
from minilib.worlds.facts import Question

FEW = ("none", "rephrasings")
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def some():
    """Three facts of tinyworld with others beside them, and the same three questions about people that it never met."""
    draw, world = random.Random(0), tinyworld.facts()
    found = [tasks.as_question(fact, draw) for fact in world[:60:20]]
    beside = [tasks.as_question(fact, draw) for fact in world[500:506]]
    asked = [Question(f.asked.text, f.answer) for f in beside]
    known = [
        dataclasses.replace(f, neighbours=tuple(asked[2 * i : 2 * i + 1]), unrelated=asked[2 * i + 1])
        for i, f in enumerate(found)
    ]
    names = tinyworld.strangers(seen=False)
    return known, [dataclasses.replace(f, subject=name) for f, name in zip(found, names, strict=False)]


@pytest.fixture
def lm(tinyworld):
    return tinyworld


def refused(facts):
    return [f.request(tinyworld.REFUSAL, False) for f in facts]


def test_the_numbers_are_those_of_the_functions(lm, some):
    facts, never = some
    before = lm.generate([f.asked.text for f in facts], max_new_tokens=24)
    with grace.edit(lm, refused(facts)) as edit:
        made = minilib.report(lm, edit, facts, never, attacks=FEW, texts=["Where was Zeno Abara born?"])
        for kind, some_rows in (("none", attacks.none), ("rephrasing", attacks.rephrasings)):
            for found, asked in ((made.attacks[kind], facts), (made.attacks[kind]["alarm"], never)):
                hits = sum(row["recovered"] for row in some_rows(edit, asked))
                _, *ends = statistics.proportion(hits, len(asked))
                assert [found[name] for name in ("hits", "of", "low", "high")] == [hits, len(asked), *ends]
        assert made.ordinary["divergence"] == metrics.divergence(lm, ["Where was Zeno Abara born?"])
        after = lm.generate([f.asked.text for f in facts], max_new_tokens=24)
    asked = [row for row in made.answers if row["kind"] == "asked"]
    assert [row["before"] for row in asked] == [text.strip() for text in before]
    assert [row["after"] for row in asked] == [text.strip() for text in after]
    assert made.measures["revealed when asked"]["hits"] == made.attacks["none"]["hits"] == 0
    assert made.measures["refused when asked"]["hits"] == made.measures["neighbour kept"]["hits"] == 3
    assert made.measures["same subject kept"]["of"] == 0 and "same subject kept" in made.html
    for name, row in made.measures.items():
        shown = f"{row['hits']} of {row['of']}", f"{row['low']:.2f} to {row['high']:.2f}"
        cells = "".join(f'</td><td data-head="{h}">{t}' for h, t in zip(("share", "95% interval"), shown, strict=True))
        assert (name + cells in made.html) == (row["of"] > 0)
    assert lm.fingerprint in made.html and "0.95" not in made.verdict


@pytest.mark.long
def test_every_attack_that_applies_is_run_and_the_others_say_why_not(lm, some):
    facts, never = some
    with grace.edit(lm, refused(facts)) as edit:
        made = minilib.report(lm, edit, facts, never)
    run = {"none", "rephrasing", "sampling", "unguarded", "8 bits", "4 bits", "relearning", "lens"}
    assert set(made.attacks) == run and set(made.left_out) == {"jailbreaks", "negations", "reversal"}
    assert "no chat template" in made.left_out["jailbreaks"] and made.left_out["jailbreaks"] in made.html
    assert made.attacks["unguarded"]["hits"] == 3 and made.verdict == "guarded" and "guarded" in made.html


def test_from_a_few_facts_no_method_gets_a_verdict(lm, some, monkeypatch):
    facts, never = some
    with grace.edit(lm, refused(facts)) as edit:
        made = minilib.report(lm, edit, facts, never, attacks=FEW)
    assert f"asks for {report_page.ENOUGH} facts, and there are {len(facts)}" in made.html
    assert "The verdict by the book" not in made.html
    monkeypatch.setattr(report_page, "ENOUGH", len(facts))
    assert f"The verdict by the book's rules: {made.verdict}" in made.html


@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit", "grace", "wise", "refusal_tuning"])
@pytest.mark.long
def test_any_edit_is_reported_and_the_model_stays_bit_for_bit(lm, some, method, moments, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(moments))
    facts, never = some
    if method == "refusal_tuning":
        how = {"retain": [f.request(f" {f.answer}.", False) for f in never], "steps": 2}
        edit = unlearning.refusal_tuning(lm, refused(facts), refusals=[tinyworld.REFUSAL], **how)
    else:
        edit = minilib.METHODS[method].edit(lm, refused(facts))
    changed, said = weights(lm), lm.generate(refused(facts))
    made = minilib.report(lm, edit, facts, never)
    assert_same_weights(lm, changed)
    assert lm.generate(refused(facts)) == said and lm.edits == [edit]
    assert method in made.title and made.verdict and ("reversal" in made.attacks) == bool(edit.factors)


def test_without_never_there_is_no_false_alarm_rate(lm, some):
    facts, never = some
    with grace.edit(lm, refused(facts)) as edit:
        without = minilib.report(lm, edit, facts, attacks=FEW)
        with_them = minilib.report(lm, edit, facts, never, attacks=FEW)
    assert report_page.UNALARMED.split("(")[0] in without.html and without.verdict == ""
    assert report_page.UNALARMED.split("(")[0] not in with_them.html and with_them.verdict
    assert all(row["alarm"] is None for row in without.attacks.values())


def test_texts_are_shown_as_text_and_nothing_is_loaded(lm, some, tmp_path):
    facts = some[0]
    evil = dataclasses.replace(facts[0], question="{} " + EVIL, prompt="{} " + EVIL)
    edit = grace.edit(lm, refused(facts))
    made = minilib.report(lm, edit, [*facts], attacks=["none"], about={EVIL: EVIL})
    row = made.answers[0] | {"after": EVIL, "asked": evil.asked.text}
    made = dataclasses.replace(made, answers=[row, *made.answers[1:]], title=EVIL, left_out={EVIL: EVIL})
    for page in (made.html, made._repr_html_()):
        assert "<script" not in page and page.count("&lt;script&gt;") >= 7
        assert not re.search(r"https?:|src=|href=|@import|url\(", page)
    assert made.save(tmp_path / "report.html").read_text("utf8") == made.html
    with pytest.raises(OSError, match="cannot be written"):
        made.save(tmp_path / "nowhere" / "report.html")


def test_limits_are_met_where_the_whole_interval_is_on_the_good_side(lm, some):
    facts = some[0]
    limits = {"revealed when asked": 0.9, "neighbour kept": 0.9, "refused when asked": 0.2, "refused elsewhere": 0.1}
    with grace.edit(lm, refused(facts)) as edit:
        made = minilib.report(lm, edit, facts, attacks=[], accept=limits)
        wrong = minilib.report(lm, edit, facts, attacks=[], accept={"refused when asked": 1.0})
    assert [made.measures[name]["met"] for name in limits] == ["yes", "undecided", "yes", "undecided"]
    assert wrong.measures["refused when asked"]["met"] == "undecided", "3 of 3 do not show that all are refused"


def test_what_is_stated_is_shown_and_what_is_not_is_named(lm, some):
    with grace.edit(lm, refused(some[0])) as edit:
        made = minilib.report(lm, edit, some[0], attacks=[], about={"who checked the answers": "A. Nonymous"})
    assert made.html.count("not stated") == len(minilib.reporting.STATED) - 1 and "A. Nonymous" in made.html


def test_a_fact_that_was_not_known_is_shown_and_not_counted(lm, some):
    facts = some[0]
    unknown = dataclasses.replace(facts[0], answer="Nowhere", neighbours=())
    with grace.edit(lm, refused(facts)) as edit:
        made = minilib.report(lm, edit, [unknown, *facts[1:]], attacks=["none"])
        assert made.measures["revealed when asked"]["of"] == made.attacks["none"]["of"] == 2
        assert "not known before" in made.html
        with pytest.raises(ValueError, match="facts holds none of 1 that tinyworld knew"):
            minilib.report(lm, edit, [unknown])


def test_bad_input_is_refused_with_the_name_of_the_argument(lm, some):
    facts, never = some
    edit = grace.edit(lm, refused(facts))
    wrong = {
        "facts is empty": {"facts": []},
        "facts must be a list": {"facts": facts[0]},
        r"facts\[0\] must be a facts.Fact": {"facts": [Request("{} is", "A", "b")]},
        r"never\[1\] is known": {"never": [never[0], facts[1]]},
        "accept must give shares": {"accept": {"revealed": 0.1}},
        "attacks must be a list": {"attacks": ["bribery"]},
        "edit must be an Edit": {"edit": facts},
        "seed must be": {"seed": -1},
        r"facts\[1\] stands in the list twice": {"facts": [facts[0], facts[0]]},
        r"beside must hold Question, not 'Who\?'": {"beside": ["Who?"]},
        "about must be a dict": {"about": "me"},
        "about must hold str, not 3": {"about": {"who asks for what": 3}},
        "accept must be a dict": {"accept": 0.1},
        "attacks must be a list from": {"attacks": 3},
    }
    for message, given in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            minilib.report(**({"lm": lm, "edit": edit, "facts": facts} | given))
    with pytest.raises(ValueError, match="edit of another model"):
        minilib.report(minilib.load("tinyworld"), edit, facts)
    edit.undo()
    with pytest.raises(ValueError, match="was undone: there is nothing to report"):
        minilib.report(lm, edit, facts)
    assert rome is minilib.rome and not lm.edits
