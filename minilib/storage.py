"""What is kept on disk: where, under which name, and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from torch import Tensor, nn


def cache_folder() -> Path:
    """Where models and second moments are kept: ``MINILIB_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("MINILIB_CACHE") or platformdirs.user_cache_dir("editing-as-unlearning"))


def made(folder: Path) -> Path:
    """A folder of the cache, made where it is missing.

    Raises
    ------
    OSError
        When it cannot be made or written to; the message says what to set.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"the cache folder {folder} cannot be written to ({error}); set MINILIB_CACHE to a folder of your own"
        ) from error
    return folder


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A scratch file to write, which takes the place of ``file`` when the block is through: never half written.

    Its mode is that of any new file, so that a class can share a cache; safetensors' own writer shuts others out.
    """
    scratch = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        try:
            scratch.touch()
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{file} cannot be written: {reason}; is {file.parent} a folder of yours?") from error
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)
        with scratch.open("rb+") as written:
            os.fsync(written.fileno())
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def fingerprint_of(model: nn.Module, instead: Mapping[str, Tensor] | None = None) -> str:
    """A hash over the names, shapes and types of all parameters and every bit of them: any change shows in it.

    SmolLM2's 0.54 GB take 0.4 s where the processor has instructions for SHA-256.

    Parameters
    ----------
    model : nn.Module
    instead : mapping, optional
        By name, weights to read in the place of the model's own, rounded to their types.
    """
    instead, digest = instead or {}, hashlib.sha256()
    for name, parameter in model.named_parameters():
        weight = _offloaded(model, name) if parameter.is_meta else parameter.detach()
        weight = instead[name].to(weight.dtype) if name in instead else weight
        digest.update(json.dumps([name, list(weight.shape), str(weight.dtype)]).encode())
        digest.update(memoryview(weight.contiguous().flatten().view(torch.uint8).cpu().numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()[:16]


def _offloaded(model: nn.Module, name: str) -> Tensor:
    """A weight that accelerate keeps elsewhere, as its hook would bring it."""
    module, _, leaf = name.rpartition(".")
    hook: Any = model.get_submodule(module)._hf_hook
    value: Tensor = hook.weights_map[leaf]
    return value


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and its remarks on what it loads."""
    log = transformers.utils.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
