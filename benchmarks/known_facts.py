"""Which facts SmolLM2 knows, and how sure it is: written to minilib/data/known_smollm2-135m.json.

A fact is known when its answer stands in the 24 tokens that the model says to the chat question. ``probability`` is
that of the answer's tokens at the place where the model said them, its own words before them given. ``facts.known``
does not read the file: it measures. A test and the chapters compare with it.
Run: python benchmarks/known_facts.py (about two minutes on 2 cores)
"""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import minilib
from minilib import facts, stored

MODEL = "smollm2-135m"
FILE = Path(facts.DATA).with_name(f"known_{MODEL}.json")


def where(fact: facts.Fact, text: str) -> tuple[int, int]:
    """Start and end, in characters, of the first accepted answer in a text."""
    flags = 0 if fact.case_sensitive else re.IGNORECASE
    found = [re.search(rf"(?<!\w){re.escape(a)}(?!\w)", text, flags) for a in (fact.answer, *fact.aliases)]
    return min(m.span() for m in found if m)


def probability(lm: minilib.LM, fact: facts.Fact, text: str) -> float:
    """The probability of the answer where the model said it: the product over the tokens that cover it."""
    start, end = where(fact, text)
    target = text[:end]
    offsets = lm.tokenizer(target, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    logprobs = lm.target_logprobs(fact.request(target))[0].tolist()
    return math.exp(sum(p for p, (_, stop) in zip(logprobs, offsets, strict=True) if stop > start))


def main() -> None:
    began = time.perf_counter()
    lm = minilib.load(MODEL)
    rows: list[dict[str, Any]] = []
    answers = facts.ask(lm, facts.FACTS)
    for fact, text in zip(facts.FACTS, answers, strict=True):
        if fact.answered_by(text):
            p = round(probability(lm, fact, text), 3)
            rows.append({"relation": fact.relation, "subject": fact.subject, "said": text, "probability": p})
    made = stored.provenance("benchmarks/known_facts.py", began)
    counts = {r: f"{sum(row['relation'] == r for row in rows)}/{len(facts.load(r))}" for r in facts.RELATIONS}
    about = {
        "model": MODEL,
        "fingerprint": lm.fingerprint,
        "asked": len(facts.FACTS),
        "known": len(rows),
        "known_by_relation": counts,
        "provenance": {
            "script": made["script"],
            "minilib": minilib.__version__,
            "commit": made["commit"],
            "date": made["made"],
            "seconds": made["seconds"],
            "versions": made["versions"],
        },
    }
    lines = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(about, indent=2, ensure_ascii=False)[:-2]
    FILE.write_text(f'{head},\n  "facts": [\n    {lines}\n  ]\n}}\n', encoding="utf-8")
    print(f"{len(rows)} of {len(facts.FACTS)} known, written to {FILE.name}: {counts}")


if __name__ == "__main__":
    main()
