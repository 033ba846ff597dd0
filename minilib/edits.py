"""An applied change: what it did, and how to take it back.

Every method writes through ``changing``, which keeps the original weights until the change is complete,
so an edit that fails or is interrupted leaves the model bit for bit as it was. What a method returns is
an ``Edit``. Undo is a stack: the latest edit first. ``Edit.save`` carries a change to another day.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import saving
from .model import LM, present
from .requests import Request
from .show import display


class Edit:
    """A change that is in force in a model.

    Works as a context manager: at the end of the ``with`` block, however it ends, the model is as it was before the
    edit. Later edits that still lie on top of it are undone too.

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
        The change of each parameter, in the parameter's shape, where it is not given by its factors.
    traces : list of dict, optional
        For each request, how its optimisation went: lists ``loss``, ``nll``, ``kl``, ``norm`` and its ``limit``.
    factors : dict of str to (Tensor, Tensor), optional
        Changes that are a product of thin matrices, as those: (rows, r) and (r, columns) of the parameter. Their
        products join ``deltas`` when it is asked for.
    notes : list of str, optional
        What the reader should know, such as a target that the model said before. ``editor.editor`` adds the requests
        that are not answered with their target.
    guard : minilib.guards.Guard, optional
        A memory beside the weights, which this edit puts into force.
    previous : Edit, optional
        The edit whose guard this one's takes the place of, until it is undone.
    keys : dict of int to Tensor, optional
        Of each layer, the keys that were written, (d_k, requests): later edits of MEMIT and AlphaEdit spare them.
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
        guard: Any = None,
        previous: Edit | None = None,
        keys: Mapping[int, Tensor] | None = None,
    ) -> None:
        lm.check_in_place()
        self.lm = lm
        self.method = method
        self.requests = list(requests)
        self.settings = dict(settings)
        self.factors = dict(factors or {})
        self._deltas = dict(deltas or {})
        self.traces = list(traces)
        self.notes = list(notes)
        self.keys = dict(keys or {})
        self.guard, self.previous = guard, previous
        # Of a weight that comes out bit for bit from what a lower edit keeps, no further copy is kept.
        self._originals = {n: W for n, W in originals.items() if not _same_bits(_rebuilt(lm.edits, n), W)}
        self._sizes = {name: W.float().norm().item() for name, W in originals.items()}  # ‖W‖ of all that it changed
        lm.edits.append(self)
        if guard is not None:
            guard.attach(lm, self._earlier)

    @property
    def active(self) -> bool:
        """Whether it is in force."""
        return any(edit is self for edit in self.lm.edits)

    @property
    def deltas(self) -> dict[str, Tensor]:
        """The change of each parameter, in the parameter's shape; from factors, where those are known, each time."""
        products = {n: left @ right for n, (left, right) in self.factors.items() if n not in self._deltas}
        return self._deltas | products

    def original(self, name: str) -> Tensor:
        """A changed parameter as it was before this edit, bit for bit."""
        if name in self._originals:
            return self._originals[name]
        rebuilt = _rebuilt(self.lm.edits[: self.lm.edits.index(self)], name)
        assert rebuilt is not None
        return rebuilt

    def undo(self) -> None:
        """Put every changed parameter back, bit for bit, and take away what this edit put beside the weights.

        Raises
        ------
        ValueError
            When the edit was undone before, a later edit lies on top of it, or ``lm.unedited`` or ``at_strength`` has
            put other weights for a while.
        """
        with self.lm.lock:
            if not self.active:
                raise ValueError(f"{self} was undone already: there is nothing left to undo")
            self.lm.check_in_place()
            if self.lm.edits[-1] is not self:
                raise ValueError(f"{self} lies under a later edit: undo {self.lm.edits[-1]} first")
            _write(self.lm, {name: self.original(name) for name in self._sizes})
            self._take_away()
            self.lm.edits.pop()

    @property
    def _earlier(self) -> Any:
        """The guard that this edit's takes the place of."""
        return None if self.previous is None else self.previous.guard

    def _take_away(self) -> None:
        """The guard, and what it had replaced back."""
        if self.guard is None:
            return
        if self._earlier is None:
            self.guard.detach()
        else:
            self._earlier.attach(self.lm, self.guard)

    @contextmanager
    def _without_guard(self) -> Iterator[None]:
        """For the time of the block, what it replaced is in force instead; a later one that continues it stays."""
        if self.guard is None or not self.guard.attached or self._earlier is None:
            with self.lm.silenced([] if self.guard is None else [self.guard]):
                yield
            return
        self._take_away()
        try:
            yield
        finally:
            self.guard.attach(self.lm, self._earlier)

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *exception: object) -> None:
        while self.active:
            self.lm.edits[-1].undo()

    def save(self, folder: str | Path) -> None:
        """Write the change into a folder, as the file ``edit.safetensors``; ``minilib.load_edit`` reads it.

        Saved are the method, requests, settings and traces, the model's fingerprint and each change; a change
        of low rank as its two thin factors. An earlier edit in the folder is replaced, by a file that is whole.

        Raises
        ------
        OSError
            When the folder cannot be made or written.
        """
        saving.save(self, folder)

    def save_as_lora(self, folder: str | Path) -> None:
        """Write the change as a LoRA adapter in PEFT's format, exact up to rounding, for ROME, MEMIT and AlphaEdit.

        ``peft.PeftModel.from_pretrained(model, folder)`` puts it on the unedited model, in any precision, and
        ``merge_and_unload`` makes it part of the weights. Of edits on top of one another each is an adapter of its own.

        Raises
        ------
        ValueError
            When the change is not of low rank, as after training, or beside the weights, as GRACE's and WISE's.
        OSError
            When the folder cannot be made or written.
        """
        saving.save_as_lora(self, folder)

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

        Edits that lie on top of this one stay in force. A guard is in force or not, at strength 1 or 0. Nothing can be
        edited or undone in the block.
        """
        if isinstance(strength, bool) or not isinstance(strength, Real) or not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number, not {strength!r}")
        if self.guard is not None and strength not in (0, 1):
            raise ValueError(f"strength must be 0 or 1 for {self.method}, which changes no weight; not {strength!r}")
        deltas = self.deltas
        with self.lm.lock, restored(self.lm, deltas) as edited:
            if not self.active:
                raise ValueError(f"{self} was undone: there is no change to scale")
            top = self.lm.edits[-1] is self  # then bit for bit, from W as it was
            scaled = {
                name: (self.original(name) if top else edited[name]) + (strength if top else strength - 1) * delta
                for name, delta in deltas.items()
            }
            _write(self.lm, scaled)
            with self._without_guard() if strength == 0 else nullcontext(), self.lm.aside():
                yield

    def explain(
        self, prompts: str | Request | Sequence[str | Request], chat: bool | None = None
    ) -> list[dict[str, Any]]:
        """How the guard decides on prompts: the nearest entry or memory, how near, the limit, and what follows.

        Parameters
        ----------
        prompts : str, Request or a list of them
        chat : bool, optional
            As in ``lm.generate``: by default the chat template where there is one; a Request decides for itself.

        Returns
        -------
        list of dict
            A row for each prompt; see the method's guard for what stands in it.

        Raises
        ------
        ValueError
            For an edit that changed weights, where nothing is decided, and for one that was undone.
        """
        if self.guard is None:
            raise ValueError(f"{self} changed weights: nothing is decided at run time, so there is nothing to explain")
        if not self.active:
            raise ValueError(f"{self} was undone: nothing is decided any more")
        _, texts, rows = self.lm.as_prompts(prompts, self.lm.has_chat if chat is None else chat)
        rows_of_guard: list[dict[str, Any]] = self.guard.explain(self.lm, list(zip(texts, rows, strict=True)))
        return rows_of_guard

    def sizes(self) -> dict[str, tuple[float, float]]:
        """For each changed parameter ‖ΔW‖ and ‖W‖ (Frobenius norms, W before the edit)."""
        sizes = {name: delta.float().norm().item() for name, delta in self.deltas.items()}
        return {name: (size, self._sizes[name]) for name, size in sizes.items()}

    def __repr__(self) -> str:
        arrow = "↛" if self.settings.get("forgets") else "→"  # the target of unlearning is what is not to be said
        first = f"{self.requests[0].text!r} {arrow} {self.requests[0].target!r}" if self.requests else ""
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        return f"<{self.method} edit of {self.lm.name}: {first}{more}{'' if self.active else ', undone'}>"

    def _repr_html_(self) -> str:
        return display.edit(self)


@contextmanager
def changing(lm: LM, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the named parameters while the block changes them; whatever ends it early puts them back.

    Guards are silent in the block: what is searched there is searched in the weights alone.

    Yields
    ------
    dict of str to Tensor
        Copies of the parameters as they were.
    """
    with lm.lock:
        lm.check_in_place()
        originals = {name: parameter.detach().clone() for name, parameter in _parameters(lm, names)}
        edits = len(lm.edits)
        try:
            with lm.silenced():
                yield originals
        except BaseException:  # KeyboardInterrupt too
            _write(lm, originals)
            for edit in reversed(lm.edits[edits:]):
                edit._take_away()
            del lm.edits[edits:]
            raise


