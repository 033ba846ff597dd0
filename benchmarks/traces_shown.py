"""Causal traces that chapter 03 shows and does not make: MLPs and attention for the Louvre, noise levels for Seoul.

Run: python benchmarks/traces_shown.py (a minute on one core)
"""

import time
from typing import Any

import torch
from scores import Rows

import minilib
from minilib import tracing

LOUVRE = minilib.Request("The {} is located in the city of", "Louvre", " Paris")
KOREA = minilib.Request("The capital of {} is", "South Korea", " Seoul")
LEVELS = (0.1, 1.0, 3.0, 10.0)  # 3 is the authors'


def measure(lm: minilib.LM, request: minilib.Request, **options: Any) -> dict[str, Any]:
    trace = tracing.causal_trace(lm, request, draws=1, **options)
    return {
        "request": request.text,
        "clean": round(trace.clean, 4),
        "total_effect": round(trace.total_effect, 4),
        "window": trace.window,
        "effect": [[round(x, 4) for x in row] for row in trace.effect.tolist()],  # (layers, tokens)
    }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    lm = minilib.load("smollm2-135m")
    rows = Rows("traces_shown", began, {"draws": 1})
    for kind in ("mlp", "attention"):
        rows.keep("parts", kind, lambda kind=kind: measure(lm, LOUVRE, kind=kind))
    for level in LEVELS:
        rows.keep("levels", f"{level:g}", lambda level=level: measure(lm, KOREA, noise=level))


if __name__ == "__main__":
    main()
