"""What all methods share: how they are told what to do, and what they tell in return.

``@editor(Settings)`` around a method checks its keywords, switches gradients on and dropout off, runs it, and asks the
edited model its requests.

A method writes its keywords once, as the fields of its ``Settings``: the default is the authors' value, the type holds
the limits, and ``PRESETS`` what differs for models that the book has tried. ``Settings.of`` puts the three together.
At the end of an edit, its notes say which requests are not answered with their target, and why.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import torch

from .model import LM, check_lm
from .requests import Request, truth, whole

LONG = 20  # tokens of a target, from which on its length is named as a reason
HARMLESS = {"llama-30x576": 0.3, "llama-6x96": 1.05}  # by ``lm.kind``: largest ‖ΔW‖ / ‖W‖ that was seen to be so
BATCH = 8  # prompts run together: more would take much memory where the vocabulary is large

Method = TypeVar("Method", bound=Callable[..., Any])


class Limit(NamedTuple):
    """The range of a number: from ``least``, which is itself allowed or not, to ``most``."""

    least: float
    allowed: bool = True
    most: float = math.inf


Count = Annotated[int, Limit(1)]
Seed = Annotated[int, Limit(0)]
Positive = Annotated[float, Limit(0, allowed=False)]
NotNegative = Annotated[float, Limit(0)]
Share = Annotated[float, Limit(0, allowed=False, most=1)]


@dataclass(frozen=True)
class Settings:
    """What every method's settings have."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """By ``lm.kind``, what differs from the defaults for a model that was tried."""

    presets: str = ""
    """Which presets were used; filled in by ``of``."""

    @classmethod
    def of(cls, lm: LM, previous: Any = None, known: Mapping[str, Any] | None = None, **given: Any) -> Self:
        """The settings of an edit: what was given, else the model's preset, else the default.

        Parameters
        ----------
        lm : LM
        previous : Edit, optional
            The edit that is continued: an omitted layer is its layer.
        known : mapping, optional
            By ``lm.kind``, in the place of ``PRESETS``.
        **given
            The caller's keywords; None means omitted.

        Raises
        ------
        TypeError, ValueError
            When a value is of the wrong type or outside its range; the message names the keyword.
        """
        preset = (cls.PRESETS if known is None else known).get(lm.kind, {})
        settings, chosen, middle = dict(preset), "", lm.n_layers // 2
        if "layer" in getattr(previous, "settings", {}):
            settings["layer"] = previous.settings["layer"]
        settings |= {name: value for name, value in given.items() if value is not None}
        fields = {field.name for field in dataclasses.fields(cls)}
        if "layer" in fields:
            if "layer" not in settings:
                settings["layer"], chosen = middle, "; layer: the middle one"
            settings["layer"] = lm.check_layer(settings["layer"])
        if "layers" in fields:
            if "layers" not in settings:  # five, as the papers have it for models of other depths
                window = range(max(0, middle - 2), min(lm.n_layers, middle + 3))
                settings["layers"], chosen = list(window), "; layers: the middle five"
            settings["layers"] = lm.check_layers(settings["layers"])
        settings["presets"] = lm.kind if preset else f"defaults (no preset for this model{chosen})"
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if name not in settings:
                continue
            if hint is bool:
                settings[name] = truth(settings[name], name)
            elif get_origin(hint) is Literal and not (
                isinstance(settings[name], str) and settings[name] in get_args(hint)
            ):
                words = " or ".join(map(repr, get_args(hint)))
                raise ValueError(f"{name} must be {words}, not {settings[name]!r}")
            elif limit := _limit(hint):
                settings[name] = _checked(name, settings[name], *limit)
        return cls(**settings)

    @classmethod
    def keywords(cls) -> list[str]:
        """The names of the settings."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "presets"]

    def used(self) -> dict[str, Any]:
        """As a dict, for ``Edit.settings``."""
        settings = dataclasses.asdict(self)
        return {**{name: value for name, value in settings.items() if name != "presets"}, "presets": self.presets}


def _limit(hint: Any) -> tuple[type, Limit] | None:
    """Of a field's type, also one that may be None, the kind of number and its limit."""
    for kind in (hint, *get_args(hint)):
        for limit in getattr(kind, "__metadata__", ()):
            if isinstance(limit, Limit):
                return kind.__origin__, limit
    return None


