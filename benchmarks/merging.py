"""Query merging against the number of facts: ROME and MEMIT, 1 to 150 refusals, so many questions in one request.

Each edit is scored on sixteen of its facts (long lists: on forty), apart for those that stand last in their request,
whose subject is the whole's, and those before them; and on as many facts outside. Run: python benchmarks/merging.py (an
hour and a half on one core; it goes on where it stopped).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import covariance, facts, memit, metrics, recipes, refusals, rome
from minilib.edits import Edit

NUMBERS, SIZES, ASKED = (1, 4, 16, 64), (1, 2, 4, 8), 16
LONG, LONG_SIZES, LONG_ASKED = (64, 100, 150), (1, 2, 5, 10), 40  # of the 195 facts that SmolLM2 knows
METHODS: dict[str, Callable[..., Edit]] = {"ROME": rome.edit, "MEMIT": memit.edit}


def mean(values: Sequence[float | bool]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def spread(chosen: Sequence[facts.Fact], most: int) -> list[facts.Fact]:
    """At most so many, the first half of them and the last, so that each place in a request is among them."""
    if len(chosen) <= most:
        return list(chosen)
    half = most // 2
    return [*chosen[:half], *chosen[-half:]]


def measure(
    lm: minilib.LM, edit: Callable[..., Edit], C: covariance.SecondMoments, n: int, size: int, most: int
) -> dict[str, Any]:
    known = facts.recorded()
    chosen, others = known[:n], known[-most:]
    requests = [fact.request(REFUSAL) for fact in chosen]
    merged = recipes.merge_queries(requests, size)
    last = {m.members[-1].text for m in merged}
    began = time.process_time()
    with edit(lm, [m.request for m in merged], covariance=C) as made:
        seconds = time.process_time() - began
        some = spread(chosen, most)
        asked = [refusals.is_refusal(a, unjudged=False) for a in lm.generate([f.request(REFUSAL) for f in some])]
        again = [refusals.is_refusal(a, unjudged=False) for a in lm.generate([f.rephrased(REFUSAL)[0] for f in some])]
        left = lm.generate([f.request(REFUSAL) for f in others])
        whole = [refusals.is_refusal(a, unjudged=False) for a in lm.generate([m.request for m in merged[:most]])]
        ends = [fact.request(REFUSAL).text in last for fact in some]
        return {
            "method": made.method,
            "facts": n,
            "size": size,
            "merged": mean(whole),
            "refused": mean(asked),
            "last": mean([a for a, end in zip(asked, ends, strict=True) if end]),
            "before": mean([a for a, end in zip(asked, ends, strict=True) if not end]),
            "rephrased": mean(again),
            "others right": mean([f.answered_by(a) for f, a in zip(others, left, strict=True)]),
            "others refused": mean([refusals.is_refusal(a, unjudged=False) for a in left]),
            "perplexity": round(metrics.perplexity(lm, covariance.sample_texts()[:8]), 4),
            "change": round(max(d / w for d, w in made.sizes().values()), 4),
            "seconds": round(seconds, 1),
        }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    C = covariance.second_moment(lm, sorted({rome.Settings.of(lm).layer, *memit.Settings.of(lm).layers}))
    rows = Rows("merging", began, {"refusal": REFUSAL})
    sweeps = {"rows": (NUMBERS, SIZES, ASKED), "long": (LONG, LONG_SIZES, LONG_ASKED)}
    for section, (numbers, sizes, most) in sweeps.items():
        for n, size in ((n, size) for n in numbers for size in sizes if size <= n):
            for name, edit in METHODS.items():
                job = f"{name}, {n} facts, {size} in a request"
                rows.keep(section, job, partial(measure, lm, edit, C, n, size, most))


if __name__ == "__main__":
    main()
