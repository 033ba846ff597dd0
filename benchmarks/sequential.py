"""One hundred refusals, ten after ten: ROME, MEMIT, AlphaEdit and what lies between them, and no editing, three seeds.

AlphaEdit differs from MEMIT in three things: it remembers the keys of earlier edits, it has no λC, and it projects by
P. With the keys in all of them, λC and P are crossed: MEMIT with history (λC alone), AlphaEdit (P alone), AlphaEdit
with λC (both), AlphaEdit without P (neither).

A seed draws the facts and their order from those that SmolLM2 knows. After every ten edits: which edited questions are
refused, the first ten and the last ten apart, and one rephrasing of each; which questions about other facts are
answered word for word as before, and rightly; perplexity and divergence on text from which second moments were not
computed; how long the edited matrices are. Rows that the stored file holds are not made again: delete it to begin
anew. Run: python benchmarks/sequential.py (three hours on one core)
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from scores import REFUSAL, Rows

import minilib
from minilib import alphaedit, covariance, facts, memit, metrics, refusals, rome, sequence, texts

EDITS, CHUNK, SEEDS = 100, 10, 3
ASKED = 30  # of the edited questions, and of others
KEPT_ASIDE, CHARACTERS = 20, 300  # sample texts from which second moments are not computed, and how much is read


def forgetful(lm: minilib.LM, requests: Sequence[minilib.Request], **settings: Any) -> minilib.Edit:
    """MEMIT as its paper has it: no ``previous``, so the stream gives it no keys of earlier edits to spare."""
    return memit.edit(lm, requests, **settings)


def with_text(
    lm: minilib.LM, requests: Sequence[minilib.Request], *, previous: Sequence[minilib.Edit] = (), **settings: Any
) -> minilib.Edit:
    """AlphaEdit with MEMIT's λC in its inverse: with the columns of a root of λC beside the keys of earlier edits."""
    C, weight = settings["covariance"], memit.Settings.of(lm).covariance_weight
    earlier = alphaedit.earlier_keys

    def keys(before: Any, layer: int, like: torch.Tensor) -> torch.Tensor:
        root = torch.linalg.cholesky(weight * C[layer].double())
        return torch.cat([earlier(before, layer, like), root], 1)

    with mock.patch.object(alphaedit, "earlier_keys", keys):
        return alphaedit.edit(lm, requests, previous=previous, **settings)


METHODS: dict[str, tuple[Callable[..., minilib.Edit] | None, dict[str, Any]]] = {
    "none": (None, {}),
    "ROME": (rome.edit, {}),
    "MEMIT": (forgetful, {}),
    "AlphaEdit": (alphaedit.edit, {}),
    "AlphaEdit without P": (alphaedit.edit, {"project": False}),
    "MEMIT with history": (memit.edit, {}),
    "AlphaEdit with λC": (with_text, {}),
}


def drawn(seed: int) -> tuple[list[facts.Fact], list[facts.Fact]]:
    """Facts to edit, in order, and others that name none of their subjects."""
    known = facts.recorded()
    random.Random(seed).shuffle(known)
    edited = known[:EDITS]
    free = texts.naming_none([f.request(REFUSAL).text for f in known[EDITS:]], [f.subject for f in edited])
    others = [fact for fact in known[EDITS:] if fact.request(REFUSAL).text in free]
    return edited, others[:ASKED]


def names(chosen: list[facts.Fact]) -> list[str]:
    return [f"{fact.relation}: {fact.subject}" for fact in chosen]


def asked_of(done: list[Any]) -> list[Any]:
    """The first ten, the last ten, and as many between, evenly spaced."""
    ten = ASKED // 3
    between = done[ten : len(done) - ten]
    return done if len(done) <= ASKED else [*done[:ten], *between[:: max(1, len(between) // ten)][:ten], *done[-ten:]]


def share(values: list[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def measuring(edited: list[facts.Fact], others: list[facts.Fact], lm: minilib.LM, aside: list[str]) -> Any:
    """``measure`` for ``sequence.run``."""
    questions = [fact.request(REFUSAL) for fact in others]
    before = lm.generate(questions)
    layers = sorted({rome.Settings.of(lm).layer, *memit.Settings.of(lm).layers})
    norms = {layer: lm.memory(layer).norm().item() for layer in layers}

    def measure(lm: minilib.LM, done: list[minilib.Request]) -> dict[str, Any]:
        chosen = asked_of(edited[: len(done)])
        said = (
            [refusals.is_refusal(a, unjudged=False) for a in lm.generate([f.request(REFUSAL) for f in chosen])]
            if chosen
            else []
        )
        forms = lm.generate([f.rephrased(REFUSAL)[0] for f in chosen]) if chosen else []
        now = lm.generate(questions)
        return {
            "refused": share(said),
            "first ten": share(said[:10]),
            "last ten": share(said[-10:]),
            "rephrased": share([refusals.is_refusal(a, unjudged=False) for a in forms]),
            "as before": share([a == b for a, b in zip(now, before, strict=True)]),
            "right": share([fact.answered_by(a) for fact, a in zip(others, now, strict=True)]),
            "others refused": share([refusals.is_refusal(a, unjudged=False) for a in now]),
            "perplexity": round(metrics.perplexity(lm, aside), 4),
            "divergence aside": round(metrics.divergence(lm, aside), 5),
            "norm": {layer: round(lm.memory(layer).norm().item() / norm, 4) for layer, norm in norms.items()},
        }

    return measure


def as_stored(row: dict[str, Any]) -> dict[str, Any]:
    """With the divergence on text kept aside, not the stream's own, on text of which second moments were computed."""
    return {("divergence" if key == "divergence aside" else key): x for key, x in row.items() if key != "divergence"}


def stream(lm: minilib.LM, name: str, seed: int, C: covariance.SecondMoments, aside: list[str]) -> dict[str, Any]:
    """One method's hundred edits."""
    edit, settings = METHODS[name]
    edited, others = drawn(seed)
    measure = measuring(edited, others, lm, aside)
    if edit is None:
        return {"rows": [as_stored({"edits": 0, "seconds": 0.0, **measure(lm, [])})]}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        requests = [fact.request(REFUSAL) for fact in edited]
        settings = {"covariance": C, **settings}
        done = sequence.run(lm, requests, edit, folder, chunk=CHUNK, measure=measure, **settings)
        done.undo()
    edits = round(sum(row["seconds"] for row in done.rows), 1)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "editing": edits,
        "rows": list(map(as_stored, done.rows)),
    }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    lm = minilib.load("smollm2-135m")
    sample = covariance.sample_texts()
    layers = sorted({rome.Settings.of(lm).layer, *memit.Settings.of(lm).layers})
    C = covariance.second_moment(lm, layers, sample[KEPT_ASIDE:])
    aside = [text[:CHARACTERS] for text in sample[:KEPT_ASIDE]]
    about = {
        "edits": EDITS, "chunk": CHUNK, "asked": ASKED, "tokens": C.tokens, "aside": KEPT_ASIDE,
        "characters": CHARACTERS,
        "facts": [{"edited": names(edited), "others": names(others)} for edited, others in map(drawn, range(SEEDS))],
    }  # fmt: skip
    rows = Rows("sequential", began, about)
    for seed in range(SEEDS):
        for name in METHODS:
            rows.keep(name, str(seed), lambda name=name, seed=seed: stream(lm, name, seed, C, aside))


if __name__ == "__main__":
    main()