def _checked(name: str, value: Any, kind: type, limit: Limit) -> Any:
    """A number of this kind and in these limits; else an error that names it."""
    if kind is int:
        return whole(value, name, int(limit.least))
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:  # a whole number too large for one
        number = math.inf
    inside = limit.least <= number if limit.allowed else limit.least < number
    if not inside or not math.isfinite(number):
        least = "at least" if limit.allowed else "above"
        raise ValueError(f"{name} must be finite and {least} 0, not {value!r}")
    if number > limit.most:
        raise ValueError(f"{name} must be a share in (0, 1], not {value!r}")
    return number


def editor(settings: type[Settings]) -> Callable[[Method], Method]:
    """Make a method take the keywords of its settings, refuse others, and note which requests it did not reach.

    The message names the nearest keyword there is. The notes are those of ``unanswered``, ``asked_otherwise``,
    ``beyond_what_was_seen`` and ``past_guards``.
    """

    def decorate(method: Method) -> Method:
        own = [p for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.type)
            for field in dataclasses.fields(settings)
            if field.name in settings.keywords()
        ]
        known = [parameter.name for parameter in [*own, *taken]]
        where = f"{method.__module__.rpartition('.')[2]}.{method.__name__}"

        @functools.wraps(method)
        def checked(*args: Any, **keywords: Any) -> Any:
            lm: Any = args[0] if args else keywords.get("lm")
            check_lm(lm)
            for name in keywords:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise TypeError(f"{where} has no keyword {name!r}: {hint}it takes {', '.join(known)}")
            with lm.evaluating(), torch.inference_mode(False):  # gradients are on, whatever the caller has switched off
                edit = method(*args, **keywords)
                try:
                    edit.notes += asked_otherwise(edit.lm, edit.requests) + beyond_what_was_seen(edit)
                    edit.notes += past_guards(edit.lm) if edit.guard is None else []
                    if "forgets" not in edit.settings:  # unlearning looks for leaks itself
                        edit.notes += unanswered(edit)
                except BaseException:  # KeyboardInterrupt too
                    edit.undo()
                    raise
                return edit

        checked.__signature__ = inspect.Signature([*own, *taken], return_annotation="Edit")  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


# ---- notes --------------------------------------------------------------------------------------------


def tokens_said(lm: LM, requests: Sequence[Request]) -> list[tuple[int, int]]:
    """How many tokens of each target the model says before it says something else, and how many there are.

    In one pass: greedy generation says the target as long as each token is the likeliest after those before it.
    """
    encoded = lm.encode(requests)
    likeliest = [steps.argmax(-1).tolist() for steps in lm.target_steps(encoded, BATCH)]
    right = [[a == b for a, b in zip(said, x.target, strict=True)] for said, x in zip(likeliest, encoded, strict=True)]
    return [((*row, False).index(False), len(row)) for row in right]


def said_before(requests: Sequence[Request], said: Sequence[bool]) -> list[str]:
    """A note for each request whose target the model said before the edit."""
    pairs = zip(requests, said, strict=True)
    return [f"the model said {r.target!r} after {r.text!r} already, before the edit" for r, yes in pairs if yes]


def unanswered(edit: Any) -> list[str]:
    """A note for each request that is not answered with its target, unless the edit has one already."""
    notes = []
    keys = [x.ids[: x.subject + 1] for x in edit.lm.encode(edit.requests)]
    for i, (request, (said, of)) in enumerate(zip(edit.requests, tokens_said(edit.lm, edit.requests), strict=True)):
        opening = f"{request.text!r} is not answered"
        if said < of and not any(note.startswith(opening) for note in edit.notes):
            parts = [f"{opening} {short(request.target)!r}: the model departs from it at token {said + 1} of {of}"]
            notes.append("; ".join(parts + _reasons(edit, i, of, keys)))
    return notes


def asked_otherwise(lm: LM, requests: Sequence[Request]) -> list[str]:
    """A note where requests are plain text and the model is one for chats, which people will ask in chats."""
    plain = [request for request in requests if not request.chat]
    if not plain or not lm.has_chat:
        return []
    some = "the request is" if len(requests) == 1 else f"{len(plain)} of {len(requests)} requests are"
    return [
        f"{some} plain text, and {lm.name} is a chat model: what it answers in a chat is another prompt; to edit that, "
        f"write Request({plain[0].prompt!r}, {plain[0].subject!r}, ..., chat=True)"
    ]


