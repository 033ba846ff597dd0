"""What a model says after some steps of unlearning by gradient: on tinyworld, where the oracle is known, and SmolLM2.

Gradient ascent for one to twenty steps, NPO by its β, every method with a retain set, and two capitals on SmolLM2.
Run: python benchmarks/gradient_steps.py (five minutes on one core). It goes on where it stopped.
"""

import time
from typing import Any

import torch
from scores import Rows

import minilib
from minilib import METHODS, facts, refusals, tasks, tinyworld, unlearning

STEPS = [1, 2, 3, 5, 8, 12, 20]
BETAS = [0.02, 0.1, 0.5, 1.0, 2.0, 5.0]
HOW = {"lr": 1e-3, "forget_level": 1e-9}  # never early
MORE = {"rmu": {"layer": 2, "lr": 3e-3, "alpha": 10.0}}
HOW_REAL = {"steps": 10, "batch_size": 2, "lr": 1e-5}
REAL = {
    "ascent alone": ("gradient_ascent", {}),
    "NPO, with retain": ("npo", {"retain_weight": 5.0}),
    "refusal tuning, with retain": ("refusal_tuning", {"retain_weight": 5.0}),
}


def look(task: tasks.Task, model: minilib.LM) -> dict[str, Any]:
    """What a model says of 20 facts to forget and 60 others; how far it is from the oracle. As in chapter 09."""
    assert task.oracle is not None
    forget, others = task.forget_said, [q for kind, q in task.outside if kind == "neighbour"]
    refuses = model.encode_target(" I")[0]
    true = torch.tensor([model.encode_target(r.target)[:1] for r in forget])
    answers = model.generate(forget, max_new_tokens=8)
    rest = model.generate([q.text for q in others], max_new_tokens=8)
    p, q = task.oracle.logprobs(forget), model.logprobs(forget)
    return {
        "answers": [a.strip() for a in answers],
        "told": sum(f.answered_by(a) for f, a in zip(task.forget, answers, strict=True)),
        "refused": sum(map(refusals.is_refusal, answers)),
        "others": sum(q.answered_by(a) for q, a in zip(others, rest, strict=True)),
        "others refused": sum(map(refusals.is_refusal, rest)),
        "kl": (p.exp() * (p - q)).sum(1).mean().item(),
        "I": q.exp()[:, refuses].mean().item(),
        "kl of the truth": (p.exp() * (p - q)).gather(1, true).mean().item(),
    }


def small(task: tasks.Task, method: str, steps: int, **settings: Any) -> dict[str, Any]:
    """Tinyworld after some steps of a method."""
    with getattr(unlearning, method)(task.lm, task.forget_said, steps=steps, **HOW | settings):
        return look(task, task.lm)


def real(lm: minilib.LM, method: str, own: dict[str, Any]) -> dict[str, Any]:
    """SmolLM2's answers about six capitals, two of them unlearned and, but for ascent, two retained."""
    known = {f.subject: f for f in facts.load("capital")}
    names = ["France", "Germany", "the United Kingdom", "Ireland", "Austria", "Greece"]
    asked = facts.as_said(lm, [known[name] for name in names])
    retain = None if method == "gradient_ascent" else asked[2:4]
    with getattr(unlearning, method)(lm, asked[:2], retain=retain, **HOW_REAL | own):
        return {"said": lm.generate(asked, max_new_tokens=12)}


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows = Rows("gradient_steps", began, {"how": HOW, "rmu": MORE["rmu"], "real how": HOW_REAL})
    task = tasks.exact()
    for steps in STEPS:
        rows.keep("ascent", str(steps), lambda steps=steps: small(task, "gradient_ascent", steps))
    for beta in BETAS:
        rows.keep("npo", str(beta), lambda beta=beta: small(task, "npo", 20, beta=beta))
    trained = [name for name, method in METHODS.items() if method.kind == "trains"]
    for method in trained[1:]:  # ascent with a retain set is the difference
        own = {"refusals": [tinyworld.REFUSAL]} if method in ("dpo", "refusal_tuning") else {}
        how = MORE.get(method, {}) | own | {"retain": task.retain_said}
        for steps in (2, 5, 10, 20):
            make = lambda steps=steps, method=method, how=how: small(task, method, steps, **how)  # noqa: E731
            rows.keep("held", f"{method} {steps}", make)
    lm = minilib.load("smollm2-135m")
    for title, (method, own) in REAL.items():
        rows.keep("real", title, lambda method=method, own=own: real(lm, method, own))


if __name__ == "__main__":
    main()
