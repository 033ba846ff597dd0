"""WISE on twenty refusals: what its routing lets in, under other settings, and beside GRACE and ROME.

Each run trains a memory, and asks for the edited questions, three rephrasings of each, another question about each
subject, and for unrelated questions and ordinary messages that were not given as irrelevant prompts. With one memory,
an answer is that of W' or that of W, so that one training gives the scores at every threshold; an edit continued by
``previous=``, GRACE and ROME are scored as they stand. Rows that the stored file holds are not made again: delete it
to begin anew. Run: python benchmarks/wise_routing.py (an hour and a half on one core)
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scores import EVERYDAY, REFUSAL, Rows

import minilib
from minilib import facts, grace, refusals, rome, texts, wise

FACTS = 20
THRESHOLDS = (1.0, 0.9, 0.75, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Draw:
    """Facts to edit, questions to leave alone, and what the unedited model says to all that is asked."""

    requests: list[minilib.Request]
    forms: list[minilib.Request]  # three for each fact
    same: list[str]  # another question about each subject, those aside that are edited themselves
    given: list[str]  # for irrelevant=: questions about other facts, then ordinary messages
    unrelated: list[str]  # such questions held out from it
    ordinary: list[str]  # such messages held out from it
    before: dict[str, str]

    def asked(self) -> dict[str, Sequence[str | minilib.Request]]:
        return {
            "reliability": self.requests, "generality": self.forms,
            "same subject": self.same, "unrelated": self.unrelated,
            "ordinary": self.ordinary, "everyday": EVERYDAY,
        }  # fmt: skip


def text(prompt: str | minilib.Request) -> str:
    return prompt if isinstance(prompt, str) else prompt.text


def draw(lm: minilib.LM, number: int) -> Draw:
    """Facts 20 · number on; of questions and messages that name none of their subjects every third is held out."""
    known = facts.recorded()
    edited = known[FACTS * number : FACTS * (number + 1)]
    subjects = [fact.subject for fact in edited]
    requests = [fact.request(REFUSAL) for fact in edited]
    others = dict.fromkeys(fact.request(REFUSAL).text for fact in known if fact not in edited)
    others = texts.naming_none(others, subjects)
    same = [f.neighbours[1].text for f in edited if f.neighbours[1].text not in {r.text for r in requests}]
    forms = [form for fact in edited for form in fact.rephrased(REFUSAL)]
    held = others[number % 3 :: 3]
    messages = texts.naming_none(texts.messages(), subjects)
    ordinary = messages[number % 3 :: 3]
    given = [q for q in others if q not in held] + [m for m in messages if m not in ordinary]
    every = [text(prompt) for prompt in (*requests, *forms, *same, *held, *ordinary, *EVERYDAY)]
    return Draw(requests, forms, same, given, held, ordinary, dict(zip(every, lm.generate(every), strict=True)))


def right(name: str, prompt: str | minilib.Request, answer: str, before: dict[str, str]) -> bool:
    """Edits and rephrasings are to be refused, everything else is to be answered word for word as before."""
    return (
        refusals.is_refusal(answer, unjudged=False)
        if name in ("reliability", "generality")
        else answer == before[text(prompt)]
    )


def share(values: Sequence[bool]) -> float:
    return round(statistics.fmean(values), 4)


def scores(lm: minilib.LM, drawn: Draw, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Of the model as it stands."""
    found: dict[str, Any] = {}
    for name, prompts in drawn.asked().items():
        if name in leave_out:
            continue
        answers = lm.generate([text(p) for p in prompts])
        found[name] = share([right(name, p, a, drawn.before) for p, a in zip(prompts, answers, strict=True)])
        if name == "unrelated":
            found["unrelated refused"] = share([refusals.is_refusal(a, unjudged=False) for a in answers])
    return found


def curve(lm: minilib.LM, edit: minilib.Edit, drawn: Draw) -> list[dict[str, Any]]:
    """Scores at each threshold: where Δact is above, the answer of W' counts, elsewhere that of W."""
    assert isinstance(edit.guard, wise.SideMemories)
    (side,) = edit.guard.sides
    least = wise.activation(side.delta, side.keys).min().item() * (1 - wise.ROUNDING)
    every = [text(p) for prompts in drawn.asked().values() for p in prompts]
    act = dict(zip(every, (row["activation"] / least for row in edit.explain(every)), strict=True))
    edit.guard.sides = [replace(side, epsilon=min(THRESHOLDS) * least)]
    read = [q for q in every if act[q] > min(THRESHOLDS)]
    after = dict(zip(read, lm.generate(read), strict=True))
    edit.guard.sides = [side]
    found = []
    for threshold in THRESHOLDS:
        row: dict[str, Any] = {"threshold": threshold}
        for name, prompts in drawn.asked().items():
            answers = [(after if act[text(p)] > threshold else drawn.before)[text(p)] for p in prompts]
            good = [right(name, p, a, drawn.before) for p, a in zip(prompts, answers, strict=True)]
            row[name] = share(good)
            if name == "generality":
                row["forms"] = [share(good[i::3]) for i in range(3)]
            if name == "unrelated":
                row["unrelated refused"] = share([refusals.is_refusal(a, unjudged=False) for a in answers])
        found.append(row)
    return found


