"""What SmolLM2 says after a refusal: facts × methods × layers × strengths, for the page on which a reader chooses.

Of each edit all answers are kept: the question, three other wordings, the neighbours, an unrelated question, and two
more facts of the same relation; and ‖ΔW‖ against ‖W‖. Run: python benchmarks/playground.py (half an hour on one core).
It goes on where it stopped.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import alphaedit, facts, grace, memit, refusals, rome, texts, wise
from minilib.edits import Edit
from minilib.worlds.facts import Fact

FACTS = 5
STRENGTHS = (0.5, 1.0, 1.5)
LAYERS = {"rome": (2, 4, 8, 15), "memit": (2, 4, 8), "alphaedit": (2, 4, 8), "grace": (22,), "wise": (22,)}
TOKENS = 16


def questions(fact: Fact, others: list[Fact]) -> list[tuple[str, Any]]:
    """What is asked beside the question itself, with what each is there for and what answers it."""
    found = [("reworded", fact.__class__(**{**vars(fact), "question": form})) for form in fact.rephrasings]
    asked = [("asked", fact.asked), *((kind, f.asked) for kind, f in found)]
    asked += list(zip(("neighbour", "same subject"), fact.neighbours, strict=True))
    asked += [("unrelated", fact.unrelated)] if fact.unrelated else []
    return (
        asked + [("same relation", f.asked) for f in others if f.relation == fact.relation and f is not fact][:10][:2]
    )


def edit(lm: minilib.LM, fact: Fact, method: str, layer: int) -> Edit:
    request = fact.request(REFUSAL)
    how: dict[str, Callable[[], Edit]] = {
        "rome": lambda: rome.edit(lm, request, layer=layer),
        "memit": lambda: memit.edit(lm, request, layers=[layer]),
        "alphaedit": lambda: alphaedit.edit(lm, request, layers=[layer]),
        "grace": lambda: grace.edit(lm, request, layer=layer),
        "wise": lambda: wise.edit(lm, request, layer=layer, irrelevant=texts.messages()[:64]),
    }
    return how[method]()


def say(lm: minilib.LM, asked: list[tuple[str, Any]]) -> list[list[Any]]:
    """Of each question the answer's first words, and how it counts: t told, r refused, o something else."""
    said = lm.generate([q.text for _, q in asked], max_new_tokens=TOKENS)
    kinds = [
        "r" if refusals.is_refusal(s, unjudged=False) else "t" if q.answered_by(s) else "o"
        for s, (_, q) in zip(said, asked, strict=True)
    ]
    return [[kind, " ".join(s.split())[:70]] for kind, s in zip(kinds, said, strict=True)]


def measure(lm: minilib.LM, fact: Fact, asked: list[tuple[str, Any]], method: str, layer: int) -> dict[str, Any]:
    with edit(lm, fact, method, layer) as made:
        sizes = made.sizes()
        share = max((change / weight for change, weight in sizes.values()), default=0.0)
        answers = {}
        for strength in STRENGTHS if made.guard is None else (1.0,):
            with made.at_strength(strength):
                answers[str(strength)] = say(lm, asked)
    return {"fact": fact.subject, "method": method, "layer": layer, "size": round(share, 4), "answers": answers}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m", progress=False)
    known = facts.recorded()
    chosen = known[:FACTS]
    about = [
        {"subject": f.subject, "relation": f.relation, "answer": f.answer,
         "asked": [[kind, q.text, q.answer] for kind, q in questions(f, known)]}
        for f in chosen
    ]  # fmt: skip
    rows = Rows("playground", began, {"facts": about, "strengths": list(STRENGTHS), "refusal": REFUSAL})
    for fact in chosen:
        asked = questions(fact, known)
        rows.keep("unedited", fact.subject, lambda asked=asked: {"answers": say(lm, asked)})
        for method, layers in LAYERS.items():
            for layer in layers:
                run = f"{fact.subject}, {method}, layer {layer}"
                make = lambda fact=fact, asked=asked, m=method, n=layer: measure(lm, fact, asked, m, n)  # noqa: E731
                rows.keep("edits", run, make)


if __name__ == "__main__":
    main()
