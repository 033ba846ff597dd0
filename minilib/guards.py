"""Memories beside the weights: a guard watches what enters a layer and, for some inputs, answers in its place.

GRACE and WISE leave W as it is. Their edits are guards: forward hooks on one down-projection, so that the module
tree, the weights and their names stay those of the unedited model, and a copy or a pickle of the model takes its
guards along. Where a guard does not answer, what the layer returned is passed on untouched, bit for bit.

A ``PromptGuard`` decides once, where the prompt ends, and holds to it for the answer. A causal model is given a
stream of tokens and not told where a prompt ends; the rule is, for each row of a call of the model, or of its stack of
blocks without the head (``model.base_model``):

1. where ``LM.prompts_end`` says so (the library's own scoring does);
2. else where the chat template's opening of an answer stands last in these tokens;
3. else, in a call that goes on from a cache, the prompt ended earlier and its decision holds;
4. else at the row's last token.

Where a single block is called by hand there is no prompt to decide on. That is an error: a guard is never off unsaid.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import hooks
from .model import LM

ROWS = 32  # prompts run together


class Seat:
    """What the model holds of a guard: it can pass to another guard, whose place among other hooks is then the same."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def after(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        """Behind the layer."""
        if self.guard.silent:
            return None
        self.guard.follow(output.device)
        return self.guard.change(args[0], output)

    def begin(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before each call of the model."""
        self.guard.begin(args, kwargs)

    def end(self, model: Any, args: tuple, output: Any) -> None:
        """After it, however it ended."""
        self.guard.end(output)


class Guard:
    """A memory beside one layer's W.

    Parameters
    ----------
    layer : int
        The block on whose down-projection it is hooked.
    """

    what = "guard"  # what it is called in messages

    def __init__(self, layer: int) -> None:
        self.layer, self.silent = layer, False
        self.told: list[int] | None = None  # where the prompts of the next call end, for guards that ask
        self._seat: Seat | None = None
        self._handles: list[Any] = []

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """What it notes before a call of the model."""

    def end(self, output: Any) -> None:
        """What it notes after a call of the model, also one that failed."""

    def follow(self, device: torch.device) -> None:
        """Move what it holds to where its layer is now."""
        raise NotImplementedError

    def change(self, keys: Tensor, output: Tensor) -> Tensor | None:
        """What to pass on in the place of the layer's output; None for the output itself."""
        raise NotImplementedError

    def explain(self, lm: LM, prompts: Sequence[tuple[str, list[int]]]) -> list[dict[str, Any]]:
        """A row for each prompt, given as text and tokens."""
        raise NotImplementedError

    def continues(self, earlier: Guard) -> bool:
        """Whether this one holds all that ``earlier`` does, and more."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of it as tensors; ``about`` gives the rest."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What is saved of it as JSON."""
        raise NotImplementedError

    def attach(self, lm: LM, earlier: Guard | None = None) -> None:
        """Put it into force, if it is not: behind all other hooks, or in the place of ``earlier``."""
        if self.attached:
            return
        if earlier is not None and earlier._seat is not None:
            self._seat, self._handles = earlier._seat, earlier._handles
            earlier._seat, earlier._handles, self._seat.guard = None, [], self
            return
        seat = self._seat = Seat(self)
        self._handles.append(lm.down_projection(self.layer).register_forward_hook(seat.after))
        # Whoever looks inside calls the model without its head. Called with it, both begin, with the same arguments.
        for model in (lm.model, lm.model.base_model):
            self._handles.append(model.register_forward_pre_hook(seat.begin, with_kwargs=True))
            self._handles.append(model.register_forward_hook(seat.end, always_call=True))

    @property
    def attached(self) -> bool:
        """Whether it is in force."""
        return self._seat is not None

    def detach(self) -> None:
        """Take its hooks away."""
        while self._handles:
            self._handles.pop().remove()
        self._seat = None


