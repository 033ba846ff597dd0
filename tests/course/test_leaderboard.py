"""Assignment 08: what is measured is what is said, and a method is told what it lacks."""

import json

import pytest
import torch
from answers import fails, passes

from minilib import Request, grace, rome, tinyworld, unlearning
from minilib.course import checks, leaderboard

pytestmark = pytest.mark.long


def share_told(lm, requests):
    texts = lm.generate(list(requests), max_new_tokens=6)
    return sum(t.strip().startswith(r.target.strip()) for t, r in zip(texts, requests, strict=True)) / len(texts)


def tuned(lm, forget, retain):
    unlearning.refusal_tuning(lm, forget, retain, refusals=[tinyworld.REFUSAL])


def by_rule(rule):
    def share(lm, requests):
        texts = lm.generate(list(requests), max_new_tokens=6)
        return sum(rule(t.strip(), r.target.strip()) for t, r in zip(texts, requests, strict=True)) / len(texts)

    return share


def undone(lm, forget, retain):
    with rome.edit(lm, Request(forget[0].prompt, forget[0].subject, tinyworld.REFUSAL)):
        pass


def destroyed(lm, forget, retain):
    with torch.no_grad():
        for p in lm.model.parameters():
            p.zero_()


def by_rome(lm, forget, retain):
    rome.edit(lm, Request(forget[0].prompt, forget[0].subject, tinyworld.REFUSAL))


def endless(lm, forget, retain):
    while True:
        pass


def test_the_right_answers_pass():
    passes(leaderboard.check_told, share_told)
    passes(leaderboard.check_score, leaderboard.score)
    passes(lambda f, number: leaderboard.check_unlearn(f, number, 0.7), tuned)
    assert "a score of 0." in checks.step(leaderboard.check_unlearn, tuned, 1, 0.7).message


WRONG = [
    ("told", lambda lm, r: len(r) * share_told(lm, r), "divide by the number of requests"),
    ("told", lambda lm, r: 0.0, "says 0.00"),
    ("told", by_rule(str.__contains__), "has to \\*begin\\* with the target"),
    ("told", by_rule(str.__eq__), "may go on after the target"),
    ("told", lambda lm, r: "many", "must return a number"),
    ("told", lambda lm, r: [lm.generate(x) for x in r] and None, "returns nothing"),
    ("score", lambda a, b: (a + b) / 2, "plain mean"),
    ("score", lambda a, b: (a * b) ** 0.5, "geometric mean"),
    ("score", lambda a, b: 2 * a * b / (a + b), "ZeroDivisionError"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_a_wrong_measure_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(leaderboard, f"check_{name}"), wrong, message)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda lm, forget, retain: None, "too little is forgotten"),
        (by_rome, "too little is forgotten"),
        (undone, "undone at the end of a `with`"),
        (destroyed, "too much else is lost"),
        (lambda lm, forget, retain: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_weak_method_is_told_what_it_lacks(method, message):
    fails(lambda f, number: leaderboard.check_unlearn(f, number, 0.5), method, message)


def test_the_budget_is_kept(monkeypatch):
    monkeypatch.setattr(leaderboard, "BUDGET", 0.3)
    with pytest.raises(AssertionError, match="did not return within"):
        leaderboard.check_unlearn(endless, 1, 0.5)


def test_the_people_asked_are_neither_forgotten_nor_given():
    for number in range(20):
        given = leaderboard.problem(number)
        forgotten = {r.subject for r in given.forget}
        assert len(forgotten) == leaderboard.PEOPLE and {r.subject for r in given.reworded} == forgotten
        assert not forgotten & {r.subject for r in given.retain + given.others}
        assert not {(r.subject, r.prompt) for r in given.retain} & {(r.subject, r.prompt) for r in given.others}
        families = {name.split()[-1] for name in forgotten}
        assert any(r.subject.split()[-1] in families for r in given.others), "namesakes are asked"


def test_what_is_measured_is_written_for_the_board(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BOARD", str(tmp_path / "board.json"))
    guarded = lambda lm, forget, retain: grace.edit(  # noqa: E731
        lm, [Request(r.prompt, r.subject, tinyworld.REFUSAL) for r in forget]
    )
    leaderboard.check_unlearn(guarded, 5, 0.5)
    found = json.loads((tmp_path / "board.json").read_text())
    assert found["number"] == 5 and found["kept"] > 0.5
    assert found["score"] == pytest.approx(leaderboard.score(found["forgotten"], found["kept"]), abs=1e-3)