def beyond_what_was_seen(edit: Any) -> list[str]:
    """A note where a matrix has changed by more, with the edits before, than in any edit that was seen to be harmless.

    Known for the book's models alone. What is lost depends on the method too: measure it, by ``metrics.locality`` or
    ``metrics.divergence``. (SmolLM2: four facts by ROME change layer 4 by 0.29 of its length, and ordinary text by
    0.001 nats a token.)
    """
    limit = HARMLESS.get(edit.lm.kind)
    if limit is None or not edit.factors:
        return []
    originals, notes = edit.lm.originals(), []
    for name in edit.factors:
        before = originals[name].float()
        size = ((edit.lm.model.get_parameter(name).detach().float() - before).norm() / before.norm()).item()
        if size > limit:
            notes.append(
                f"{name} has changed by {size:.2f} of its length, and nothing above {limit:g} was seen to be harmless: "
                "ask about other things (metrics.locality), or undo"
            )
    return notes


def past_guards(lm: LM) -> list[str]:
    """A note for each request of a guard in force that the guard does not answer with the weights as they are now."""
    notes = []
    for latest in [edit for edit in lm.edits if edit.guard is not None and edit.guard.attached]:
        requests, earlier = [], latest
        while earlier is not None:  # those that it continues
            requests += earlier.requests
            earlier = earlier.previous
        for request, row in zip(requests, latest.explain(requests), strict=True):
            if not row["decided"]:
                notes.append(
                    f"{request.text!r} is not answered by the {latest.guard.what} of layer {latest.guard.layer}, whose "
                    "keys move with the weights: change weights first, and put guards into force after that"
                )
    return notes


def leaking(lm: LM, requests: Sequence[Request]) -> list[str]:
    """A note for each request whose target, the answer to be forgotten, the model still says."""
    said = zip(requests, tokens_said(lm, requests), strict=True)
    return [f"{r.text!r} is still answered {short(r.target)!r}" for r, (n, of) in said if n == of]


def short(text: str, most: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most]}…"


def _reasons(edit: Any, i: int, tokens: int, keys: Sequence[list[int]]) -> list[str]:
    """Why request ``i`` is not answered with its target, as far as that is known."""
    reasons = []
    if edit.guard is not None:
        (row,) = edit.explain([edit.requests[i]])
        if not row["decided"]:
            reasons.append(f"the {edit.guard.what} is not read for this prompt (edit.explain says how near it is)")
    else:
        same = [repr(r.text) for j, r in enumerate(edit.requests) if j != i and keys[j] == keys[i]]
        if same:
            reasons.append(
                f"{', '.join(same)} {'has' if len(same) == 1 else 'have'} the same key, since the prompts agree up to "
                "the end of the subject, and one key has one value: give them one target, or another wording"
            )
    traces = edit.traces
    trace = traces[i] if len(traces) == len(edit.requests) else traces[0] if len(traces) == 1 else None
    if trace is None:  # several of WISE's shards
        return reasons
    loss, aim, steps = trace["loss"][-1], edit.settings["stop_loss"], edit.settings["steps"]
    if trace.get("nll", trace["loss"])[-1] * tokens < math.log(2):  # then each token has more than half
        if edit.guard is None and not reasons:
            reasons.append(
                "a value that gives it was found, but the weights, which serve many keys, return another one"
            )
        return reasons
    what = "the search for its value" if edit.guard is None else "training"
    if loss >= aim:
        reasons.append(
            f"{what} ended after {steps} steps at a loss of {loss:.2g}, above stop_loss {aim:g}: raise steps"
        )
    else:
        reasons.append(f"{what} ended at a loss of {loss:.2g}, below stop_loss {aim:g}: lower stop_loss")
    if "limit" in trace and trace["norm"][-1] > 0.999 * trace["limit"][-1]:
        reasons.append(f"its value grew to the length that clamp_factor {edit.settings['clamp_factor']:g} allows")
    if tokens > LONG:
        reasons.append(f"its target has {tokens} tokens, which is long for one value: shorten it")
    return reasons
