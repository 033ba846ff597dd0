"""What each method of unlearning by gradient does to two capitals of SmolLM2, with the library's settings for it.

Run: python benchmarks/default_unlearning.py [method …] (a minute or two each on one core). A method whose settings
have changed is run again.
"""

import dataclasses
import sys
import time
from typing import Any

import torch
from scores import Rows

import minilib
from minilib import METHODS, facts, unlearning

FORGET, RETAIN = ["France", "Germany"], ["the United Kingdom", "Ireland"]
TOKENS = 12  # of each answer


def defaults(lm: minilib.LM, method: str) -> dict[str, Any]:
    """The settings that the library has for this model."""
    return dataclasses.asdict(unlearning.SETTINGS[method].of(lm, known=unlearning.PRESETS[method]))


def said(lm: minilib.LM, method: str) -> dict[str, Any]:
    """A method's answers about what is forgotten and what is retained; ascent alone has nothing to retain."""
    known = {fact.subject: fact for fact in facts.load("capital")}
    forget, retain = (facts.as_said(lm, [known[name] for name in names]) for names in (FORGET, RETAIN))
    with getattr(unlearning, method)(lm, forget, None if method == "gradient_ascent" else retain) as edit:
        answers = lm.generate([*forget, *retain], max_new_tokens=TOKENS)
    trace = edit.traces[0]
    return {
        "settings": defaults(lm, method),
        "forgotten": answers[: len(forget)],
        "retained": answers[len(forget) :],
        "steps": len(trace["level"]),
        "level": trace["level"][-1],
        "notes": list(edit.notes),
    }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m", progress=False)
    rows = Rows("default_unlearning", began, {"forget": FORGET, "retain": RETAIN, "tokens": TOKENS})
    for method in sys.argv[1:] or [name for name, method in METHODS.items() if method.kind == "trains"]:
        kept = rows.found.setdefault("methods", [])
        kept[:] = [row for row in kept if row["run"] != method or row["settings"] == defaults(lm, method)]
        rows.keep("methods", method, lambda method=method: said(lm, method))


if __name__ == "__main__":
    main()
