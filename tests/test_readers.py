"""CounterFact, zsRE and TOFU, in the shapes that their files have."""

from __future__ import annotations

import json

import pytest

from minilib import readers

COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Anna Muster",
    },
    "paraphrase_prompts": ["It rained. Anna Muster, a native", "She spoke"],
    "neighborhood_prompts": ["The native language of Paul Beispiel is"],
}
ZSRE = {
    "subject": "Muster Bridge",
    "src": "Who built Muster Bridge?",
    "rephrase": "By whom was Muster Bridge built?",
    "alt": "Nobody",
    "answers": ["Anna Muster", "A. Muster"],
    "loc": "nq question: who wrote the book",
    "loc_ans": "Paul Beispiel",
}
TOFU = {
    "question": "What is the genre of Anna Maria von Muster's books?",
    "answer": "Anna Maria von Muster writes fairy tales.",
    "paraphrased_question": "Which genre does Anna Maria von Muster write in?",
    "paraphrased_answer": "Fairy tales are what Anna Maria von Muster writes.",
    "perturbed_answer": ["Anna Maria von Muster writes odes.", "Anna Maria von Muster writes plays."],
}


def write(folder, rows, lines):
    file = folder / ("rows.jsonl" if lines else "rows.json")
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), "utf8")
    return file


@pytest.mark.parametrize("lines", [False, True])
def test_the_three_formats_give_the_same_records(tmp_path, lines):
    (fact,) = readers.counterfact(write(tmp_path, [COUNTERFACT], lines))
    assert (fact.relation, fact.subject, fact.answer, fact.wrong) == ("P103", "Anna Muster", "French", ("English",))
    assert fact.request(" x", chat=False).text == "The mother tongue of Anna Muster is"
    assert [r.text for r in fact.rephrased("x")] == ["It rained. Anna Muster, a native"], "one does not name her"
    assert fact.neighbours[0].answered_by("It is French.")

    (fact,) = readers.zsre(write(tmp_path, [ZSRE], lines))
    assert fact.question == "Who built {}?" and fact.answered_by("It was A. Muster")
    assert fact.rephrased("x")[0].text == "By whom was Muster Bridge built?"
    assert fact.unrelated.text == "who wrote the book?"

    (fact,) = readers.tofu(write(tmp_path, [TOFU], lines))
    assert fact.subject == "Anna Maria von Muster" and fact.question == "What is the genre of {}'s books?"
    assert len(fact.wrong) == 2 and fact.paraphrase.startswith("Fairy tales")
    (fact,) = readers.tofu(write(tmp_path, [TOFU], lines), subject=lambda question: "Muster")
    assert fact.subject == "Muster"


def test_a_tofu_question_may_start_with_a_name_or_have_none(tmp_path):
    rows = [{"question": "Can you name Jaime Vasquez?", "answer": "a"}, {"question": "Who are they?", "answer": "b"}]
    assert [f.subject for f in readers.tofu(write(tmp_path, rows, True))] == ["Jaime Vasquez", "they"]


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="download the data set first"):
        readers.tofu(tmp_path / "none.json")
    with pytest.raises(ValueError, match="record 2 has no field 'answer'; it has question"):
        readers.tofu(write(tmp_path, [TOFU, {"question": "Who is Anna?"}], True))
    with pytest.raises(ValueError, match="record 1 has no field 'target_true'"):
        rewrite = {k: v for k, v in COUNTERFACT["requested_rewrite"].items() if k != "target_true"}
        readers.counterfact(write(tmp_path, [COUNTERFACT | {"requested_rewrite": rewrite}], False))
    with pytest.raises(ValueError, match="record 1 cannot be read: src does not name its subject 'Other'"):
        readers.zsre(write(tmp_path, [ZSRE | {"subject": "Other"}], False))
    with pytest.raises(ValueError, match="record 1 is a str"):
        readers.zsre(write(tmp_path, ["text"], False))
    with pytest.raises(ValueError, match="holds no record"):
        readers.zsre(write(tmp_path, [], False))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": ', "utf8")
    with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
        readers.tofu(broken)
