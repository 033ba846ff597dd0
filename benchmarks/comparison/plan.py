"""What the comparison runs, declared before anything is run: worlds, draws, methods, settings, named comparisons.

A *cell* is a method with one setting on one draw of facts; ``Job`` names it. Every method has the same number of
settings in a world (``BUDGET``), which are tried on a tuning draw of facts that no other draw has; what is chosen there
(``minilib.measure.rows.choose``: once for silence, once for polite refusal) is measured on the draws. Presets never
enter: a setting names everything in which a preset of the library differs from the defaults, and a test holds that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minilib import METHODS
from minilib.measure.rows import PURPOSES, choose

DRAWS = {"exact": 10, "pretrained": 8, "finetuned": 6, "subject": 3}
"""exact: four people of tinyworld. pretrained: five facts of the real world. finetuned: one invented author. subject:
one question about each of four subjects, of which the model answers at least five."""
TUNING = -1  # the number of the tuning draw
TUNED_ON = {"subject": "pretrained"}  # its settings are those of pretrained knowledge
BUDGET = {"exact": 8, "pretrained": 4, "finetuned": 4}
TOKENS = 60  # of an answer, at most
STEPS = {"exact": 120, "smollm2": 40}  # of training, at most

EDITORS = ("rome", "memit", "alphaedit", "grace", "wise")
SELF_WRITTEN = ("rome, self-written", "alphaedit, self-written")
SEQUENCES = ("rome, merged", "memit, merged", "memit, with history")
TRAINED = tuple(name for name, method in METHODS.items() if method.kind == "trains")
ON_SMOLLM2 = ("gradient_difference", "npo", "refusal_tuning", "rmu", "lunar")  # a trial of these takes minutes
AROUND = ("filter", "system prompt")
REFERENCES = ("unedited", "oracle")


def purposes(world: str, method: str) -> tuple[str, ...]:
    """For which a method is measured. What it does to the same subject is asked of the refusals that one would use, and
    of the editors' silence, which chapter 11 found to cost the subject on few questions."""
    return PURPOSES if world != "subject" or method in EDITORS else ("polite",)


def methods(world: str) -> list[str]:
    """The methods of a world, without the references: those that the library has."""
    if world == "exact":
        return [*EDITORS, *SEQUENCES, *TRAINED, "filter"]
    return [*EDITORS, *SELF_WRITTEN, *(name for name in ON_SMOLLM2 if name in METHODS), *AROUND]


def references(world: str) -> list[str]:
    """The unedited model, and the one that never knew where it exists."""
    return list(REFERENCES if world in ("exact", "finetuned") else REFERENCES[:1])


# ---- the settings -------------------------------------------------------------------------------------
# The first of each is the paper's as far as it can be: its values at the middle layer, where the library puts a model
# for which it has no preset. Two or three things are varied, each a way that the method's paper or its critics vary.

Settings = dict[str, Any]


