"""Trace 30 facts that SmolLM2 knows, and keep the average with its spread: minilib/data/results/trace_average.json.

The facts are those whose completion prompt has the answer as its likeliest continuation, the surest first, at most six
of a relation, with a subject of several tokens (with one token alone, restoring it early undoes all of the noise). Each
is traced three times: single hidden states, windows of MLPs, windows of attention. What is
averaged is the indirect effect at six kinds of tokens; where one kind is several tokens, their mean is taken.
Run: python benchmarks/trace_average.py (about a quarter of an hour on one core)
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

import minilib
from minilib import facts, stored, tracing

MODEL, FACTS, PER_RELATION, DRAWS, SEED = "smollm2-135m", 30, 6, 3, 0
KINDS: tuple[tracing.Kind, ...] = ("hidden", "mlp", "attention")
PLACES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)
EACH = ("last subject token", "last token")  # kept for each fact


def request(fact: facts.Fact) -> minilib.Request:
    """The completion prompt with the true answer."""
    return fact.request(" " + fact.answer, chat=False)


def choose(lm: minilib.LM) -> Iterator[facts.Fact]:
    """The surest facts whose answer begins with the likeliest next token and whose subject has several tokens."""
    logprobs = lm.logprobs([request(fact) for fact in facts.FACTS])
    answer = [lm.encode_target(" " + fact.answer)[0] for fact in facts.FACTS]
    sure = [p[t].item() if p.argmax() == t else -torch.inf for p, t in zip(logprobs, answer, strict=True)]
    taken: Counter[str] = Counter()
    for i in sorted(range(len(sure)), key=lambda i: -sure[i]):
        fact = facts.FACTS[i]
        x = lm.encode(request(fact))
        last, start = x.subject, x.subject_start
        if last != start and sure[i] > -torch.inf and taken[fact.relation] < PER_RELATION and taken.total() < FACTS:
            taken[fact.relation] += 1
            yield fact


def places(trace: tracing.Trace) -> dict[str, list[int]]:
    """Which tokens are of which kind; each token is of one, and the ends of the subject and of the prompt go first."""
    start, stop = trace.subject
    end = len(trace.tokens) - 1
    tokens = {
        "last subject token": [stop - 1],
        "first subject token": [start],
        "middle subject tokens": list(range(start + 1, stop - 1)),
        "last token": [end],
        "first token after": [stop],
        "further tokens": list(range(stop + 1, end)),
    }
    seen: set[int] = set()
    found = {}
    for name, candidates in tokens.items():
        found[name] = [t for t in candidates if t not in seen and t <= end]
        seen |= set(found[name])
    return found


def curves(trace: tracing.Trace) -> dict[str, torch.Tensor]:
    """The indirect effect by layer, (layers,), at each kind of token that the prompt has."""
    return {name: trace.effect[:, tokens].mean(1) for name, tokens in places(trace).items() if tokens}


def rounded(x: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in x.tolist()]


def measure(lm: minilib.LM, fact: facts.Fact, kind: tracing.Kind) -> tracing.Trace:
    return tracing.causal_trace(lm, request(fact), kind, draws=DRAWS, seed=SEED)


def main() -> None:
    started = time.perf_counter()
    lm = minilib.load(MODEL)
    rows: list[dict[str, Any]] = []
    found: dict[str, dict[str, list[torch.Tensor]]] = {kind: {name: [] for name in PLACES} for kind in KINDS}
    for fact in choose(lm):
        row: dict[str, Any] = {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}
        for kind in KINDS:
            trace = measure(lm, fact, kind)
            row |= {"tokens": trace.tokens, "clean": round(trace.clean, 4)}
            row["corrupted"] = round(trace.corrupted.mean().item(), 4)
            mine = curves(trace)
            row[kind] = {name: rounded(mine[name]) for name in EACH}
            for name, curve in mine.items():
                found[kind][name].append(curve)
        rows.append(row)
        print(f"{len(rows)} {fact.subject}: {time.perf_counter() - started:.0f} s", flush=True)
    average = {
        kind: {
            name: {
                "facts": len(all_curves),
                "mean": rounded(torch.stack(all_curves).mean(0)),
                "sd": rounded(torch.stack(all_curves).std(0)),
            }
            for name, all_curves in by_place.items()
        }
        for kind, by_place in found.items()
    }
    about = {"model": MODEL, "fingerprint": lm.fingerprint, "draws": DRAWS, "noise": 3.0, "window": trace.window}
    stored.save("trace_average", {**about, "average": average, "facts": rows}, "benchmarks/trace_average.py", started)


if __name__ == "__main__":
    main()
