"""Six capitals refused by GRACE and by ROME, asked in the first and in the second turn of a talk: a common mistake.

Each request is the first message of a talk: that is what ``chat=True`` makes. In the second turn the same question
comes after a greeting and an answer to it. Run: python benchmarks/second_turn.py (two minutes on one core).
"""

import time
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import facts, grace, refusals, rome
from minilib.edits import Edit

FACTS = 6
BEFORE = [
    {"role": "user", "content": "Hello! Can you help me with a school quiz?"},
    {"role": "assistant", "content": "Of course. What is the first question?"},
]


def asked(lm: minilib.LM, question: str, turns: list[dict[str, str]]) -> str:
    """What is said to a question after these turns."""
    talk = lm.chat_prompt([*turns, {"role": "user", "content": question}])
    return lm.generate(talk, max_new_tokens=16, chat=False)


def measure(lm: minilib.LM, chosen: list[facts.Fact], edit: Edit) -> dict[str, Any]:
    questions = [fact.asked.text for fact in chosen]
    said = [[asked(lm, question, turns) for question in questions] for turns in ([], BEFORE)]
    row: dict[str, Any] = {
        f"refused, turn {turn}": sum(map(refusals.is_refusal, some)) for turn, some in enumerate(said, 1)
    }
    row |= {
        f"revealed, turn {turn}": sum(fact.answered_by(a) for fact, a in zip(chosen, some, strict=True))
        for turn, some in enumerate(said, 1)
    }
    if edit.guard is not None:
        talks = [lm.chat_prompt([*BEFORE, {"role": "user", "content": question}]) for question in questions]
        row["distances, turn 2"] = [round(x["distance"], 2) for x in edit.explain(talks, chat=False)]
    return row | {"answers, turn 2": said[1]}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m", progress=False)
    chosen = [fact for fact in facts.recorded() if fact.relation == "capital"][:FACTS]
    requests = [fact.request(REFUSAL) for fact in chosen]
    rows = Rows("second_turn", began, {"facts": [fact.subject for fact in chosen], "turns": BEFORE})
    for name, method in {"GRACE": grace, "ROME": rome}.items():

        def make(method: Any = method) -> dict[str, Any]:
            with method.edit(lm, requests) as edit:
                return measure(lm, chosen, edit)

        rows.keep("rows", name, make)


if __name__ == "__main__":
    main()