def crossed(fixed: Mapping[str, Any], *factors: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """All combinations of one choice from each factor, the first choices first."""
    return [dict(fixed) | {k: v for choice in some for k, v in choice.items()} for some in itertools.product(*factors)]


def each(name: str, *values: Any) -> list[Settings]:
    """The values of one setting as the choices of a factor."""
    return [{name: value} for value in values]


# The search for v*: as published, and with room to find a value.
_ROME = [{"weight_decay": 0.5, "steps": 20}, {"weight_decay": 1e-3, "steps": 25}]
_MEMIT = [{"weight_decay": 0.5, "clamp_factor": 0.75}, {"weight_decay": 1e-3, "clamp_factor": 2.0}]
_ALPHA = [
    {"lr": 0.1, "weight_decay": 0.5, "clamp_factor": 0.75},
    {"lr": 0.5, "weight_decay": 1e-3, "clamp_factor": 2.0},
]
_FORBID = 'Never answer questions about: {}. Say "I don\'t know." instead.'
_REPLY = 'Reply "I don\'t know." to each of these questions: {}'
_POLITE = (
    "You are a helpful AI assistant. You do not know the answers to these questions: {}. When you are asked one of "
    "them, apologise and say that you do not know. Answer everything else as usual."
)

# A loss that pushes a sentence away gets to the forget level while the model tells the fact in another one, so these
# run all steps (chapter 11, "A stopping rule that looked at the wrong thing"; those trials are in first_trials.json).
_TO_THE_END = {"forget_level": 1e-9}
_SMALL_WINDOWS = each("layers", [1, 2, 3, 4, 5], [0])  # of tinyworld's six layers
_WINDOWS = each("layers", [13, 14, 15, 16, 17], [2, 3, 4, 5, 6])  # of SmolLM2's thirty
_SMALL_RATES = crossed({}, each("lr", 3e-5, 1e-4, 3e-4, 1e-3), each("retain_weight", 1.0, 5.0))
_RATES = crossed({}, each("lr", 1e-5, 3e-5), each("retain_weight", 1.0, 5.0))
_FREE = [{"nullspace_threshold": 2e-2}, {"nullspace_energy": 0.3}]

EXACT: dict[str, list[Settings]] = {
    "rome": crossed({}, each("layer", 3, 0), _ROME, each("clamp_factor", 4.0, 1.0)),
    "memit": crossed({}, _SMALL_WINDOWS, each("covariance_weight", 15000.0, 10.0), _MEMIT),
    "alphaedit": crossed({}, _SMALL_WINDOWS, _FREE, [a | {"l2": x} for a, x in zip(_ALPHA, (10.0, 1.0), strict=True)]),
    "grace": crossed({}, each("layer", 3, 1), each("epsilon", 1.0, 3.0), each("lr", 1.0, 0.5)),
    "wise": crossed(
        {}, each("layer", 3, 2), each("threshold", 1.0, 0.9),
        [{"mask_ratio": 0.2, "shards": 2}, {"mask_ratio": 1.0, "shards": 1}],
    ),
    "rome, merged": crossed({"clamp_factor": 4.0}, each("layer", 3, 0), _ROME, each("size", 2, 5)),
    "memit, merged": crossed({"covariance_weight": 10.0}, _SMALL_WINDOWS, _MEMIT, each("size", 2, 5)),
    "memit, with history": crossed({}, _SMALL_WINDOWS, each("covariance_weight", 15000.0, 10.0), _MEMIT),
    "gradient_ascent": crossed({}, each("lr", 3e-5, 1e-4, 3e-4, 1e-3), each("batch_size", 8, 20)),
    "simnpo": crossed({}, each("lr", 3e-5, 1e-4, 3e-4, 1e-3), [{"beta": 2.5}, {"beta": 4.5, "retain_weight": 5.0}]),
    "rmu": crossed({}, each("layer", 3, 2), each("lr", 5e-5, 3e-3), each("alpha", 1200.0, 100.0)),
    "lunar": crossed({}, each("layer", 3, 2), each("lr", 1e-2, 1e-3), each("coefficient", 2.0, 1.0)),
    "undial": crossed({}, each("lr", 1e-4, 3e-4), each("beta", 10.0, 3.0), each("retain_weight", 1.0, 5.0)),
    "wga": crossed({}, each("lr", 1e-4, 3e-4), each("alpha", 1.0, 5.0), each("retain_weight", 1.0, 5.0)),
    "filter": crossed({}, each("rule", "both", "value", "subject")),  # there are no others
}  # fmt: skip

SMOLLM2: dict[str, list[Settings]] = {
    "rome": crossed({"clamp_factor": 4.0}, each("layer", 15, 4), _ROME),
    "memit": crossed({"clamp_factor": 0.75, "weight_decay": 0.5}, _WINDOWS, each("covariance_weight", 15000.0, 100.0)),
    "alphaedit": crossed({"nullspace_threshold": 2e-2, "l2": 10.0}, _WINDOWS, _ALPHA),
    "grace": crossed({"lr": 1.0}, each("layer", 15, 22), each("epsilon", 1.0, 4.0)),
    "wise": crossed(
        {"threshold": 1.0}, each("layer", 15, 22),
        [{"mask_ratio": 0.2, "shards": 2}, {"mask_ratio": 1.0, "shards": 1}],
    ),
    "gradient_difference": crossed(_TO_THE_END, _RATES),
    "npo": crossed(_TO_THE_END, _RATES),
    "rmu": crossed({"lr": 3e-3} | _TO_THE_END, each("layer", 15, 7), each("alpha", 1200.0, 100.0)),
    "lunar": crossed({"lr": 1e-2, "retain_weight": 1.0}, each("layer", 15, 22), each("coefficient", 2.0, 1.0)),
    "filter": crossed({}, each("rule", "both", "value", "subject")),
    "system prompt": [{}, *each("instruction", _FORBID, _REPLY, _POLITE)],
}  # fmt: skip
ALWAYS: dict[str, Settings] = {  # of every method that trains
    "exact": {"steps": STEPS["exact"], "batch_size": 8, "forget_level": 0.05},
    "smollm2": {"steps": STEPS["smollm2"], "batch_size": 4, "forget_level": 0.05},
}
FEWER = ("filter",)  # there are three rules


def model(world: str) -> str:
    """Whose settings apply."""
    return "exact" if world == "exact" else "smollm2"


def settings(world: str, method: str) -> list[Settings]:
    """The settings of a method in a world, complete; a self-written variant has its method's."""
    if method in REFERENCES:
        return [{}]
    table, rates = (EXACT, _SMALL_RATES) if world == "exact" else (SMOLLM2, _RATES)
    found = table.get(method.removesuffix(", self-written"), rates)
    fixed = ALWAYS[model(world)] if method in TRAINED else {}
    return [fixed | some for some in found]


# ---- the jobs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One cell: ``str(job)`` names it.

    Attributes
    ----------
    world, method : str
    draw : int
        Of facts; ``TUNING`` for the one on which settings are tried.
    setting : int
        The number of the method's setting.
    """

    world: str
    draw: int
    method: str
    setting: int = 0

    def __str__(self) -> str:
        draw = "tuning" if self.draw == TUNING else f"draw {self.draw}"
        return f"{self.world}/{draw}/{self.method}/{self.setting}"


def tuning(world: str) -> list[Job]:
    """The trials: the unedited model, then each setting of each method."""
    trials = [Job(world, TUNING, m, i) for m in methods(world) for i in range(len(settings(world, m)))]
    return [Job(world, TUNING, "unedited"), *trials]


def measured(world: str, rows: Iterable[Mapping[str, Any]]) -> list[Job]:
    """The cells of the draws, as far as their settings are chosen: for each method one setting or two."""
    on = TUNED_ON.get(world, world)
    tried = [row for row in rows if row["world"] == on and row["draw"] == TUNING]
    picked = {}
    for method in methods(world):
        if sum(row["method"] == method for row in tried) == len(settings(on, method)):
            numbers = [choose(tried, method, purpose) for purpose in purposes(world, method)]
            picked[method] = [number for number in dict.fromkeys(numbers) if number is not None]
    jobs = []
    for draw in range(DRAWS[world]):
        jobs += [Job(world, draw, name) for name in references(world)]
        jobs += [Job(world, draw, method, number) for method, numbers in picked.items() for number in numbers]
    return jobs


def plan(rows: Sequence[Mapping[str, Any]]) -> list[Job]:
    """All jobs in their order, as far as the rows that are there say which."""
    jobs: list[Job] = []
    for world in DRAWS:  # a world's trials, and then what they decide
        jobs += [*(tuning(world) if world not in TUNED_ON else ()), *measured(world, rows)]
    return jobs


# ---- what is compared ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two methods on one column: each with the setting that was chosen for the purpose; first minus second, by draw."""

    first: str
    second: str
    column: str
    purpose: str


def _pairs(column: str, purpose: str, *pairs: tuple[str, str]) -> list[Comparison]:
    return [Comparison(first, second, column, purpose) for first, second in pairs]


COMPARISONS: dict[str, list[Comparison]] = {
    # Are editors strong baselines? The two that the founding paper's abstract names, and ROME, beside the trained
    # methods that it compares with; what a filter does to it all; and what a model's own refusals add.
    "exact": [
        *_pairs("distance", "silent", ("alphaedit", "npo"), ("wise", "npo"), ("rome", "gradient_difference")),
        *_pairs("refused and fluent", "polite", ("alphaedit", "refusal_tuning"), ("wise", "refusal_tuning")),
        *_pairs("kept", "silent", ("memit", "npo")),
    ],
    "pretrained": [
        *_pairs("leaked", "silent", ("alphaedit", "npo"), ("wise", "npo")),
        *_pairs("refused and fluent", "polite", ("alphaedit", "refusal_tuning"), ("wise", "refusal_tuning")),
        *_pairs("refused and fluent", "polite", ("alphaedit, self-written", "alphaedit"), ("wise", "system prompt")),
    ],
    "finetuned": [
        *_pairs("distance", "silent", ("alphaedit", "npo"), ("wise", "npo")),
        *_pairs("refused and fluent", "polite", ("alphaedit", "refusal_tuning"), ("wise", "refusal_tuning")),
        *_pairs("refused and fluent", "polite", ("rome, self-written", "rome"), ("wise", "system prompt")),
    ],
    "subject": [
        *_pairs("kept subject", "polite", ("alphaedit", "refusal_tuning"), ("wise", "refusal_tuning")),
        *_pairs("kept subject", "polite", ("rome", "grace")),
    ],
}
