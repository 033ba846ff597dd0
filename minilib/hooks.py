"""Reading and replacing what flows through a model.

Two context managers over PyTorch's module hooks. Both take their hooks away again when the block is
left, by whichever way, so that a model that was looked at is the model it was before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Place = Literal["input", "output"]
Name = TypeVar("Name", bound=Hashable)


class _Stop(Exception):
    """All that one reader was to read, which the exception carries, has been read."""


@contextmanager
def read(modules: Mapping[Name, nn.Module], at: Place = "output", stop: bool = False) -> Iterator[dict[Name, Tensor]]:
    """Collect what the named modules receive or return.

    Parameters
    ----------
    modules : mapping of name to module
        The modules to watch, under names of your choice.
    at : {"output", "input"}, default "output"
        Which side of a module to read. Of a tuple, the first element is read.
    stop : bool, default False
        Leave the ``with`` block as soon as all of them were read: the rest of the model is not run.

    Yields
    ------
    dict of name to Tensor
        Filled while the model runs; a module that runs twice leaves its last tensor.

    Examples
    --------
    >>> with hooks.read({5: lm.down_projection(5)}, at="input", stop=True) as keys:
    ...     lm.model(**batch)
    >>> keys[5].shape  # (batch, tokens, d_k)
    """
    _check(at)
    seen: dict[Name, Tensor] = {}

    def keep(name: Name, tensor: Tensor) -> None:
        seen[name] = tensor
        if stop and len(seen) == len(modules):
            raise _Stop(seen)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(_watch(module, at, functools.partial(keep, name)).remove)
        try:
            yield seen
        except _Stop as reached:
            if reached.args[0] is not seen:  # of a reader around this one
                raise


@contextmanager
def replace(module: nn.Module, function: Callable[[Tensor], Tensor], at: Place = "output") -> Iterator[None]:
    """Put ``function(tensor)`` in the place of what a module returns (or receives).

    Parameters
    ----------
    module : nn.Module
    function : callable from Tensor to Tensor
        Keeps the shape that what follows expects. It is given the first element where the module returns a tuple.
    at : {"output", "input"}, default "output"
    """
    _check(at)
    handle = _watch(module, at, function)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def calls(modules: Iterable[nn.Module]) -> Iterator[list[tuple[tuple, dict[str, Any]]]]:
    """How a model calls its blocks: for each call the arguments after the hidden states, to call a block by hand.

    Yields
    ------
    list of (args, kwargs)
        Filled while the model runs, in the order of the calls.
    """
    seen: list[tuple[tuple, dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield seen


def first(output: Any) -> Any:
    """The hidden states of what a block returns: alone, or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _watch(module: nn.Module, at: Place, function: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Register ``function``; what it returns, unless None, takes the tensor's place."""

    def exchange(value: Any) -> Any:
        if isinstance(value, tuple):
            new = function(value[0])
            return None if new is None else (new, *value[1:])
        return function(value)

    if at == "output":
        return module.register_forward_hook(lambda _, args, output: exchange(output))

    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if args:
            new = exchange(args)
            return None if new is None else (new, kwargs)
        first = next(iter(kwargs))  # transformers may pass hidden_states by name
        new = function(kwargs[first])
        return None if new is None else (args, {**kwargs, first: new})

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _check(at: str) -> None:
    if at not in ("input", "output"):
        raise ValueError(f"at must be 'input' or 'output', not {at!r}")
