"""The settings of unlearning by gradient: what all methods take, what some add, and what was chosen for which model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..editor import Count, NotNegative, Positive, Seed, Settings, Share


@dataclass(frozen=True)
class Training(Settings):
    """What every method takes. The defaults are nobody's: learning rates differ with the model more than anything else.

    Parameters
    ----------
    steps : int
        The most steps of AdamW.
    lr, weight_decay : float
        AdamW's.
    batch_size : int
        So many requests of the forget set a step, and as many of the retain set.
    clip : float
        The gradient's norm is scaled down to it.
    retain_weight : float
        What the retain term is multiplied by.
    forget_level : float
        Training ends when π(y|x)^(1/n) of the forget set, averaged over its requests, has fallen so low.
    train : {"all", "lora"}
        Every parameter, or low-rank changes of every matrix in the blocks (needs peft).
    rank : int
        Of those.
    seed : int
        Of the order of requests, and of the adapter's first weights.
    """

    steps: Count = 60
    lr: Positive = 1e-5
    weight_decay: NotNegative = 0.0
    batch_size: Count = 8
    clip: Positive = 1.0
    retain_weight: NotNegative = 1.0
    forget_level: Share = 0.05
    train: Literal["all", "lora"] = "all"
    rank: Count = 8
    seed: Seed = 0


@dataclass(frozen=True)
class Preference(Training):
    """DPO's and NPO's: also ``beta``, how far from the reference model it may go: small is far, 0 would be ascent."""

    beta: Positive = 0.1


@dataclass(frozen=True)
class SimNPO(Training):
    """SimNPO's: also ``beta`` and ``gamma``, as in its loss."""

    beta: Positive = 2.5
    gamma: NotNegative = 0.0


@dataclass(frozen=True)
class UNDIAL(Training):
    """UNDIAL's: also ``beta``, by how much the true token's logit is lowered."""

    beta: Positive = 10.0


@dataclass(frozen=True)
class WGA(Training):
    """WGA's: also ``alpha``, the power of a token's probability that weighs it; 0 is gradient ascent."""

    alpha: NotNegative = 1.0


@dataclass(frozen=True)
class LUNAR(Training):
    """LUNAR's: also ``layer`` (default the middle one), whose W is trained, and ``coefficient`` c of its direction."""

    layer: int = 0
    coefficient: Positive = 2.0
    lr: Positive = 1e-2


@dataclass(frozen=True)
class RMU(Training):
    """RMU's own.

    Parameters
    ----------
    layer : int, default the middle one
        The block whose output is meant.
    steering : float
        c, in units of the mean ‖h‖ at that block on the forget set (the authors' is absolute).
    alpha : float
        What the retain term is multiplied by, in place of ``retain_weight``.
    """

    layer: int = 0
    steering: Positive = 6.5
    alpha: NotNegative = 1200.0


SETTINGS: dict[str, type[Training]] = {
    **dict.fromkeys(("gradient_ascent", "gradient_difference", "kl"), Training),
    **dict.fromkeys(("dpo", "npo", "altpo"), Preference),
    "simnpo": SimNPO,
    "undial": UNDIAL,
    "wga": WGA,
    "lunar": LUNAR,
    "refusal_tuning": Training,
    "rmu": RMU,
}
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {  # by the trials of ``benchmarks``; "all" is of every method
    "llama-30x576": {  # SmolLM2-135M
        "all": {"lr": 1e-5, "steps": 12, "batch_size": 4},
        **dict.fromkeys(("kl", "dpo", "npo", "altpo"), {"lr": 2e-5, "retain_weight": 5.0}),
        "refusal_tuning": {"lr": 3e-5, "retain_weight": 5.0},
        "rmu": {"lr": 3e-3, "layer": 6, "alpha": 100.0},
        "lunar": {"lr": 3e-3, "layer": 22, "retain_weight": 3.0, "steps": 40},
    },
    "llama-6x96": {  # tinyworld
        "all": {"lr": 1e-4},
        "gradient_ascent": {"lr": 3e-5},
        "rmu": {"lr": 3e-3, "layer": 3, "alpha": 100.0},
        "undial": {"lr": 3e-4},
        "wga": {"lr": 3e-4},
        "lunar": {"lr": 3e-3, "layer": 1},
    },
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    name: {kind: of["all"] | of.get(name, {}) for kind, of in CHOSEN.items()} for name in SETTINGS
}
"""By method and ``lm.kind``, what differs from the defaults."""
