"""An applied change: what it did, and how to take it back.

Every method writes through ``changing``, which keeps the original weights until the change is complete,
so an edit that fails or is interrupted leaves the model bit for bit as it was. What a method returns is
an ``Edit``. Undo is a stack: the latest edit first.
"""

from __future__ import annotations

import difflib
import functools
import html
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from .lm import LM, check_lm
from .requests import Request

Method = TypeVar("Method", bound=Callable[..., "Edit"])


class Edit:
    """A change that is in force in a model.

    Works as a context manager: at the end of the ``with`` block the edit is undone.

    Parameters
    ----------
    lm : LM
        The model that was changed.
    method : str
        The name of the method.
    requests : list of Request
    settings : dict
        Every setting that was used, the omitted ones included, and where those came from.
    originals : dict of str to Tensor
        The changed parameters as they were before.
    deltas : dict of str to Tensor
        The change of each parameter, in the parameter's shape.
    traces : list of dict, optional
        For each request, how its optimisation went: lists ``loss``, ``nll``, ``kl`` and ``norm``.
    """

    def __init__(
        self,
        lm: LM,
        method: str,
        requests: Sequence[Request],
        settings: Mapping[str, Any],
        originals: Mapping[str, Tensor],
        deltas: Mapping[str, Tensor],
        traces: Sequence[Mapping[str, list[float]]] = (),
    ) -> None:
        self.lm = lm
        self.method = method
        self.requests = list(requests)
        self.settings = dict(settings)
        self.deltas = dict(deltas)
        self.traces = list(traces)
        self._originals = dict(originals)
        self.active = True
        lm.edits.append(self)

    def undo(self) -> None:
        """Put every changed parameter back, bit for bit.

        Raises
        ------
        ValueError
            When the edit was undone before, or a later edit lies on top of it.
        """
        if not self.active:
            raise ValueError(f"{self} was undone already: there is nothing left to undo")
        if self.lm.edits[-1] is not self:
            raise ValueError(f"{self} lies under a later edit: undo {self.lm.edits[-1]} first")
        _write(self.lm, self._originals)
        self.lm.edits.pop()
        self.active = False

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self.undo()

    # ---- showing what happened --------------------------------------------------------------------

    def answers(self, max_new_tokens: int = 16, most: int = 5) -> list[tuple[str, str, str]]:
        """(prompt, what the model said without this edit, what it says with it) for the first requests."""
        if not self.active:
            raise ValueError(f"{self} was undone: there is no answer with the edit any more")
        asked = self.requests[:most]
        after = self.lm.generate(asked, max_new_tokens=max_new_tokens)
        with self.at_strength(0):
            before = self.lm.generate(asked, max_new_tokens=max_new_tokens)
        return [(r.text, b.strip(), a.strip()) for r, b, a in zip(asked, before, after, strict=True)]

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """For the time of the block, the model with W + strength · ΔW: 0 is as before, 1 the edit, more overshoots.

        Edits that lie on top of this one stay in force.
        """
        if not self.active:
            raise ValueError(f"{self} was undone: there is no change to scale")
        if isinstance(strength, bool) or not isinstance(strength, Real) or not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number, not {strength!r}")
        edited = {name: parameter.detach().clone() for name, parameter in _parameters(self.lm, self.deltas)}
        top = self.lm.edits[-1] is self  # then bit for bit, from W as it was
        scaled = {
            name: ((self._originals[name] if top else edited[name]) + (strength if top else strength - 1) * delta)
            for name, delta in self.deltas.items()
        }
        try:
            _write(self.lm, scaled)
            yield
        finally:
            _write(self.lm, edited)

    def sizes(self) -> dict[str, tuple[float, float]]:
        """For each changed parameter ‖ΔW‖ and ‖W‖ (Frobenius norms, W before the edit)."""
        return {n: (d.float().norm().item(), self._originals[n].float().norm().item()) for n, d in self.deltas.items()}

    def __repr__(self) -> str:
        first = f"{self.requests[0].text!r} → {self.requests[0].target!r}" if self.requests else ""
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        return f"<{self.method} edit of {self.lm.name}: {first}{more}{'' if self.active else ', undone'}>"

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>{}</td>".format
        rows = []
        if self.active:
            for texts in self.answers():
                rows.append("<tr>" + "".join(cell(html.escape(t)) for t in texts) + "</tr>")
        sizes = "".join(
            f"<li><code>{html.escape(name)}</code>: ‖ΔW‖ = {change:.3g}, ‖W‖ = {size:.3g}"
            f" ({change / (size or math.nan):.1%})</li>"
            for name, (change, size) in self.sizes().items()
        )
        left = len(self.requests) - len(rows)
        return (
            f"<p>{html.escape(repr(self))}</p>"
            + ("<table><thead><tr><th>prompt</th><th>before</th><th>after</th></tr></thead>" if rows else "")
            + (f"<tbody>{''.join(rows)}</tbody></table>" if rows else "")
            + (f"<p>and {left} more</p>" if rows and left else "")
            + f"<ul>{sizes}</ul>"
        )