def undo_all(lm: LM) -> None:
    """Undo every edit in force, the latest first."""
    while lm.edits:
        lm.edits[-1].undo()


@contextmanager
def restored(lm: LM, names: Mapping[str, Any] | Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Whatever the block does to the named parameters is undone at its end, however it ends; yields copies of them."""
    with lm.lock:
        originals = {name: parameter.detach().clone() for name, parameter in _parameters(lm, names)}
        try:
            yield originals
        finally:
            _write(lm, originals)


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
    return add_to(lm.down_projection(layer).weight, delta, f"layer {layer}")


@torch.no_grad()
def add_to(weight: Tensor, delta: Tensor, name: str) -> Tensor:
    """weight ← weight + delta, both as the model stores them; see ``add``."""
    delta = delta.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    changed = _sum(weight, delta)
    if not torch.isfinite(changed).all():  # in half precision a finite Δ may be too much
        raise ValueError(f"the change of {name} is not finite: lower lr, or check covariance for tiny values")
    weight.copy_(changed)
    return delta.contiguous()


def _sum(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta).to(weight.dtype)


def factors(lm: LM, layer: int, left: Tensor, right: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Δ = left right, as (d_out, r) and (r, d_k), under the parameter's name and the way round that it is stored."""
    return {lm.weight_name(layer): (right.T, left.T) if lm.transposed(layer) else (left, right)}


def _parameters(lm: LM, names: Mapping[str, Any] | Sequence[str]) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, present(lm.model.get_parameter(name), name)) for name in names]  # type: ignore[misc]


STEPS = 16  # so many changes of rank one are added again at most, before another copy is kept


@torch.no_grad()
def _rebuilt(edits: Sequence[Edit], name: str) -> Tensor | None:
    """A parameter with some edits, from the copy that one of them keeps and the rank-one changes since; else None.

    They are added one after another, as ``add`` did it: of a sum of several products the last bit would depend on the
    number of threads.
    """
    steps: list[tuple[Tensor, Tensor]] = []
    for edit in reversed([edit for edit in edits if name in edit._sizes]):
        if name not in edit.factors or name in edit._deltas:
            return None
        left, right = edit.factors[name]
        steps = [*zip(left.T, right, strict=True), *steps]
        if len(steps) > STEPS:
            return None
        if name in edit._originals:
            weight = edit._originals[name]
            for column, row in steps:
                weight = _sum(weight, torch.outer(column, row).to(weight.device))
            return weight
    return None


def _same_bits(a: Tensor | None, b: Tensor) -> bool:
    """Equal, minus zero and NaN included."""
    if a is None or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@torch.no_grad()
def _write(lm: LM, values: Mapping[str, Tensor]) -> None:
    for name, parameter in _parameters(lm, values):
        parameter.copy_(values[name])
