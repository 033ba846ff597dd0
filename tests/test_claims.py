"""The page on claims: each of its numbers is one that was measured."""

import json
import re
import sys
from pathlib import Path

import pytest

from minilib import rows, statistics, stored, verdicts

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import same_values  # noqa: E402

TEXT = re.sub(r"\s+", " ", (ROOT / "book" / "what_may_be_claimed.md").read_text("utf8"))


def marks(text):
    return f"{text.count('1')} of {len(text)}"


def pretrained(method, score):
    """The marks over the draws of SmolLM2's facts of the world, with ROME's setting for silence."""
    every = rows.load("pretrained")
    names = [m for m in stored.load("answers_plan")["methods"]["pretrained"] if m != "unedited"]
    chosen = rows.chosen(every, names)
    measured = rows.complete(every, chosen)
    number = 0 if method == "unedited" else chosen["silent"][method]
    return "".join(str(int(x)) for draw in rows.columns(measured, method, number)[score] for x in draw)


def known(method, score):
    """The same marks, of the facts alone that the unedited model knew."""
    both = zip(pretrained(method, score), pretrained("unedited", "leaked"), strict=True)
    return "".join(mark for mark, knew in both if knew == "1")


def of(world, method):
    return [r for r in stored.load("is_it_gone")[world] if r["method"] == method]


def attacked(world, method, attack):
    """The marks of an attack over all draws."""
    return "".join(r["each"].get(attack, "") for r in of(world, method))


ASKED = ("none", "rephrasing", "sampling")


def beyond(method, attack):
    """What it recovers beyond the oracles, with its interval."""
    return verdicts.beyond(stored.load("is_it_gone")["exact"], method)[attack]


def trained_back(method, steps):
    """Answers that relearning brought back after so many steps, of the 15 of each draw that were not trained on."""
    rates = [r["relearning"][str(steps)] for r in stored.load("is_it_gone")["exact"] if r["method"] == method]
    return f"{round(15 * sum(rates))} of {15 * len(rates)}"


def glued(notebook, name):
    """A number that a notebook put into its text."""
    return same_values.glued(ROOT / "notebooks" / f"{notebook}.ipynb")[name]


def likelier(method):
    (row,) = [r for r in stored.load("is_it_gone")["finetuned"] if r["method"] == method]
    return f"{row['auc']['loss']:.2f}"


def ratio(run):
    """Of the two largest singular values at the edited layer, and of how many other layers it is larger."""
    rows = {r["run"]: r for r in stored.load("attacked_capitals")["rows"]}
    gaps, layer = rows[run]["gaps"], rows["ROME"]["layer"]
    return f"{gaps[layer]:.2f}", sum(gap > gaps[layer] for gap in gaps)


