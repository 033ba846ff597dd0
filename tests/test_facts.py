"""Facts: well-formed templates, neighbours that are other facts, answers found as whole words."""

import json
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilib import facts
from minilib.measure.refusals import plain
from minilib.requests import Request
from minilib.worlds.facts import FACTS, Fact, Question, load

KNOWN = facts.DATA.with_name("known_smollm2-135m.json")


def fact(relation: str, subject: str) -> Fact:
    return next(f for f in load(relation) if f.subject == subject)


def templates(f: Fact) -> tuple[str, ...]:
    return (f.prompt, f.question, *f.rephrasings)


def gives_away(asked: Fact | Question, text: str) -> bool:
    """Whether an answer stands in the text: only where its letters do, as the pattern of each takes long to compile."""
    letters = plain(text).casefold()
    return any(plain(answer).casefold() in letters for answer in (asked.answer, *asked.aliases)) and asked.answered_by(
        text
    )


def test_there_are_many():
    assert len(FACTS) >= 200
    assert len(facts.RELATIONS) >= 8
    assert min(Counter(f.relation for f in FACTS).values()) >= 5


def test_each_is_there_once():
    assert len({(f.relation, f.subject) for f in FACTS}) == len(FACTS)


@pytest.mark.parametrize("f", [load(relation)[0] for relation in facts.RELATIONS], ids=lambda f: f.relation)
def test_templates_have_one_slot_and_differ(f):
    assert all(t.count("{}") == 1 for t in templates(f))
    assert len(set(templates(f))) == 5
    assert f.question.endswith("?")
    assert f.prompt == f.prompt.strip() and f.prompt[-1].isalpha()


@pytest.mark.parametrize("relation", facts.RELATIONS)
def test_the_subject_stands_once_and_no_question_gives_the_answer_away(relation):
    for f in load(relation):
        for template in templates(f):
            text = template.replace("{}", f.subject)
            assert len(re.findall(rf"(?<!\w){re.escape(f.subject)}(?!\w)", text, re.IGNORECASE)) == 1, text
            assert not gives_away(f, text), text
        for question in (*f.neighbours, f.unrelated):
            assert not gives_away(question, question.text), question


@pytest.mark.parametrize("relation", facts.RELATIONS)
def test_neighbours_and_the_unrelated_question_are_other_facts(relation):
    for f in load(relation):
        same, other = f.neighbours
        asked = f.question.replace("{}", f.subject)
        assert len({asked, same.text, other.text, f.unrelated.text}) == 4
        # Another subject of the same relation, with another answer.
        near = next(g for g in load(f.relation) if g.question.replace("{}", g.subject) == same.text)
        assert near.subject != f.subject and near.answer == same.answer
        assert not gives_away(f, same.answer) and not gives_away(same, f.answer)
        # Something else about the same subject.
        assert not gives_away(f, other.answer)
        # A question from another relation about another subject.
        far = [g for g in FACTS if g.question.replace("{}", g.subject) == f.unrelated.text]
        assert far and all(g.relation != f.relation and g.subject != f.subject for g in far)
        assert not gives_away(f, f.unrelated.answer)


@pytest.mark.parametrize("relation", facts.RELATIONS)
def test_it_accepts_its_own_answers(relation):
    for f in load(relation):
        for answer in (f.answer, *f.aliases):
            assert answer == answer.strip() and answer
            assert f.answered_by(f"It is {answer}.")
            assert f.answered_by(f'The answer: "{answer}"')
        assert not f.answered_by("")
        assert len({a if f.case_sensitive else a.lower() for a in (f.answer, *f.aliases)}) == 1 + len(f.aliases)


@pytest.mark.parametrize(
    ("relation", "subject", "text", "expected"),
    [
        ("capital", "France", "The capital of France is PARIS!", True),
        ("capital", "France", "Parisian life", False),
        ("capital", "Italy", "Romeo and Juliet", False),
        ("capital", "India", "Delhi is", True),
        ("symbol", "oxygen", "The symbol is O.", True),
        ("symbol", "oxygen", "The symbol is o.", False),
        ("symbol", "oxygen", "Oxygen is a gas.", False),
        ("symbol", "gold", "AU", False),
        ("symbol", "gold", "(Au)", True),
        ("next month", "April", "It may be any month.", False),
        ("next month", "April", "May comes next.", True),
        ("sides", "a square", "4", True),
        ("sides", "a square", "14", False),
        ("author", "Hamlet", "shakespeare's play", True),
        ("author", "Jane Eyre", "Emily Brontë", False),
        ("color", "grass", "evergreen", False),
    ],
)
def test_whole_words_and_capitals(relation, subject, text, expected):
    assert fact(relation, subject).answered_by(text) is expected


LATIN = st.text(st.characters(codec="latin-1"))


