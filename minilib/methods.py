"""All methods in one list: what kind each is, and the paper it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from . import unlearning
from .editors import alphaedit, grace, memit, rome, wise
from .edits import Edit

Kind = Literal["writes weights", "beside the weights", "trains"]


class Method(NamedTuple):
    """A method's function, what it changes, and its paper on arXiv."""

    edit: Callable[..., Edit]
    kind: Kind
    arxiv: str


METHODS: dict[str, Method] = {
    "rome": Method(rome.edit, "writes weights", "2202.05262"),
    "memit": Method(memit.edit, "writes weights", "2210.07229"),
    "alphaedit": Method(alphaedit.edit, "writes weights", "2410.02355"),
    "grace": Method(grace.edit, "beside the weights", "2211.11031"),
    "wise": Method(wise.edit, "beside the weights", "2405.14768"),
    "gradient_ascent": Method(unlearning.gradient_ascent, "trains", "2210.01504"),
    "gradient_difference": Method(unlearning.gradient_difference, "trains", "2203.12817"),
    "kl": Method(unlearning.kl, "trains", "2401.06121"),
    "dpo": Method(unlearning.dpo, "trains", "2305.18290"),
    "npo": Method(unlearning.npo, "trains", "2404.05868"),
    "simnpo": Method(unlearning.simnpo, "trains", "2410.07163"),
    "refusal_tuning": Method(unlearning.refusal_tuning, "trains", "2401.06121"),
    "rmu": Method(unlearning.rmu, "trains", "2403.03218"),
    "undial": Method(unlearning.undial, "trains", "2402.10052"),
    "altpo": Method(unlearning.altpo, "trains", "2409.13474"),
    "wga": Method(unlearning.wga, "trains", "2502.19301"),
    "lunar": Method(unlearning.lunar, "trains", "2502.07218"),
}
"""By name. "trains" methods move many weights by gradient descent; those beside the weights can be taken away."""
