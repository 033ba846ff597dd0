"""Edit facts of SmolLM2 at every layer, one edit at a time, and score each: data/results/edit_every_layer.json.

The facts are the surest of those that trace_average.json holds, as far as the model also answers them in chat, two of a
relation at most. Two kinds of edits: a false completion ("The capital of South Korea is" → " Bangkok"), as in the
papers on locating and editing, and, for every second fact, a refusal in chat. Free generation decides; the
probability of the target stands beside it.
Run: python benchmarks/edit_every_layer.py (about twenty minutes on a free core, after trace_average.py)
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from scores import REFUSAL, outside

import minilib
from minilib import covariance, facts, metrics, refusals, stored

MODEL, FACTS = "smollm2-135m", 6
PREFIXES = ("Everyone knows this. {}", "He wrote in his notebook: {}", "A question from a quiz. {}")
WORDS = 12  # tokens of an answer that are looked at


def choose(lm: minilib.LM) -> Iterator[facts.Fact]:
    """The surest facts that were traced and are known in chat too, as far as the false answer begins otherwise."""
    traced = [(row["relation"], row["subject"]) for row in stored.load("trace_average")["facts"]]
    by_name = {(fact.relation, fact.subject): fact for fact in facts.FACTS}
    taken: Counter[str] = Counter()
    for fact in facts.known(lm, [by_name[name] for name in traced]):
        differs = fact.answer.split()[0] != fact.neighbours[0].answer.split()[0]
        if differs and taken[fact.relation] < 2 and taken.total() < FACTS:
            taken[fact.relation] += 1
            yield fact


def others(fact: facts.Fact) -> list[str]:
    """The same completion for three other subjects with other answers."""
    rows = facts.load(fact.relation)
    at = rows.index(fact)
    return [f.prompt.format(f.subject) for f in rows[at + 1 :] + rows[:at] if f.answer != fact.answer][:3]


def completion(lm: minilib.LM, fact: facts.Fact, layers: list[int], C: Any) -> dict[str, Any]:
    """A false answer is written at each layer; how often it is said, and what else changes."""
    request = fact.request(" " + fact.neighbours[0].answer, chat=False)
    same = [request.text, *(prefix.format(request.text) for prefix in PREFIXES)]
    beside = others(fact)
    before = lm.generate(beside, max_new_tokens=5, chat=False)
    rows = []
    for layer in layers:
        with minilib.rome.edit(lm, request, layer=layer, covariance=C):
            said = lm.generate(same + beside, max_new_tokens=5, chat=False)
            held = [metrics.says(text, request.target) for text in said[: len(same)]]
            kept = [a == b for a, b in zip(said[len(same) :], before, strict=True)]
            rows.append(scored(held, kept, lm.probability(request)))
    return {"relation": fact.relation, "subject": fact.subject, "target": request.target, **columns(rows)}


def refusal(lm: minilib.LM, fact: facts.Fact, layers: list[int], C: Any) -> dict[str, Any]:
    """The same with a refusal, asked in chat."""
    request = fact.request(REFUSAL)
    same = [request, *fact.rephrased(request.target)]
    beside = outside([fact])
    before = lm.generate(beside, max_new_tokens=WORDS)
    rows = []
    for layer in layers:
        with minilib.rome.edit(lm, request, layer=layer, covariance=C):
            said = lm.generate([*same, *beside], max_new_tokens=WORDS)
            held = [refusals.is_refusal(text, unjudged=False) for text in said[: len(same)]]
            kept = [a == b for a, b in zip(said[len(same) :], before, strict=True)]
            rows.append(scored(held, kept, lm.probability(request)))
    return {"relation": fact.relation, "subject": fact.subject, "target": request.target, **columns(rows)}


def scored(held: list[bool], kept: list[bool], probability: float) -> dict[str, float]:
    """Reliability, generality and locality by free generation; the probability by teacher forcing."""
    return {
        "reliability": float(held[0]),
        "generality": round(sum(held[1:]) / (len(held) - 1), 4),
        "locality": round(sum(kept) / len(kept), 4),
        "probability": round(probability, 4),
    }


def columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """For each score, its values by layer."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> None:
    started = time.perf_counter()
    lm = minilib.load(MODEL)
    layers = list(range(lm.n_layers))
    C = covariance.second_moment(lm, layers)
    chosen = list(choose(lm))
    about = {"model": MODEL, "fingerprint": lm.fingerprint, "layers": layers}
    found: dict[str, list[dict[str, Any]]] = {"completion": [], "refusal": []}
    for i, fact in enumerate(chosen):
        found["completion"].append(completion(lm, fact, layers, C))
        if i % 2 == 0:
            found["refusal"].append(refusal(lm, fact, layers, C))
        print(f"{fact.subject}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    stored.save("edit_every_layer", {**about, **found}, "benchmarks/edit_every_layer.py", started)


if __name__ == "__main__":
    main()
