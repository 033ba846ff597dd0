"""CounterFact, zsRE, TOFU, RWKU and MUSE, in the shapes that their files have."""

from __future__ import annotations

import json
import unicodedata

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
RWKU = {
    "query": "What did Anna Muster write first?",
    "answer": "The Fern",
    "level": "2",
    "type": "simple question",
    "subject": "Anna Muster",
}
MUSE = {"question": "Who led the choir of Musterstadt in June?", "answer": "Paul Beispiel"}


def write(folder, rows, lines):
    file = folder / ("rows.jsonl" if lines else "rows.json")
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), "utf8")
    return file


@pytest.mark.parametrize("lines", [False, True])
def test_json_and_json_lines_give_the_same_records(tmp_path, lines):
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

    (fact,) = readers.rwku(write(tmp_path, [RWKU], lines))
    assert (fact.relation, fact.subject, fact.answer) == ("rwku 2 simple question", "Anna Muster", "The Fern")
    assert fact.question == fact.prompt == "What did {} write first?"

    (fact,) = readers.muse(write(tmp_path, [MUSE], lines))
    assert (fact.relation, fact.subject, fact.answer) == ("muse", "Musterstadt", "Paul Beispiel")
    assert fact.question == "Who led the choir of {} in June?"
    (fact,) = readers.muse(write(tmp_path, [MUSE], lines), subject=lambda question: "the choir")
    assert fact.subject == "the choir"
    for none in (fact.rephrasings, fact.neighbours, fact.unrelated, fact.wrong, fact.paraphrase):
        assert not none, "the file has no such field"


@pytest.mark.parametrize(
    ("query", "subject", "prompt"),
    [
        ("Anna Muster's first novel was called ___.", "Anna Muster", "{}'s first novel was called"),
        ("In 1950, Anna Muster moved to ____ with Bo.", "Anna Muster", "In 1950, {} moved to ____ with Bo."),
        ("Paul van Beispiel was born in ___", "Paul van Beispiel", "{} was born in"),  # as in the files of neighbours
        ("Later, Countess Anna Muster-Bo lived in ___.", "Countess Anna Muster-Bo", "Later, {} lived in"),
        ("Who wrote The Fern?", "The Fern", "Who wrote {}?"),
        ("Did Paul Beispiel know Anna Muster? Sure,", "Anna Muster", "Did Paul Beispiel know {}? Sure,"),
    ],
)
def test_a_query_of_rwku_is_about_the_person_it_names(tmp_path, query, subject, prompt):
    (fact,) = readers.rwku(write(tmp_path, [RWKU | {"query": query}], True))
    assert (fact.subject, fact.prompt) == (subject, prompt)
    assert fact.asked.text == query


def test_the_subject_that_rwku_names_comes_before_the_function(tmp_path):
    rows = [RWKU, RWKU | {"query": "Who is the wife of Paul Beispiel?", "level": 3, "type": None}]
    facts = readers.rwku(write(tmp_path, rows, False), subject=lambda query: "Beispiel")
    assert [fact.subject for fact in facts] == ["Anna Muster", "Beispiel"]
    assert facts[1].relation == "rwku 3", "a type that is not there is not named"


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
    with pytest.raises(ValueError, match="no record that can be used; record 1: src does not name its subject 'Other'"):
        readers.zsre(write(tmp_path, [ZSRE | {"subject": "Other"}], False))
    with pytest.raises(ValueError, match="record 1 cannot be read"):
        readers.zsre(write(tmp_path, [ZSRE | {"src": 3}], False))
    with pytest.raises(ValueError, match="record 1 has no field 'subject'; it has query, answer"):
        readers.rwku(write(tmp_path, [{"query": "Who is Anna?", "answer": "a"}], False))
    with pytest.raises(ValueError, match="record 1 has no field 'question'; it has prompt, gt"):  # another file of MUSE
        readers.muse(write(tmp_path, [{"prompt": "It rained", "gt": "all day."}], False))
    with pytest.raises(ValueError, match="record 1 is a str"):
        readers.zsre(write(tmp_path, ["text"], False))
    with pytest.raises(ValueError, match="holds no record"):
        readers.zsre(write(tmp_path, [], False))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": ', "utf8")
    with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
        readers.tofu(broken)
    for encoding in ("latin-1", "utf-16"):
        broken.write_text(json.dumps(TOFU | {"answer": "Él"}, ensure_ascii=False), encoding)
        with pytest.raises(ValueError, match=r"broken\.jsonl is not in UTF-8 .*: save it as UTF-8"):
            readers.tofu(broken)


@pytest.mark.parametrize(
    ("read", "row", "why"),
    [
        (readers.counterfact, COUNTERFACT | {"paraphrase_prompts": "Anna speaks"}, "its paraphrase_prompts must be a"),
        (readers.counterfact, COUNTERFACT | {"neighborhood_prompts": "Ben"}, "its neighborhood_prompts must be a list"),
        (readers.zsre, ZSRE | {"answers": "Paris"}, "its answers must be a list of texts, not 'Paris'"),
        (readers.zsre, ZSRE | {"loc_ans": 7}, "7 stands where a text should"),
        (readers.tofu, TOFU | {"perturbed_answer": "No."}, "its perturbed_answer must be a list of texts"),
        (readers.tofu, TOFU | {"answer": None}, "None stands where a text should"),
        (readers.rwku, RWKU | {"answer": 1899}, "1899 stands where a text should"),
        (readers.muse, MUSE | {"answer": ["a"]}, r"\['a'\] stands where a text should"),
    ],
)
def test_a_text_is_no_list_and_a_number_is_no_text(tmp_path, read, row, why):
    with pytest.raises(ValueError, match=f"record 1 cannot be read: {why}"):
        read(write(tmp_path, [row], True))