def one(lm: minilib.LM, drawn: Draw, requests: Any = None, **settings: Any) -> dict[str, Any]:
    """One training, scored at all thresholds."""
    started = time.perf_counter()
    with wise.edit(lm, requests or drawn.requests, **{"irrelevant": drawn.given, **settings}) as edit:
        seconds = round(time.perf_counter() - started, 1)
        assert isinstance(edit.guard, wise.SideMemories)
        side = edit.guard.sides[0]
        size = side.delta.norm() / lm.memory(edit.guard.layer).norm()
        last = [{key: values[-1] for key, values in trace.items()} for trace in edit.traces]
        row = {
            "seconds": seconds, "steps": [len(trace["loss"]) - 1 for trace in edit.traces],
            "margin loss": [round(x["margin"], 4) for x in last], "nll": [round(x["nll"], 4) for x in last],
            "least edit": round(wise.activation(side.delta, side.keys).min().item(), 3),
            "scale": round(edit.settings["scale"], 2), "size": round(size.item(), 4),
            "curve": curve(lm, edit, drawn),
        }  # fmt: skip
    return row


def another(lm: minilib.LM, drawn: Draw, method: Any) -> dict[str, Any]:
    """Another method, with its preset."""
    started = time.perf_counter()
    with method.edit(lm, drawn.requests):
        seconds = round(time.perf_counter() - started, 1)
        return {"seconds": seconds, **scores(lm, drawn)}


def in_calls(lm: minilib.LM, drawn: Draw, calls: int, retrieve: bool) -> dict[str, Any]:
    """The same facts in several calls, each continuing the one before."""
    made: list[minilib.Edit] = []
    n = len(drawn.requests) // calls
    for i in range(calls):
        some = drawn.requests[i * n : (i + 1) * n]
        before = made[-1] if made else None
        made.append(wise.edit(lm, some, irrelevant=drawn.given, retrieve=retrieve, previous=before))
    assert isinstance(made[-1].guard, wise.SideMemories)
    row = {"calls": calls, "retrieve": retrieve, "memories": len(made[-1].guard.sides), **scores(lm, drawn)}
    while made:
        made.pop().undo()
    return row


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    draws = [draw(lm, number) for number in range(3)]
    drawn = draws[0]
    about = {
        "edited": [f"{fact.relation}: {fact.subject}" for fact in facts.recorded()[:FACTS]],
        "given": drawn.given, "unrelated": drawn.unrelated, "ordinary": drawn.ordinary, "everyday": list(EVERYDAY),
    }  # fmt: skip
    keep = Rows("wise_routing", began, about).keep

    def trained(kind: str, name: str, chosen: Draw = drawn, **settings: Any) -> None:
        keep(kind, name, lambda: one(lm, chosen, **settings))

    for number, chosen in enumerate(draws):
        trained("draws", str(number), chosen)
    keep("methods", "GRACE", lambda: another(lm, drawn, grace))
    keep("methods", "ROME", lambda: another(lm, drawn, rome))
    keep("calls", "retrieved", lambda: in_calls(lm, drawn, 4, True))
    keep("calls", "merged", lambda: in_calls(lm, drawn, 4, False))
    trained("whitening", "none", precondition=0.0, lr=0.1)
    trained("irrelevant", "facts alone", irrelevant=[q for q in drawn.given if q not in texts.messages()])
    trained("masks", "0.2, 2", mask_ratio=0.2, shards=2)
    both = [r for request, form in zip(drawn.requests, drawn.forms[::3], strict=True) for r in (request, form)]
    trained("trained on", "one rephrasing more", requests=both)
    trained("trained on", "context prefixes", contexts="sampled")
    for number in (1, 2):
        both = [r for q, f in zip(draws[number].requests, draws[number].forms[::3], strict=True) for r in (q, f)]
        trained("trained on", f"one rephrasing more, draw {number}", draws[number], requests=both)
    for name, precondition, lr in (("none", None, None), ("none, not whitened", 0.0, 1.0)):
        trained("margins", name, margins=wise.NO_MARGINS, precondition=precondition, lr=lr)
    for layer in (20, 24):
        trained("layers", str(layer), layer=layer)
    trained("layers", "20, draw 1", draws[1], layer=20)
    trained("irrelevant", "messages alone", irrelevant="sampled")
    trained("masks", "0.5, 2", mask_ratio=0.5, shards=2)


if __name__ == "__main__":
    main()