class PromptGuard(Guard):
    """A guard that decides at the end of each prompt.

    Parameters
    ----------
    layer : int
    opening : list of int
        The tokens by which the chat template opens an answer; empty where there is none.
    """

    def __init__(self, layer: int, opening: Sequence[int]) -> None:
        super().__init__(layer)
        self.opening = list(opening)
        self._ends: Tensor | None = None  # (rows,), the column of each prompt's end; -1: it ended in an earlier call
        self._shape: tuple[int, int] = (0, 0)
        self._cache: Any = None
        self._held: Any = weakref.WeakKeyDictionary()  # of each cache, what was decided about its rows
        self._decided: Tensor | None = None

    def decide(self, keys: Tensor) -> Tensor:
        """(rows,) of int: which memory answers, given the keys at the prompts' ends; -1 for none."""
        raise NotImplementedError

    def answer(self, keys: Tensor, output: Tensor, decided: Tensor) -> Tensor:
        """The output with the answers of the memories in the rows where one was decided on."""
        raise NotImplementedError

    def change(self, keys: Tensor, output: Tensor) -> Tensor | None:
        if self._ends is None:
            raise ValueError(
                f"a block was called by hand, so its {self.what} does not know where the prompt ends: call lm.model, "
                "or call the block inside `with lm.unedited():`"
            )
        k = keys.reshape(*self._shape, -1)
        ends = self._ends.to(k.device)
        rows, new = torch.arange(len(k), device=k.device), ends >= 0
        held = None if self._cache is None else self._held.get(self._cache)
        decided = torch.full((len(k),), -1, device=k.device) if held is None else held.to(k.device)
        if len(decided) != len(k):
            raise ValueError(
                f"the cache was filled for {len(decided)} prompts and is continued for {len(k)}: this edit cannot tell "
                "which is which; begin again without the cache"
            )
        if new.any():
            decided = torch.where(new, self.decide(k[rows, ends.clamp(min=0)].float()), decided)
        self._decided = decided
        if (decided < 0).all():
            return None
        return self.answer(k, output.reshape(*self._shape, -1), decided).reshape(output.shape)

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a call of the model: where does each prompt end?"""
        ids = args[0] if args else kwargs.get("input_ids")
        tokens = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
        self._shape = (tokens.shape[0], tokens.shape[1])
        self._cache = kwargs.get("past_key_values", kwargs.get("cache"))
        mask = kwargs.get("attention_mask")
        if self.told is not None:
            self._ends = torch.tensor(self.told, device=tokens.device)
            return
        if self._cache is not None and self._cache.get_seq_length() > 0:
            ends = torch.full(tokens.shape[:1], -1, device=tokens.device)
        elif mask is not None and mask.dim() == 2:
            width = torch.arange(mask.shape[1], device=mask.device)
            ends = (mask.long() * width).argmax(1).to(tokens.device)
        else:
            ends = torch.full(tokens.shape[:1], tokens.shape[1] - 1, device=tokens.device)
        n = len(self.opening)
        if ids is not None and 0 < n <= ids.shape[1]:
            matches = (ids.unfold(1, n, 1) == torch.tensor(self.opening, device=ids.device)).all(-1)
            columns = torch.arange(n - 1, ids.shape[1], device=ids.device)
            last = torch.where(matches, columns, -1).amax(1)
            ends = torch.where(last >= 0, last, ends)
        self._ends = ends

    def end(self, output: Any) -> None:
        """After it, however it ended: what was decided holds for what continues from its cache."""
        cache = self._cache
        if cache is None:  # transformers renamed it, and warns at the old name
            cache = getattr(output, "cache" if hasattr(output, "cache") else "past_key_values", None)
        if cache is not None and self._decided is not None:
            self._held[cache] = self._decided
        self._ends = self._decided = self._cache = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None, "_cache": None, "_ends": None, "_decided": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _held=weakref.WeakKeyDictionary())


@torch.no_grad()
def keys(lm: LM, layer: int, rows: Sequence[list[int]]) -> list[Tensor]:
    """For each row of tokens, (tokens, d_k): what enters the layer's W, guards below it in force (float32)."""
    keys_of_rows, together = [], lm.together(most=ROWS)
    for start in range(0, len(rows), together):
        chunk = rows[start : start + together]
        batch = lm.batch(chunk)
        with lm.evaluating(), hooks.read({0: lm.down_projection(layer)}, at="input", stop=True) as seen:
            lm.model(**batch, use_cache=False)
        k = seen[0].reshape(*batch["input_ids"].shape, -1).float()
        keys_of_rows += [k[i, : len(row)] for i, row in enumerate(chunk)]
    return keys_of_rows


def opening(lm: LM) -> list[int]:
    """The tokens by which the chat template opens an answer: with these every chat prompt ends."""
    if not lm.has_chat:
        return []
    one, other = (lm.encode(text, chat=True).ids[::-1] for text in ("a", "What is it?"))
    same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    return one[:same][::-1]


def guarding(lm: LM, kind: type[Guard], layer: int) -> Any:
    """The latest edit in force with a guard of this kind on a layer."""
    return next((e for e in reversed(lm.edits) if isinstance(e.guard, kind) and e.guard.layer == layer), None)


def continued(lm: LM, kind: type[Guard], layer: int, previous: Any) -> Any:
    """The guard of ``previous``, checked; an error where one of its kind is on this layer and is not continued."""
    latest = guarding(lm, kind, layer)
    if previous is None:
        if latest is not None:
            raise ValueError(
                f"layer {layer} has a {kind.what} already, of {latest}: continue it by previous=, or undo it"
            )
        return None
    if not isinstance(getattr(previous, "guard", None), kind):
        raise TypeError(f"previous must be an Edit that has a {kind.what}, not {previous!r}")
    if previous.lm.model is not lm.model:
        raise ValueError(f"previous is an edit of another model, {previous.lm.name}: its {kind.what} is useless here")
    if not previous.active:
        raise ValueError(f"previous was undone: {previous}")
    if previous.guard.layer != layer:
        raise ValueError(f"previous has its {kind.what} at layer {previous.guard.layer}, not {layer}: leave layer out")
    if latest is not previous:
        raise ValueError(f"previous was continued already, by {latest}: continue that one")
    return previous.guard
