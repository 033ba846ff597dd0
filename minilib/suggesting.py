"""Settings for a model that has none: try a few on a few facts, and say what speaks for them.

A method's presets are for the book's models, and the papers' settings for much larger ones. Three things change from
model to model: the best layers, for which only a trial helps; λ, which is weighed against keys whose whitened length
grows with their width d_k; and AlphaEdit's threshold and ``l2``, which have the units of squared keys. So layers are
tried at a few depths first, and then, at the best, multiples of what the model's own keys suggest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import covariance, methods
from .measure import refusals
from .model import LM, check_lm
from .worlds.facts import Fact, known

METHODS = {name: method.edit for name, method in methods.METHODS.items() if method.kind == "writes weights"}
DEPTHS = (0.15, 0.25, 0.4, 0.1, 0.55)  # of the layers, the likeliest first: early ones did best in this book
WINDOW = 5  # layers at most: a sixth of them, as the papers' five of 28 to 48
WEIGHTS = (0.65, 0.1, 0.03, 2.0)  # λ / d_k; the first is SmolLM2's preset, the third about tinyworld's
THRESHOLDS = (2.0, 0.7, 6.0)  # in units of C's middle eigenvalue; the first is SmolLM2's preset
RIDGES = (
    0.4,
    0.04,
    0.01,
)  # l2 in units of the mean squared length of keys; the first is SmolLM2's, the last tinyworld's
SEARCH = {"weight_decay": 1e-3, "lr": 0.5}  # the papers' decay is made for longer values


@dataclass
class Suggestion:
    """Settings for ``edit(lm, requests, **settings)``, and the trials that they were chosen from."""

    method: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]  # the best first: settings, refused, rephrased, kept, score and seconds of each trial
    complete: bool  # whether all trials were made in the time


def suggest(
    lm: LM, facts: Sequence[Fact], method: str = "memit", refusal: str = "I don't know.", seconds: float = 600.0
) -> Suggestion:
    """Try settings of ROME, MEMIT or AlphaEdit on a few facts, and return the best.

    Parameters
    ----------
    lm : LM
        Is as before afterwards.
    facts : list of Fact
        Three to ten, with rephrasings and questions beside them; those that the model doesn't know are left out. They
        are no test of the result: measure it on others.
    method : {"memit", "rome", "alphaedit"}
    refusal : str
        The target of each trial.
    seconds : float, default 600
        No further trial is begun when it would not end in time; the first is made in any case.

    Returns
    -------
    Suggestion
        Its score is the harmonic mean of three shares: edited questions refused, rephrasings refused, and questions
        outside answered word for word as before.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the model knows none of the facts.
    """
    check_lm(lm)
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, not {method!r}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"seconds must be a number above 0, not {seconds!r}")
    if not refusals.is_refusal(refusal, unjudged=False):
        raise ValueError(f"refusal {refusal!r} is none by minilib.refusals: its trials could not be scored")
    chosen = known(lm, facts)
    outside = [q.text for fact in chosen for q in (*fact.neighbours, *([fact.unrelated] if fact.unrelated else []))]
    if not chosen:
        raise ValueError(f"facts holds none of {len(facts)} that {lm.name} knows: give some that it answers")
    if not outside or not all(fact.rephrasings for fact in chosen):
        raise ValueError("facts need rephrasings, and neighbours or an unrelated question, as minilib.facts has them")
    began, rows, complete = time.monotonic(), list[dict[str, Any]](), True
    before = lm.generate(outside)
    longest = 0.0
    trials = _trials(lm, method, rows)
    for settings, moments in trials:
        if rows and time.monotonic() - began + longest > seconds:
            complete = False
            break
        started = time.monotonic()
        with METHODS[method](lm, [f.request(refusal, lm.has_chat) for f in chosen], covariance=moments, **settings):
            scores = _scores(lm, chosen, refusal, outside, before)
        longest = max(longest, time.monotonic() - started)
        rows.append({"settings": settings, **scores, "seconds": round(time.monotonic() - started, 1)})
    rows.sort(key=lambda row: -row["score"])
    return Suggestion(method, rows[0]["settings"], rows, complete)


def _trials(lm: LM, method: str, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Mapping[int, Tensor]]]:
    """Settings to try, with their second moments: first layers, then the rest at the best so far in ``rows``."""
    one = method == "rome"
    moments: dict[int, Tensor] = {}

    def trial(layers: list[int], scale: float, ridge: float = RIDGES[0]) -> tuple[dict[str, Any], Mapping[int, Tensor]]:
        missing = [layer for layer in layers if layer not in moments]
        if missing:
            moments.update(covariance.second_moment(lm, missing))
        C = {layer: moments[layer] for layer in layers}
        settings: dict[str, Any] = {"layer": layers[0]} if one else {"layers": layers}
        if method == "memit":
            settings["covariance_weight"] = scale * len(C[layers[0]])
        if method == "alphaedit":
            middle = [covariance.spectrum(C, layer)[0].median().item() for layer in layers]
            settings["nullspace_threshold"] = scale * sum(middle) / len(middle)
            settings["l2"] = ridge * sum(C[layer].trace().item() for layer in layers) / len(layers)
        return settings | SEARCH, C

    scales = {"rome": (1.0,), "memit": WEIGHTS, "alphaedit": THRESHOLDS}[method]
    normed = any(lm.post_norm(layer) is not None for layer in range(lm.n_layers))  # such layers share nothing
    width = 1 if one or normed else max(1, min(WINDOW, lm.n_layers // 6))
    windows = []
    for depth in DEPTHS:
        first = min(max(0, int(depth * lm.n_layers) - width // 2), max(0, lm.n_layers - width))
        window = list(range(first, min(first + width, lm.n_layers)))
        if window not in windows:
            windows.append(window)
    for window in windows:
        yield trial(window, scales[0])
    best = max(rows, key=lambda row: row["score"])["settings"]
    window = [best["layer"]] if one else best["layers"]
    for scale in scales[1:]:
        yield trial(window, scale)
    if method == "alphaedit":
        for ridge in RIDGES[1:]:
            yield trial(window, scales[0], ridge)


def _scores(
    lm: LM, chosen: Sequence[Fact], refusal: str, outside: Sequence[str], before: Sequence[str]
) -> dict[str, float]:
    """What an edit in force has refused, and what it has kept."""

    def refused(requests: Sequence[Any]) -> float:
        said = [refusals.is_refusal(text, unjudged=False) for text in lm.generate(list(requests))]
        return sum(said) / len(said)

    shares = {
        "refused": refused([fact.request(refusal, lm.has_chat) for fact in chosen]),
        "rephrased": refused([r for fact in chosen for r in fact.rephrased(refusal, lm.has_chat)]),
        "kept": sum(a == b for a, b in zip(lm.generate(list(outside)), before, strict=True)) / len(before),
    }
    score = 3 / sum(1 / share for share in shares.values()) if all(shares.values()) else 0.0
    return {**shares, "score": round(score, 4)}