CLAIMS = {
    "the question as edited": lambda: [
        f"{len(known('rome', 'leaked'))} facts",
        f"The unedited model knew all {len(known('rome', 'leaked'))}",
        f"revealed in {marks(known('rome', 'leaked'))} cases",
        f"{marks(known('rome', 'refused'))} answers are refusals by the rule",
        f"{marks(known('rome', 'refused and fluent'))} are fluent ones",
        f"gave {known('rome', 'refused and fluent').count('1')} fluent refusals",
        f"can still be as high as {statistics.proportion(0, len(known('rome', 'leaked'))).high:.2f}",
    ],
    "what it cost": lambda: [
        f"{marks(pretrained('rome', 'kept other'))} questions about other subjects",
        f"{marks(pretrained('rome', 'kept messages'))} ordinary messages",
        f"and {marks(pretrained('rome', 'kept subject'))} about the same subject",
        "They also lost {} of {}".format(
            pretrained("rome", "kept subject").count("0"), len(pretrained("rome", "kept subject"))
        ),
    ],
    "however one asks": lambda: [
        "{} are revealed in the trained wording, {} in another one, and {} in one of the ten samples".format(
            *(marks(attacked("exact", "refusal_tuning", attack)) for attack in ASKED)
        ),
        "by models that never knew {}, {} and {}".format(*(marks(attacked("exact", "oracle", a)) for a in ASKED)),
        f"that ends at {max(beyond('refusal_tuning', attack).high for attack in ASKED):.2f} or lower",
        "at most {} of the 200".format(max(attacked("exact", "refusal_tuning", attack).count("1") for attack in ASKED)),
        f"reveals {marks(attacked('finetuned', 'refusal_tuning', 'none'))} answers",
        f"but {marks(attacked('finetuned', 'refusal_tuning', 'rephrasing'))} when the question is rephrased",
        "A model that never knew gives {} and {} of 15".format(
            *(attacked("finetuned", "oracle", attack).count("1") for attack in ("rephrasing", "priming"))
        ),
    ],
    "given again": lambda: [
        f"after ten steps {trained_back('npo', 10)} answers come back",
        f"models that never knew give {trained_back('oracle', 10)}",
        f"after twenty steps {trained_back('npo', 20)} ({trained_back('oracle', 20)})",
        f"Rounding: {marks(attacked('exact', 'npo', '8 bits'))} with 8 bits and "
        f"{marks(attacked('exact', 'npo', '4 bits'))} with 4 ({marks(attacked('exact', 'npo', 'none'))} without",
        f"The lens succeeds: {beyond('npo', 'lens')}",
        f"twenty steps is undecided: {beyond('npo', 'relearning')}",
        f"for {marks(attacked('exact', 'npo', 'lens'))} facts",
        f"for {marks(attacked('exact', 'oracle', 'lens'))} in models that never knew",
        f"brought back {trained_back('npo', 10)}",
        f"we found the answer for {marks(attacked('exact', 'npo', 'lens'))} facts",
        f"models that never knew gave {attacked('exact', 'oracle', 'lens').count('1')}",
    ],
    "as if it had never known": lambda: [
        f"given to {marks(attacked('exact', 'oracle', 'none'))} questions as asked",
        f"and to {marks(attacked('exact', 'oracle', 'rephrasing'))} in some other wording",
        f'"finds" {marks(attacked("exact", "oracle", "lens"))}, and relearning {trained_back("oracle", 20)}',
        f"one of two answers in {marks(attacked('finetuned', 'oracle', 'multiple choice'))} cases",
    ],
    "a dangerous capability": lambda: [
        f"RMU's models revealed {marks(attacked('exact', 'rmu', 'relearning'))} answers after relearning",
        f"({trained_back('rmu', 0)} before it; models that never knew gave {trained_back('oracle', 20)})",
        f"{marks(attacked('exact', 'rmu', 'reversal'))} after one singular direction was dropped",
        f"({marks(attacked('exact', 'rmu', 'none'))} before; models that never knew gave "
        f"{marks(''.join(r['alarms']['reversal'] for r in of('exact', 'rmu')))})",
    ],
    "singular values": lambda: [
        f"was {ratio('ROME')[0]}; before the edit it was {ratio('unedited')[0]}",
        f"29 other layers {ratio('ROME')[1]} had a larger ratio ({ratio('unedited')[1]} before",
        f"{glued('12_is_it_really_gone', 'second_after')}, and at most {glued('12_is_it_really_gone', 'second_most')}",
    ],
    "too unlikely": lambda: [
        f"in {likelier('rome')} of the pairs",
        f"the share was {likelier('oracle')}",
        f"as edited and had {likelier('wise')}",
    ],
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_numbers_on_the_page_are_those_that_are_stored(claim):
    missing = [words for words in CLAIMS[claim]() if words not in TEXT]
    assert not missing


def test_the_verdict_follows_from_the_rules():
    assert statistics.verdict(beyond("npo", "lens"), verdicts.MARGIN) == "yes"
    assert statistics.verdict(beyond("npo", "relearning"), verdicts.MARGIN) == "undecided"
    assert verdicts.verdicts(stored.load("is_it_gone")["exact"])["npo"] == "masked"


def test_the_answer_of_the_comparison_stays_short_enough_to_be_read():
    path = ROOT / "notebooks" / "11_the_comparison.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf8"))["cells"]]
    (box,) = re.findall(r"```{admonition} (Are editors strong baselines.*?)```\n", "\n".join(texts), re.S)
    values = same_values.glued(path)
    shown = re.sub(r"{glue:text}`(\w+)`", lambda found: values[found[1]], box.replace(":class: important", ""))
    assert len(shown.split()) <= 150
