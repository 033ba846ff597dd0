"""Loading a saved edit, whichever method made it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .editor import past_guards
from .editors import grace, wise
from .edits import Edit, add_to, changing
from .guards import Guard, guarding
from .model import LM, check_lm
from .requests import Request
from .saving import FILE, FORMAT

GUARDS = {"grace": grace.codebook, "wise": wise.memories}


def load_edit(lm: LM, folder: str | Path) -> Edit:
    """Apply what ``Edit.save`` wrote to the model that it was made on.

    The changes are added to the weights as they are, so edits that were made one on another are loaded in that order;
    a guard's ``notes`` say which of its requests it does not answer with the weights that it finds.
    An edit that continued another (``previous=``) holds the earlier entries too: it is loaded on top of that one, or
    alone.

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
        When the edit belongs to another model, or the file is damaged. The model is left as it was.
    """
    with lm.lock, torch.inference_mode(False):  # what is loaded is used outside the caller's block too
        about, tensors = read(lm, folder)
        if about["method"] not in GUARDS:
            return weights(lm, folder, about, tensors)
        with damaged(folder):
            guard = GUARDS[about["method"]](lm, about["guard"], tensors)
        return beside(lm, about, guard)


def read(lm: LM, folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``Edit.save`` wrote: what is said about the edit, its requests as such, and the tensors.

    Raises
    ------
    FileNotFoundError
        When there is no such folder, or no edit in it.
    ValueError
        When the edit belongs to another model than ``lm``, or the file is damaged.
    """
    check_lm(lm)
    file = Path(folder) / FILE
    if not file.is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} has no {FILE}: write it by edit.save(folder)")
    with damaged(folder), safe_open(file, "pt", device=str(lm.device)) as stored:
        metadata = stored.metadata() or {}
        if "edit" not in metadata:
            raise ValueError(f"{FILE} says nothing about an edit, so Edit.save did not write it")
        about = json.loads(metadata["edit"])
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, and this version reads {FORMAT}")
        about["requests"] = [Request(**request) for request in about["requests"]]
        missing = {"method", "model", "fingerprint", "settings", "notes", "traces"} - set(about)
        if missing:
            raise ValueError(f"{FILE} lacks {', '.join(sorted(missing))}")
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    if about["fingerprint"] != (now := lm.fingerprint):
        raise ValueError(
            f"folder {str(folder)!r} holds an edit of another model ({about['model']}, fingerprint "
            f"{about['fingerprint']}; {lm.name} has {now}): load the model that was edited, unedited and in "
            "the same precision"
        )
    return about, tensors


@contextmanager
def damaged(folder: str | Path) -> Iterator[None]:
    """Whatever a damaged file makes the lines of the block raise, said as that."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, AttributeError, OSError) as error:
        raise ValueError(f"folder {str(folder)!r} holds no edit that can be read (damaged?): {error}") from error


def weights(lm: LM, folder: str | Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    """Apply a saved change of weights, as ``read`` gave it.

    The changes are added to the weights as they are, so edits that were made one on another are loaded in that order.

    Raises
    ------
    ValueError
        When a change does not fit, or is in force already. The model is left as it was.
    """
    with damaged(folder):
        keys = {int(n.removesuffix(":keys")): k for n, k in tensors.items() if n.endswith(":keys")}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(":keys")}
        names = dict.fromkeys(name.rpartition(":")[0] for name in tensors)
        thin = {n: (tensors[f"{n}:left"], tensors[f"{n}:right"]) for n in names if f"{n}:delta" not in tensors}
        deltas = {n: thin[n][0] @ thin[n][1] if n in thin else tensors[f"{n}:delta"] for n in names}
    shapes = {name: tuple(parameter.shape) for name, parameter in lm.model.named_parameters()}
    for name, delta in deltas.items():
        if shapes.get(name) != tuple(delta.shape) or not torch.isfinite(delta).all():
            raise ValueError(f"folder {str(folder)!r} is damaged: the change of {name} does not fit, or is not finite")
    method, requests, settings = (about[key] for key in ("method", "requests", "settings"))
    for edit in lm.edits:
        there = edit.deltas if edit.method == method and edit.requests == requests else {}
        if set(there) == set(deltas) and all(torch.equal(there[name], delta) for name, delta in deltas.items()):
            raise ValueError(f"folder {str(folder)!r} holds {edit}, which is in force already: undo it first")
    with changing(lm, list(deltas)) as originals:
        for name, delta in deltas.items():
            # ROME adds its requests one by one, and does so here: a sum of several would differ in the last bit.
            steps = zip(thin[name][0].T, thin[name][1], strict=True) if method == "rome" and name in thin else ()
            for change in [torch.outer(*pair) for pair in steps] or [delta]:
                add_to(lm.model.get_parameter(name), change, name)
        whole = {name: delta for name, delta in deltas.items() if name not in thin}
        more = {"traces": about["traces"], "notes": about["notes"], "factors": thin, "keys": keys}
        return noting_guards(Edit(lm, method, requests, settings, originals, whole, **more))


def beside(lm: LM, about: Mapping[str, Any], guard: Guard) -> Edit:
    """Put a saved guard into force: alone, or on top of the one that it continued.

    Raises
    ------
    ValueError
        When another one of its kind is on this layer.
    """
    previous = guarding(lm, type(guard), guard.layer)
    if previous is not None and previous.guard is not None and not guard.continues(previous.guard):
        raise ValueError(
            f"layer {guard.layer} has a {guard.what} already, of {previous}: undo it before loading another"
        )
    method, requests, settings = (about[key] for key in ("method", "requests", "settings"))
    more = {"traces": about["traces"], "notes": about["notes"], "guard": guard, "previous": previous}
    with changing(lm, []):
        return noting_guards(Edit(lm, method, requests, settings, {}, **more))


def noting_guards(edit: Edit) -> Edit:
    """The edit, whose notes say which guards do not answer their requests now; such as without the weights below."""
    edit.notes += [note for note in past_guards(edit.lm) if note not in edit.notes]
    return edit
