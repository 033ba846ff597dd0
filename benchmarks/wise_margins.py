"""WISE on twenty refusals, trained without margins and with the preset's: what chapter 07 shows of the two memories.

Stored are the routing activations of every question, the losses, and what the memory without margins says to
strangers when it answers everybody. Last, three of the facts with fewer irrelevant prompts, a training that the chapter
repeats. Run: python benchmarks/wise_margins.py (six minutes on one core)
"""

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import facts, guards, refusals, stored, wise

SOME = 40  # strangers that W' answers, half questions and half messages
THREE = ("capital: France", "capital: Germany", "author: Hamlet")


def few(given: Sequence[str]) -> list[str]:
    """Of the irrelevant prompts those that ask for a capital too, and every tenth of the others."""
    near = [prompt for prompt in given if "capital" in prompt]
    return [*near, *[prompt for prompt in given if prompt not in near][::10]]


def rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def refused(answers: Sequence[str]) -> float:
    return round(fmean(map(refusals.is_refusal, answers)), 4)


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    lm.model.requires_grad_(False)
    runs = stored.load("wise_routing")  # the same questions
    known = {f"{f.relation}: {f.subject}": f for f in facts.FACTS}
    chosen = [known[name] for name in runs["edited"]]
    requests = [fact.request(REFUSAL) for fact in chosen]
    questions = {
        "irrelevant, trained on": runs["given"],
        "irrelevant, new": runs["unrelated"] + runs["ordinary"],
        "rephrased": [form.text for fact in chosen for form in fact.rephrased(REFUSAL)],
        "edited": [request.text for request in requests],
    }
    layer = wise.Settings.of(lm).layer

    def last_keys(texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([k[-1] for k in guards.keys(lm, layer, [lm.encode(t, chat=True).ids for t in texts])])

    K = {group: last_keys(texts) for group, texts in questions.items()}
    away = K["irrelevant, trained on"]
    unit = away / away.norm(dim=1, keepdim=True)
    about = {
        "questions": {group: len(k) for group, k in K.items()},
        "scale": float(f"{(away @ lm.memory(layer).T).norm(dim=1).mean():.5g}"),
        "cosine": round((unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)].mean().item(), 4),
    }
    rows = Rows("wise_margins", began, about)

    def memory(edit: minilib.Edit) -> dict[str, Any]:
        (side,) = edit.guard.sides
        activations = {group: rounded(wise.activation(side.delta, k).tolist()) for group, k in K.items()}
        traces = {name: rounded(values) for name, values in edit.traces[0].items()}
        return {"activations": activations, "traces": traces}

    def without() -> dict[str, Any]:
        strangers = runs["unrelated"][: SOME // 2] + runs["ordinary"][: SOME // 2]
        settings = {"margins": wise.NO_MARGINS, "precondition": 0.0, "lr": 1.0}
        with wise.edit(lm, requests, irrelevant=runs["given"][:20], **settings) as edit:
            found, D = memory(edit), edit.guard.sides[0].delta
        W = lm.down_projection(layer).weight
        original, W.data = W.data, W.data + D
        said = lm.generate(strangers)
        W.data = original
        return found | {"strangers": len(said), "refused": refused(said), "said": said[::8]}

    def with_margins() -> dict[str, Any]:
        with wise.edit(lm, requests, irrelevant=runs["given"]) as edit:
            return memory(edit)

    def three() -> dict[str, Any]:
        some = [known[name] for name in THREE]
        unrelated = runs["unrelated"][:5]
        before = lm.generate(unrelated)
        with wise.edit(lm, [f.request(REFUSAL) for f in some], irrelevant=few(runs["given"])) as edit:
            return {
                "facts": THREE,
                "reliability": refused(lm.generate([f.request(REFUSAL) for f in some])),
                "generality": refused(lm.generate([f.rephrased(REFUSAL)[0] for f in some])),
                "unrelated": round(fmean(a == b for a, b in zip(lm.generate(unrelated), before, strict=True)), 4),
                "threshold": float(f"{edit.guard.sides[0].epsilon:.4g}"),
            }

    rows.keep("memories", "no margins", without)
    rows.keep("memories", "three margins", with_margins)
    rows.keep("three", "three facts", three)


if __name__ == "__main__":
    main()
