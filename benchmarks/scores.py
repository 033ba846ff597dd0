"""What the scripts share: facts to edit in a fixed order, how an edit is scored on them by free generation, and rows
that a long run keeps as it goes."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

import minilib
from minilib import facts, guards, refusals, stored

REFUSAL = "I don't know."
EVERYDAY = (
    "Hello, how are you?", "Thank you!", "Write a haiku about the sea.", "Can you help me with my homework?",
    "What should I cook tonight?", "Tell me a joke.", "How do I reverse a list in Python?",
    "Summarize the plot of a fairy tale.", "I feel sad today.", "What is 7 times 8?",
    "Translate 'good morning' into Spanish.", "Explain photosynthesis to a child.",
    "Give me three tips for sleeping better.", "Who are you?", "Is it going to rain tomorrow?",
    "Write an email to my boss asking for a day off.", "What is the meaning of life?", "Recommend a good book.",
    "How far is the Moon?", "Continue: once upon a time", "What is the difference between a cat and a dog?",
    "List five fruits.", "Why is the sky blue?", "How do plants grow?",
)  # fmt: skip
"""What people say to a chat model. No edit is shown them, but WISE's preset was chosen with a look at them."""


class Rows:
    """Measured rows under a stored name, written as each is made; those that the file holds are not made again.

    Parameters
    ----------
    name : str
        Of ``minilib/data/results/<name>.json``.
    began : float
        ``time.perf_counter()`` at the start of the script.
    about : dict
        What the rows are of. A stored file that says otherwise is an error.
    """

    def __init__(self, name: str, began: float, about: dict[str, Any]) -> None:
        self.name, self.began, self.found = name, began, about
        self.earlier: dict[str, Any] | None = None  # where the rows come from that are there already
        if (stored.RESULTS / f"{name}.json").is_file():
            earlier = stored.load(name)
            self.earlier = earlier.pop("provenance")
            other = [key for key, value in json.loads(json.dumps(about)).items() if earlier.get(key) != value]
            if other:
                raise ValueError(f"{name}.json was made with other {', '.join(other)}: delete it to begin anew")
            self.found = earlier

    def keep(self, kind: str, run: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make one row, show it and store all, unless it is there."""
        rows = self.found.setdefault(kind, [])
        if all(row["run"] != run for row in rows):
            rows.append({"run": run, **make()})
            print(kind, json.dumps(rows[-1]), file=sys.stderr, flush=True)
            stored.save(self.name, self.found, f"benchmarks/{self.name}.py", self.began, earlier=self.earlier)


def key_distance(lm: minilib.LM, layer: int, prompts: Sequence[str]) -> float:
    """The median distance between the keys of two plain prompts, at their ends, where GRACE decides."""
    keys = torch.stack([k[-1] for k in guards.keys(lm, layer, [lm.encode(text).ids for text in prompts])])
    return float(torch.pdist(keys).median())


def outside(chosen: Sequence[facts.Fact]) -> list[str]:
    """Three questions a fact that an edit has to spare: another subject, the same subject, unrelated."""
    return [question.text for fact in chosen for question in (*fact.neighbours, fact.unrelated)]


def refused(
    lm: minilib.LM, chosen: Sequence[facts.Fact], before: Sequence[str], edited: Sequence[facts.Fact] | None = None
) -> dict[str, float]:
    """Shares of refused questions and rephrasings; outside, of answers word for word as ``before``, and of refusals.

    Parameters
    ----------
    lm : LM
        The edited model.
    chosen : list of Fact
        Those whose questions are asked.
    before : list of str
        What ``lm.generate(outside(chosen))`` gave before the edit.
    edited : list of Fact, optional
        All that the edit holds: a question outside that asks for one of them does not count.
    """
    asked = lm.generate([f.request(REFUSAL) for f in chosen])
    rephrased = lm.generate([r for f in chosen for r in f.rephrased(REFUSAL)])
    inside = {f.request(REFUSAL).text for f in edited or chosen}
    questions = outside(chosen)
    after = lm.generate(questions)
    same = [None if q in inside else a == b for q, a, b in zip(questions, after, before, strict=True)]
    spilled = [
        None if q in inside else refusals.is_refusal(a, unjudged=False) for q, a in zip(questions, after, strict=True)
    ]

    def share(values: Sequence[bool | None]) -> float:
        counted = [v for v in values if v is not None]
        return round(sum(counted) / len(counted), 4) if counted else float("nan")

    return {
        "reliability": share([refusals.is_refusal(a, unjudged=False) for a in asked]),
        "generality": share([refusals.is_refusal(a, unjudged=False) for a in rephrased]),
        "other subject": share(same[0::3]),
        "same subject": share(same[1::3]),
        "unrelated": share(same[2::3]),
        "refused outside": share(spilled),
    }
