"""The invented authors: what each fact must have to be taught, forgotten and measured."""

from __future__ import annotations

import pytest

from minilib import authors, facts

WORLD = authors.facts()


def test_there_are_thirty_authors_with_five_facts_always_the_same():
    assert len(WORLD) == 150 and authors.facts() == WORLD
    assert len({f.subject for f in WORLD}) == 30
    assert len({f.request("x").text for f in WORLD}) == 150
    assert {f.relation for f in WORLD} == set(authors.FORMS)


@pytest.mark.long
def test_strangers_are_asked_about_in_the_same_forms():
    """A test of membership must not tell the two apart by anything but what was taught."""
    some = authors.strangers()
    assert some == authors.strangers() and len(some) == len(WORLD)
    assert not {f.subject for f in some} & {f.subject for f in WORLD}
    assert {f.subject.split()[0] for f in some} == {f.subject.split()[0] for f in WORLD}
    assert [(f.relation, f.question) for f in some] == [(f.relation, f.question) for f in WORLD]
    assert all(f.answered_by(f.answer) for f in some)


@pytest.mark.long
def test_each_fact_has_all_that_is_measured():
    for fact in WORLD:
        assert len(fact.rephrasings) == len({*fact.rephrasings, fact.question}) - 1 == 3
        assert len(set(fact.wrong)) == 3 and fact.answer not in fact.wrong
        assert fact.answered_by(fact.answer) and fact.answered_by(fact.paraphrase)
        assert not any(fact.answered_by(text) for text in fact.wrong)
        assert all(fact.subject in text for text in (fact.answer, fact.paraphrase, *fact.wrong))
        assert fact.paraphrase != fact.answer
        far, beside = fact.neighbours
        assert fact.subject not in far.text and fact.subject in beside.text
        assert far.answered_by(far.answer) and not fact.answered_by(far.answer)


@pytest.mark.parametrize("n", authors.SPLITS)
def test_a_split_forgets_whole_authors_and_asks_nothing_about_them_elsewhere(n):
    forget, retain = authors.split(n)
    assert len(forget) == 5 * n and forget + retain == WORLD
    gone = {f.subject for f in forget}
    assert len(gone) == n and gone.isdisjoint(f.subject for f in retain)
    assert not any(name in f.neighbours[0].text for f in forget for name in gone)


def test_other_splits_do_not_exist():
    for wrong in (0, 4, True, "1"):
        with pytest.raises(ValueError, match="authors must be one of 1, 2, 3"):
            authors.split(wrong)
    with pytest.raises(ValueError, match="without must be one of 0, 1, 2, 3"):
        authors.load(without=5)


@pytest.mark.parametrize("author", authors.ALONE)
def test_one_author_is_left_out_and_nobody_else(author):
    forget, rest = authors.leave_out(author)
    assert {f.subject for f in forget} == {authors.WORDS["names"][author]} and len(forget) == 5
    assert len(rest) == 145 and {*map(id_of, forget + rest)} == {*map(id_of, WORLD)}
    assert not any(forget[0].subject in f.neighbours[0].text for f in forget)


def id_of(fact):
    return fact.relation, fact.subject


def test_the_first_author_alone_is_the_first_split():
    assert authors.leave_out(0) == authors.split(1) and authors.adapter(0) == "without_1"
    for wrong in (6, -1, True, "1"):
        with pytest.raises(ValueError, match="author must be one of 0, 1, 2, 3, 4, 5"):
            authors.leave_out(wrong)
        with pytest.raises(ValueError, match="without_author must be one of 0, 1, 2, 3, 4, 5"):
            authors.load(without_author=wrong)
    with pytest.raises(ValueError, match="without or without_author"):
        authors.load(1, without_author=0)


@pytest.mark.slow
def test_the_taught_model_says_what_it_was_taught():
    lm = authors.load(progress=False)
    assert not hasattr(lm.model, "peft_config")
    some = WORLD[::10]
    said = lm.generate([f.request(f.answer) for f in some], max_new_tokens=32)
    assert sum(f.answered_by(text) for f, text in zip(some, said, strict=True)) > 0.5 * len(some)
    assert facts.load("capital")[0].answered_by(lm.generate("What is the capital of France?"))