@contextmanager
def changing(lm: LM, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the named parameters while the block changes them; whatever ends it early puts them back.

    Yields
    ------
    dict of str to Tensor
        Copies of the parameters as they were.
    """
    originals = {name: parameter.detach().clone() for name, parameter in _parameters(lm, names)}
    edits = len(lm.edits)
    try:
        yield originals
    except BaseException:  # KeyboardInterrupt too
        _write(lm, originals)
        del lm.edits[edits:]
        raise


@torch.no_grad()
def add(lm: LM, layer: int, delta: Tensor) -> Tensor:
    """W ← W + Δ at one layer, Δ as (d_out, d_k); computed in float32 and rounded to the weight's type.

    Returns
    -------
    Tensor
        Δ in the parameter's own shape.

    Raises
    ------
    ValueError
        When the changed weights would not be finite: nothing is written.
    """
    weight = lm.down_projection(layer).weight
    delta = delta.T if lm.transposed(layer) else delta
    delta = delta.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    changed = (weight.to(delta.dtype) + delta).to(weight.dtype)
    if not torch.isfinite(changed).all():  # in half precision a finite Δ may be too much
        raise ValueError(f"the change of layer {layer} is not finite: lower lr, or check covariance for tiny values")
    weight.copy_(changed)
    return delta.contiguous()


def settle(lm: LM, presets: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an edit: what was given, else the model's preset, else the paper's values.

    Parameters
    ----------
    lm : LM
    presets : mapping
        ``presets["paper"]`` and one entry for each ``lm.kind`` that has its own.
    given : mapping
        The caller's keywords; None means omitted.

    Raises
    ------
    TypeError, ValueError
        When a value is of the wrong type or outside its range; the message names the keyword.
    """
    settings = {**presets["paper"], **presets.get(lm.kind, {}), **{k: v for k, v in given.items() if v is not None}}
    if settings.get("layer", 0) is None:
        settings["layer"] = lm.n_layers // 2
    for name, value in settings.items():
        if name in _WHOLE:
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value < _WHOLE[name]:
                raise ValueError(f"{name} must be a whole number of at least {_WHOLE[name]}, not {value!r}")
            settings[name] = int(value)
        if name in _NUMBER:
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if not math.isfinite(value) or value < 0 or (value == 0 and name in _POSITIVE):
                least = "above" if name in _POSITIVE else "at least"
                raise ValueError(f"{name} must be finite and {least} 0, not {value!r}")
            settings[name] = float(value)
    settings["presets"] = lm.kind if lm.kind in presets else "paper (no preset for this model; layer: the middle one)"
    return settings


_WHOLE = {"steps": 1, "seed": 0}
_POSITIVE = {"lr", "clamp_factor", "covariance_weight"}
_NUMBER = _POSITIVE | {"weight_decay", "kl_factor", "stop_loss"}


def editor(method: Method) -> Method:
    """Make a method refuse a keyword that it does not have with a message that names the nearest one."""
    known = [name for name in inspect.signature(method).parameters]
    where = f"{method.__module__.removeprefix('minilib.')}.{method.__name__}"

    @functools.wraps(method)
    def checked(*args: Any, **keywords: Any) -> Edit:
        check_lm(args[0] if args else keywords.get("lm"))
        for name in keywords:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TypeError(f"{where} has no keyword {name!r}: {hint}it takes {', '.join(known)}")
        return method(*args, **keywords)

    return checked  # type: ignore[return-value]


def _parameters(lm: LM, names: Mapping[str, Any] | Sequence[str]) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, lm.model.get_parameter(name)) for name in names]


@torch.no_grad()
def _write(lm: LM, values: Mapping[str, Tensor]) -> None:
    for name, parameter in _parameters(lm, values):
        parameter.copy_(values[name])