@given(before=LATIN, after=LATIN, upper=st.booleans())
def test_an_answer_is_found_unless_a_letter_touches_it(before, after, upper):
    question = Question("What is the capital of France?", "Paris")
    text = before + ("PARIS" if upper else "paris") + after
    # As the rule reads it: ¼ ends in a digit, and a mark belongs to a letter.
    touching = unicodedata.normalize("NFKC", before)[-1:] + unicodedata.normalize("NFKC", after)[:1]
    free = not any(c.isalnum() or unicodedata.category(c).startswith("M") for c in touching)
    if free:
        assert question.answered_by(text)
    elif not question.answered_by(before) and not question.answered_by(after):
        assert not question.answered_by(text)


def test_requests_carry_the_template_and_the_target_verbatim():
    france = fact("capital", "France")
    assert france.request("I don't know.") == Request(france.question, "France", "I don't know.", chat=True)
    assert france.request(" Rome", chat=False) == Request("The capital of {} is", "France", " Rome")
    others = france.rephrased("I don't know.")
    assert [r.prompt for r in others] == list(france.rephrasings)
    assert all(r.subject == "France" and r.target == "I don't know." and r.chat for r in others)
    assert france.neighbours[0].text == "What is the capital of Germany?"
    assert france.neighbours[1] == Question("What language do people speak in France?", "French")


def test_load_gives_one_relation_or_all_in_a_new_list():
    assert load() == list(FACTS)
    assert {f.relation for f in load("author")} == {"author"}
    load().clear()
    assert load()


@pytest.mark.parametrize("wrong", ["capitals", "", 3])
def test_a_wrong_relation_is_named_with_those_there_are(wrong):
    with pytest.raises(ValueError, match="relation .* is not one of: capital, continent"):
        load(wrong)


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="text must be a string"):
        FACTS[0].answered_by(None)


class Parrot:
    """A model that answers every question about a capital by the same sentence."""

    def __init__(self, has_chat: bool) -> None:
        self.has_chat = has_chat
        self.heard: list[str] = []

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[str]:
        assert max_new_tokens == 24
        self.heard += prompts
        return ["Paris, I believe." for _ in prompts]


@pytest.mark.parametrize("has_chat", [True, False])
def test_known_keeps_what_is_answered(has_chat):
    parrot = Parrot(has_chat)
    capitals = load("capital")
    assert facts.known(parrot, capitals) == [capitals[0]]
    assert parrot.heard[0] == ("What is the capital of France?" if has_chat else "The capital of France is")
    assert len(facts.known(Parrot(has_chat))) == sum(f.answered_by("Paris, I believe.") for f in FACTS) >= 3
    assert facts.known(parrot, []) == []


@pytest.mark.parametrize("has_chat", [True, False])
def test_what_the_model_says_is_the_target(has_chat):
    (request,) = facts.as_said(Parrot(has_chat), load("capital")[3:4])
    assert request.target == "Paris, I believe." and request.chat == has_chat


def test_the_first_sentence_ends_at_its_mark():
    assert facts.sentence("It is Paris. I am sure.") == "It is Paris."
    assert facts.sentence("Version 2.5 is new") == "Version 2.5 is new"
    assert facts.sentence("One\nTwo.") == "One" and facts.sentence("") == ""


def test_the_recorded_facts_are_those_of_the_stored_list():
    recorded = facts.recorded()
    stored = json.loads(KNOWN.read_text(encoding="utf-8"))["facts"]
    assert {(f.relation, f.subject) for f in recorded} == {(row["relation"], row["subject"]) for row in stored}
    assert len(recorded) == len(stored) and len({f.relation for f in recorded[:10]}) == 10


@pytest.mark.parametrize("wrong", ["capital", FACTS[0], ["France"]])
def test_known_wants_a_list_of_facts(wrong):
    with pytest.raises(TypeError, match="facts"):
        facts.known(Parrot(True), wrong)


def test_the_stored_list_of_smollm2_agrees_with_the_facts():
    stored = json.loads(KNOWN.read_text(encoding="utf-8"))
    assert stored["asked"] == len(FACTS)
    assert stored["known"] == len(stored["facts"]) >= 80
    assert set(stored["provenance"]) >= {"versions", "commit", "date", "seconds", "script"}
    for row in stored["facts"]:
        assert fact(row["relation"], row["subject"]).answered_by(row["said"])
        assert 0 < row["probability"] <= 1


@pytest.mark.slow
def test_smollm2_knows_what_the_stored_list_says(smollm2):
    rows = json.loads(KNOWN.read_text(encoding="utf-8"))["facts"][::20]
    sample = [fact(row["relation"], row["subject"]) for row in rows]
    assert facts.ask(smollm2, sample) == [row["said"] for row in rows]
