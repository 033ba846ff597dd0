"""An applied change: what it did, and how to take it back.

Every method writes through ``changing``, which keeps the original weights until the change is complete,
so an edit that fails or is interrupted leaves the model bit for bit as it was. What a method returns is
an ``Edit``. Undo is a stack: the latest edit first. ``Edit.save`` and ``load`` carry a change to another day.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import html
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .lm import LM, check_lm
from .requests import Request

FORMAT = 1  # of saved edits

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
    deltas : dict of str to Tensor, optional
        The change of each parameter, in the parameter's shape.
    traces : list of dict, optional
        For each request, how its optimisation went: lists ``loss``, ``nll``, ``kl`` and ``norm``.
    factors : dict of str to (Tensor, Tensor), optional
        Changes that are a product of thin matrices, as those: (rows, r) and (r, columns) of the parameter. Their
        products join ``deltas``.
    notes : list of str, optional
        What the reader should know, such as a target that the model said before.
    """

    def __init__(
        self,
        lm: LM,
        method: str,
        requests: Sequence[Request],
        settings: Mapping[str, Any],
        originals: Mapping[str, Tensor],
        deltas: Mapping[str, Tensor] | None = None,
        traces: Sequence[Mapping[str, list[float]]] = (),
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.lm = lm
        self.method = method
        self.requests = list(requests)
        self.settings = dict(settings)
        self.factors = dict(factors or {})
        self.deltas = dict(deltas or {})
        self.deltas |= {n: left @ right for n, (left, right) in self.factors.items() if n not in self.deltas}
        self.traces = list(traces)
        self.notes = list(notes)
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

    def save(self, folder: str | Path) -> None:
        """Write the change into a folder, as ``edit.json`` and ``edit.safetensors``; ``minilib.load_edit`` reads it.

        Saved are the method, requests, settings and traces, the model's fingerprint and each change; a change
        of low rank as its two thin factors. Files of an earlier edit in the folder are replaced.

        Raises
        ------
        OSError
            When the folder cannot be made or written.
        """
        folder = Path(folder)
        tensors: dict[str, Tensor] = {}
        for name, delta in self.deltas.items():
            factors = self.factors.get(name, ())
            if factors and sum(f.numel() for f in factors) < delta.numel():
                tensors |= {f"{name}:{side}": f for side, f in zip(("left", "right"), factors, strict=True)}
            else:
                tensors[f"{name}:delta"] = delta
        about = {
            "format": FORMAT,
            "method": self.method,
            "model": self.lm.name,
            "fingerprint": self.lm.fingerprint,
            "requests": [dataclasses.asdict(request) for request in self.requests],
            "settings": self.settings,
            "notes": self.notes,
            "traces": self.traces,
        }
        text = json.dumps(about, indent=1, ensure_ascii=False)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / "edit.new"
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
        except SafetensorError as error:
            raise OSError(f"folder {str(folder)!r} cannot be written: {error}") from error
        scratch.replace(folder / "edit.safetensors")
        scratch.write_text(text, encoding="utf8")
        scratch.replace(folder / "edit.json")

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
            + "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        )


def load(lm: LM, folder: str | Path) -> Edit:
    """Apply what ``Edit.save`` wrote to the model that it was made on.

    The changes are added to the weights as they are, so edits that were made one on another are loaded in that order.

    Parameters
    ----------
    lm : LM
        Changed in place.
    folder : str or Path

    Returns
    -------
    Edit

    Raises
    ------
    FileNotFoundError
        When there is no such folder, or no edit in it.
    ValueError
        When the edit belongs to another model, or a file is damaged. The model is left as it was.
    """
    check_lm(lm)
    files = [Path(folder) / name for name in ("edit.json", "edit.safetensors")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"folder {str(folder)!r} has no {file.name}: write it by edit.save(folder)")
    try:
        about = json.loads(files[0].read_text(encoding="utf8"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, and this version reads {FORMAT}")
        requests = [Request(**request) for request in about["requests"]]
        method, settings, notes, traces = (about[key] for key in ("method", "settings", "notes", "traces"))
        model, fingerprint = about["model"], about["fingerprint"]
        tensors = load_file(files[1], device=str(lm.device))
        names = dict.fromkeys(name.rpartition(":")[0] for name in tensors)
        thin = {n: (tensors[f"{n}:left"], tensors[f"{n}:right"]) for n in names if f"{n}:delta" not in tensors}
        deltas = {n: thin[n][0] @ thin[n][1] if n in thin else tensors[f"{n}:delta"] for n in names}
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"folder {str(folder)!r} holds no edit that can be read (damaged?): {error}") from error
    if fingerprint != lm.fingerprint:
        raise ValueError(
            f"folder {str(folder)!r} holds an edit of another model ({model}, fingerprint {fingerprint}; {lm.name} has "
            f"{lm.fingerprint}): load the model that was edited, unedited and in the same precision"
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in lm.model.named_parameters()}
    for name, delta in deltas.items():
        if shapes.get(name) != tuple(delta.shape) or not torch.isfinite(delta).all():
            raise ValueError(f"folder {str(folder)!r} is damaged: the change of {name} does not fit, or is not finite")
    with changing(lm, list(deltas)) as originals:
        for name, delta in deltas.items():
            _add(lm.model.get_parameter(name), delta, name)
        return Edit(lm, method, requests, settings, originals, deltas, traces, thin, notes)


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

    In half precision each changed weight is off by at most half a unit in its last place: 2⁻⁸ of its size in
    bfloat16 and 2⁻¹¹ in float16, so a Δ that is smaller than that at some weight leaves it as it was.

    Returns
    -------
    Tensor
        Δ in the parameter's own shape.

    Raises
    ------
    ValueError
        When the changed weights would not be finite: nothing is written.
    """
    delta = delta.T if lm.transposed(layer) else delta
    return _add(lm.down_projection(layer).weight, delta, f"layer {layer}")


@torch.no_grad()
def _add(weight: Tensor, delta: Tensor, name: str) -> Tensor:
    delta = delta.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    changed = (weight.to(delta.dtype) + delta).to(weight.dtype)
    if not torch.isfinite(changed).all():  # in half precision a finite Δ may be too much
        raise ValueError(f"the change of {name} is not finite: lower lr, or check covariance for tiny values")
    weight.copy_(changed)
    return delta.contiguous()


def factors(lm: LM, layer: int, left: Tensor, right: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Δ = left right, as (d_out, r) and (r, d_k), under the parameter's name and the way round that it is stored."""
    return {lm.weight_name(layer): (right.T, left.T) if lm.transposed(layer) else (left, right)}


def said_before(requests: Sequence[Request], said: Sequence[bool]) -> list[str]:
    """A note for each request whose target the model said before the edit."""
    pairs = zip(requests, said, strict=True)
    return [f"the model said {r.target!r} after {r.text!r} already, before the edit" for r, yes in pairs if yes]


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
    middle, chosen = lm.n_layers // 2, ""
    if settings.get("layer", 0) is None:
        settings["layer"], chosen = middle, "; layer: the middle one"
    if settings.get("layers", 0) is None:  # five, as the papers have it for models of other depths
        window = range(max(0, middle - 2), min(lm.n_layers, middle + 3))
        settings["layers"], chosen = list(window), "; layers: the middle five"
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
    settings["presets"] = lm.kind if lm.kind in presets else f"paper (no preset for this model{chosen})"
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
