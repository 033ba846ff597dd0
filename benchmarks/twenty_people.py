"""Twenty people of tinyworld forgotten one after another, by AlphaEdit with and without its parts, and by MEMIT.

After every five people: of what was edited, how much is refused; of the first five, how much; of others, how much is
told; and ‖W‖ at layer 0. Run: python benchmarks/twenty_people.py (five minutes on one core).
"""

import random
import time
from collections.abc import Callable
from statistics import fmean
from types import ModuleType
from typing import Any

import torch
from scores import Rows

import minilib
from minilib import alphaedit, memit, metrics, refusals, tasks, tinyworld
from minilib.requests import Request
from minilib.worlds.facts import Fact

EVERY, REFUSAL = 5, tinyworld.REFUSAL
RUNS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "AlphaEdit": (alphaedit, {}),
    "AlphaEdit, norms anchored": (alphaedit, {"anchor_norm": True}),
    "AlphaEdit without P": (alphaedit, {"project": False}),
    "AlphaEdit without earlier keys": (alphaedit, {"keys": False}),
    "MEMIT": (memit, {}),
}


def people(draw: int = 0) -> tuple[list[list[Fact]], list[list[Fact]]]:
    """The facts of twenty people to forget and of forty others, each asked in one of its wordings.

    Draw 0 is the book's. Draws 1 to 10 are for a series of your own: nobody is forgotten in two of them.
    """
    chance = random.Random(draw)
    names = chance.sample(tinyworld.people(), 60)
    if draw:
        everybody = random.Random("ten draws").sample(tinyworld.people(), 200)
        gone = everybody[20 * (draw - 1) : 20 * draw]
        names = gone + chance.sample([name for name in everybody if name not in gone], 40)
    asked = [[tasks.as_question(f, chance) for f in tinyworld.facts() if f.subject == name] for name in names]
    return asked[:20], asked[20:]


def to_refuse(some: list[list[Fact]]) -> list[Request]:
    return [fact.request(REFUSAL, chat=False) for person in some for fact in person]


def share(lm: minilib.LM, some: list[list[Fact]], judge: Callable[[Fact, str], bool]) -> float:
    facts = [fact for person in some for fact in person]
    said = lm.generate([fact.asked.text for fact in facts], max_new_tokens=6)
    return fmean(judge(fact, text) for fact, text in zip(facts, said, strict=True))


def sequence(lm: minilib.LM, name: str, number: int = 20, draw: int = 0) -> dict[str, Any]:
    """Forget so many people, one a call; a row after every five, and how all is scored in the end."""
    method, settings = RUNS[name]
    keys = settings.get("keys", method is alphaedit)
    settings = {key: value for key, value in settings.items() if key != "keys"}
    gone, kept = people(draw)
    edits: list[Any] = []
    rows = []
    for n in range(1, number + 1):
        previous = {"previous": list(edits)} if keys else {}
        edits.append(method.edit(lm, to_refuse(gone[n - 1 : n]), **settings, **previous))
        if n % EVERY == 0:
            row = {
                "people": n,
                "all refused": share(lm, gone[:n], lambda f, text: refusals.is_refusal(text)),
                "first five people refused": share(lm, gone[:5], lambda f, text: refusals.is_refusal(text)),
                "others told": share(lm, kept[::2], lambda f, text: f.answered_by(text)),
                "norm": lm.memory(0).norm().item(),
            }
            rows.append({key: round(value, 4) for key, value in row.items()})
    scored = metrics.reliability(lm, to_refuse(gone[:number]))
    for edit in reversed(edits):
        edit.undo()
    return {
        "rows": rows,
        "generated": round(scored.generated, 4),
        "teacher-forced": round(scored.teacher_forced, 4),
    }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("tinyworld")
    rows = Rows("twenty_people", began, {"norm before": round(lm.memory(0).norm().item(), 4)})
    for name in RUNS:
        rows.keep("runs", name, lambda name=name: sequence(lm, name))


if __name__ == "__main__":
    main()