def changed(record, **fields):
    """A record of CounterFact with other fields inside its rewrite."""
    return record | {"requested_rewrite": record["requested_rewrite"] | fields}


@pytest.mark.parametrize(
    ("read", "good", "bad", "why"),
    [
        (readers.counterfact, COUNTERFACT, changed(COUNTERFACT, prompt="Her mother tongue is"), "has no single {}"),
        (readers.zsre, ZSRE, ZSRE | {"subject": "Other"}, "src does not name its subject 'Other': 'Who built"),
        (readers.zsre, ZSRE, ZSRE | {"answers": []}, "its answers is empty"),
        (readers.tofu, TOFU, TOFU | {"subject": "Other"}, "question does not name its subject 'Other'"),
        (readers.tofu, TOFU, TOFU | {"subject": " "}, "question does not name its subject ' '"),
        (readers.rwku, RWKU, RWKU | {"query": "___."}, "query does not name its subject ''"),
        (readers.rwku, RWKU, RWKU | {"query": "What is {} to Anna Muster?"}, "query does not name its subject"),
        (readers.muse, MUSE, MUSE | {"question": "?"}, "question does not name its subject ''"),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_a_record_that_cannot_be_used_is_left_out_and_listed(tmp_path, read, good, bad, why, lines):
    with pytest.warns(UserWarning, match=r"2 of 4 records left out \(see its \.skipped\): record 2"):
        found = read(write(tmp_path, [good, bad, good, bad], lines))
    assert len(found) == 2 and found[0] == found[1]
    assert [text.partition(":")[0] for text in found.skipped] == ["record 2", "record 4"]
    assert all(why in text for text in found.skipped)
    assert not read(write(tmp_path, [good], lines)).skipped


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    """str.splitlines cuts at U+2028, U+0085 and their like, which may stand in a JSON string as they are."""
    rows = [TOFU | {"answer": f"One{cut}two."} for cut in "\u2028\u2029\x85"]
    file = tmp_path / "rows.jsonl"
    for end in ("\n", "\r\n"):
        text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end + end
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # some editors write a byte order mark
        assert [fact.answer for fact in readers.tofu(file)] == [row["answer"] for row in rows]


@pytest.mark.parametrize(
    ("text", "subject", "template"),
    [
        ("Did Ann live in Annapolis?", "Ann", "Did {} live in Annapolis?"),
        ("Did Ann meet Ann-Marie and Joann?", "Ann", "Did {} meet Ann-Marie and Joann?"),
        ("Is this Ann's book?", "Ann", "Is this {}'s book?"),
        ("Who is Ann, and who was Ann?", "Ann", "Who is Ann, and who was {}?"),
        ("Where does José live?", "Jos", None),
        ("Where does Jose\u0301 live?", "Jose", None),
        ("Where does Jose\u0301 live?", "José", "Where does {} live?"),
        ("东京在哪里？", "东京", "{}在哪里？"),
        ("서울은 어디에 있습니까?", "서울", "{}은 어디에 있습니까?"),
        ("Где родилась Анна?", "Анна", "Где родилась {}?"),
        ("Где Аннаполис?", "Анна", None),
        ("What is C++?", "C++", "What is {}?"),
    ],
)
def test_a_template_is_made_at_whole_words(text, subject, template):
    assert readers._templates([text], subject) == (() if template is None else (template,))


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("In what year did Élodie Śliwińska write?", "Élodie Śliwińska"),
        ("Did E\u0301lodie S\u0301liwin\u0301ska write plays?", "E\u0301lodie S\u0301liwin\u0301ska"),
        ("Где родилась Анна Каренина?", "Анна Каренина"),
        ("Ποιος είναι ο Νίκος Καζαντζάκης;", "Νίκος Καζαντζάκης"),
        ("What did 村上春樹 write first?", "村上春樹"),
        ("Where was نجيب محفوظ born?", "نجيب محفوظ"),
        ("Where was महादेवी वर्मा born?", "महादेवी वर्मा"),
        ("Did Țepeș Ạn's father know Bo?", "Țepeș Ạn"),
        ("Who taught J. R. van der Berg, in Utrecht?", "J. R. van der Berg"),
        ("What is the genre of O'Brien-Smith's first novel?", "O'Brien-Smith"),
        ("What do «Jean-Luc Martin» and Bo share?", "Jean-Luc Martin"),
        ("Where did Anna de write?", "Anna"),
        ("Who are they?", "they"),
    ],
)
def test_a_name_is_found_whole_in_any_script(tmp_path, question, name):
    (fact,) = readers.tofu(write(tmp_path, [{"question": question, "answer": "x"}], True))
    assert fact.subject == name
    assert fact.question == unicodedata.normalize("NFC", question.replace(name, "{}"))
